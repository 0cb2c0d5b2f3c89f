// The voices to choose from: those of the server, and cloned ones, which this browser alone keeps under their names.
// Elsewhere a voice is the value of its field; only `sent` knows what the API wants for it.

import { ask } from "./api.js";
import { isTest, titleOf } from "./portraits.js";
import { read, write } from "./store.js";
import { label, say } from "./words.js";

const KEPT = "voices"; // [[name, id], ...]
const USUAL = "default"; // comes first
const OWN = "own:"; // names of the server's voices have no colon
const PLAY = "M5.5 3.5v13l11-6.5z", STOP = "M5 5h10v10H5z", REMOVE = "M5 5l10 10M15 5L5 15";

export class Voices {
  #list;
  #field;
  #listed = [{ id: USUAL }];

  /** The list of cards and the field that has the value; `onHear(button, value)`, `onRemove(name)`, `onChange()`. */
  constructor(list, field, { onHear, onRemove, onChange }) {
    [this.#list, this.#field] = [list, field];
    Object.assign(this, { onHear, onRemove, onChange });
    field.addEventListener("input", () => this.#check());
    list.addEventListener("change", ({ target }) => this.choose(target.value));
    this.#fill();
  }

  /** Ask the server for its voices. */
  async load() {
    const { data } = await (await ask("/v1/audio/voices")).json();
    this.#listed = data.sort((one, other) => (other.id === USUAL) - (one.id === USUAL));
    this.#changed();
    if (!this.has(this.#field.value)) this.choose(this.values[0]);
  }

  /** What the API wants for the value of a voice. */
  sent(value) {
    const own = this.own.find(([name]) => OWN + name === value);
    return own ? { id: own[1] } : value;
  }

  /** Put into `element` what people call the value of a voice. */
  tell(element, value) {
    if (value.startsWith(OWN)) say(element, "plain", { value: value.slice(OWN.length) });
    else say(element, ...titleOf(this.#listed.find(({ id }) => id === value) ?? { id: value }));
  }

  has(value) {
    return this.values.includes(value);
  }

  /** The value of every voice. */
  get values() {
    return [...this.#listed.map(({ id }) => id), ...this.own.map(([name]) => OWN + name)];
  }

  /** Whether the server has the voices that come with it, which cannot say everything. */
  get areTest() {
    return this.#listed.some(isTest);
  }

  /** Cloned voices: [[name, id], ...]. */
  get own() {
    return read(KEPT, []);
  }

  /** Keep cloned voices, those of the same names giving way. Whether the browser had room for them. */
  keep(added) {
    const isKept = write(KEPT, [...new Map([...this.own, ...added])]);
    this.#changed();
    if (isKept && added.length) this.choose(OWN + added.at(-1)[0]);
    return isKept;
  }

  remove(name) {
    write(KEPT, this.own.filter(([other]) => other !== name));
    this.#changed();
    if (!this.has(this.#field.value)) this.choose(this.values[0]);
    this.#list.querySelector("input:checked").focus();
  }

  choose(value) {
    this.#field.value = value;
    this.#field.dispatchEvent(new Event("input", { bubbles: true }));
  }

  #fill() {
    this.#list.replaceChildren(...this.values.map((value, i) => this.#card(value, `voice-${i}`)));
    this.#check();
  }

  #changed() {
    this.#fill();
    this.onChange();
  }

  #check() {
    this.#list.querySelectorAll("input").forEach((one) => (one.checked = one.value === this.#field.value));
  }

  #card(value, id) {
    const [card, choice, about, title, help] = ["div", "label", "span", "span", "span"].map(made);
    const radio = Object.assign(document.createElement("input"), { type: "radio", name: "voices", value });
    card.className = "voice";
    title.id = `${id}-title`;
    title.className = "title";
    help.className = "help";
    this.tell(title, value);
    const isOwn = value.startsWith(OWN);
    if (isOwn) say(help, "voice_own");
    else if (title.textContent !== value) help.append(Object.assign(made("code"), { textContent: value }));
    about.append(title, help);
    choice.append(radio, about);
    card.append(choice, this.#hearButton(value, id, title));
    if (isOwn) card.append(this.#removeButton(value.slice(OWN.length)));
    return card;
  }

  #hearButton(value, id, title) {
    const button = iconButton([PLAY, "when-idle"], [STOP, "when-busy"]);
    button.id = `${id}-hear`;
    label(button, "hear");
    button.setAttribute("aria-labelledby", `${button.id} ${title.id}`);
    button.addEventListener("click", () => this.onHear(button, value));
    return button;
  }

  #removeButton(name) {
    const button = iconButton([REMOVE, "cross"]);
    label(button, "remove_label", { name });
    button.addEventListener("click", () => this.onRemove(name));
    return button;
  }
}

function made(tag) {
  return document.createElement(tag);
}

function iconButton(...paths) {
  const button = Object.assign(made("button"), { type: "button", className: "round bare" });
  const picture = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  Object.entries({ viewBox: "0 0 20 20", width: 20, height: 20, "aria-hidden": true }).forEach((pair) =>
    picture.setAttribute(...pair),
  );
  for (const [d, name] of paths) {
    const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
    path.setAttribute("d", d);
    path.setAttribute("class", name);
    picture.append(path);
  }
  button.append(picture);
  return button;
}
