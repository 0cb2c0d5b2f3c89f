// The last texts with their settings, in this browser and without any sound; a button puts one back.
// What the settings are is for the form to know: here they are kept as they came.

import { textsOf } from "./form.js";
import { read, write } from "./store.js";
import { label, say } from "./words.js";

const KEPT = "history";
const MOST = 20;
const SHOWN_CHARACTERS = 160;

export class History {
  #list;
  #clear;

  /** The list and its button; `onChoose(held)` when one is to be put back, `tell(element, voice)` for people. */
  constructor(list, clear, { onChoose, tell }) {
    [this.#list, this.#clear] = [list, clear];
    Object.assign(this, { onChoose, tell });
    this.show();
  }

  /** Keep `held` as the newest. */
  add(held) {
    const others = read(KEPT, []).filter((other) => !isSame(other, held));
    this.#keep([held, ...others].slice(0, MOST));
  }

  clear() {
    this.#keep([]);
  }

  #keep(entries) {
    while (!write(KEPT, entries) && entries.length) entries.pop(); // of long texts a browser may hold fewer
    this.show();
  }

  show() {
    const entries = read(KEPT, []);
    this.#list.replaceChildren(...entries.map((held, i) => this.#line(held, i)));
    this.#clear.hidden = !entries.length;
  }

  #line(held, index) {
    const text = textsOf(held).join(" – ").slice(0, SHOWN_CHARACTERS);
    const [line, title, about, actions] = ["li", "p", "p", "div"].map((tag) => document.createElement(tag));
    const [again, remove] = [button("entry"), button("quiet")];
    title.className = "text";
    title.textContent = text;
    about.className = "help";
    actions.className = "row";
    const [voice, seed] = [document.createElement("span"), document.createElement("span")];
    if (held.kind) say(voice, "kind_dialogue");
    else this.tell(voice, held.voice);
    say(seed, "history_seed", { seed: held.seed });
    about.append(voice, " · ", seed);
    say(again, "put_back");
    label(again, "put_back_label", { name: text });
    again.addEventListener("click", () => this.onChoose(held));
    say(remove, "remove");
    label(remove, "remove_label", { name: text });
    remove.addEventListener("click", () => {
      this.#keep(read(KEPT, []).filter((other) => !isSame(other, held)));
      (this.#list.querySelectorAll(".quiet")[index] ?? this.#list.querySelector(".quiet"))?.focus();
    });
    actions.append(again, remove);
    line.append(title, about, actions);
    return line;
  }
}

function isSame(one, other) {
  return JSON.stringify(one) === JSON.stringify(other);
}

function button(name) {
  const made = document.createElement("button");
  made.type = "button";
  made.className = name;
  return made;
}
