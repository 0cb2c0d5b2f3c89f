// The voice picker: voices of the server by name, and cloned ones, which this browser alone keeps under their names.
// Elsewhere a voice is the value of the picker; only `sent` knows what the API wants for it.

import { ask } from "./api.js";
import { read, write } from "./store.js";
import { label, say } from "./words.js";

const KEPT = "voices"; // [[name, id], ...]
const OWN = "own:"; // names of the server's voices have no colon

export class Voices {
  #select;
  #help;
  #listed = [];

  /** The picker, and the line below it that describes the voice. */
  constructor(select, help) {
    [this.#select, this.#help] = [select, help];
    select.addEventListener("input", () => this.#describe());
    this.#fill();
  }

  /** Ask the server for its voices. */
  async load() {
    this.#listed = (await (await ask("/v1/audio/voices")).json()).data;
    this.#fill();
  }

  /** What the API wants for a value of the picker. */
  sent(value) {
    const own = this.own.find(([name]) => OWN + name === value);
    return own ? { id: own[1] } : value;
  }

  /** What people call a value of the picker. */
  named(value) {
    return value.startsWith(OWN) ? value.slice(OWN.length) : value;
  }

  has(value) {
    return [...this.#select.options].some((option) => option.value === value);
  }

  /** Cloned voices: [[name, id], ...]. */
  get own() {
    return read(KEPT, []);
  }

  /** Keep a cloned voice, and choose it. Whether the browser had room for it. */
  keep(name, id) {
    const isKept = write(KEPT, [...this.own.filter(([other]) => other !== name), [name, id]]);
    this.#fill();
    if (isKept) this.choose(OWN + name);
    return isKept;
  }

  remove(name) {
    write(KEPT, this.own.filter(([other]) => other !== name));
    this.#fill();
  }

  choose(value) {
    this.#select.value = value;
    this.#describe();
  }

  #fill() {
    const chosen = this.#select.value;
    const listed = this.#listed.length ? this.#listed : [{ id: "default", name: "default" }];
    const groups = [
      ["voices_server", listed.map(({ id, name }) => new Option(name, id))],
      ["voices_own", this.own.map(([name]) => new Option(name, OWN + name))],
    ];
    this.#select.replaceChildren(...groups.filter(([, options]) => options.length).map(grouped));
    this.choose([chosen, "default", listed[0].id].find((value) => value && this.has(value)));
  }

  #describe() {
    const description = this.#listed.find(({ id }) => id === this.#select.value)?.description;
    say(this.#help, description ? "" : this.#select.value.startsWith(OWN) ? "voice_own" : "voice_plain");
    if (description) this.#help.textContent = description;
  }
}

function grouped([key, options]) {
  const group = document.createElement("optgroup");
  label(group, key);
  group.append(...options);
  return group;
}
