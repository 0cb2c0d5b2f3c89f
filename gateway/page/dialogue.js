// The dialogue: lines with a voice each, which are one request. A field holds them as JSON, [{ voice, text }, ...], for
// the form to keep and to put back.

import { label } from "./words.js";

export const MOST_LINES = 200; // the server's limit

export class Dialogue {
  #list;
  #field;
  #add;
  #voices;

  /** The list, the field, the button for one more line, and the voices to choose from. */
  constructor(list, field, add, voices) {
    [this.#list, this.#field, this.#add, this.#voices] = [list, field, add, voices];
    field.addEventListener("input", ({ detail }) => detail === "typed" || this.show());
    add.addEventListener("click", () => this.insert(this.lines.length));
    this.show();
  }

  get lines() {
    const lines = this.#field.value ? JSON.parse(this.#field.value) : [];
    while (lines.length < 2) lines.push({ voice: this.#voiceAfter(lines), text: "" });
    return lines;
  }

  /** Show what the field holds. */
  show() {
    this.#list.replaceChildren(...this.lines.map((line, i) => this.#row(line, i)));
    this.#add.disabled = this.lines.length >= MOST_LINES;
  }

  /** Take `texts`, MOST_LINES at most, as the lines, in turns of two voices. */
  take(texts) {
    const lines = [];
    for (const text of texts) lines.push({ voice: this.#voiceAfter(lines), text });
    this.#keep(lines);
    this.focus(0);
  }

  /** A new line at place `at`. */
  insert(at) {
    const lines = this.lines;
    if (lines.length >= MOST_LINES) return;
    this.#keep(lines.toSpliced(at, 0, { voice: this.#voiceAfter(lines.slice(0, at)), text: "" }));
    this.focus(at);
  }

  /** Go to the line at place `at`, or to the last one. */
  focus(at) {
    const texts = this.#list.querySelectorAll("textarea");
    texts[Math.min(at, texts.length - 1)].focus();
  }

  /** Go to the line that is the `number`th, from 1, of those that have a text. */
  focusSpoken(number) {
    const places = this.lines.flatMap(({ text }, i) => (text.trim() ? [i] : []));
    this.focus(places[number - 1] ?? 0);
  }

  /** Whoever spoke before the last one, else somebody else. */
  #voiceAfter(lines) {
    const { values } = this.#voices;
    return lines.at(-2)?.voice ?? values.find((value) => value !== lines.at(-1)?.voice) ?? values[0];
  }

  #keep(lines, detail = "") {
    this.#field.value = JSON.stringify(lines);
    this.#field.dispatchEvent(new CustomEvent("input", { bubbles: true, detail }));
  }

  #change(at, changed) {
    this.#keep(this.lines.map((line, i) => (i === at ? { ...line, ...changed } : line)), "typed");
  }

  #remove(at) {
    this.#keep(this.lines.toSpliced(at, 1));
    this.focus(at);
  }

  #row({ voice, text }, at) {
    const [row, choice, words, remove] = ["li", "select", "textarea", "button"].map((tag) => document.createElement(tag));
    const number = at + 1;
    choice.append(...this.#options(voice));
    choice.value = voice;
    label(choice, "line_voice", { number });
    choice.addEventListener("change", () => this.#change(at, { voice: choice.value }));
    words.rows = 1;
    words.value = text;
    label(words, "line", { number });
    words.addEventListener("input", () => this.#change(at, { text: words.value }));
    words.addEventListener("keydown", (event) => this.#typed(event, at));
    remove.type = "button";
    remove.className = "round bare";
    remove.textContent = "×";
    label(remove, "line_remove", { number });
    remove.addEventListener("click", () => this.#remove(at));
    row.append(choice, words, remove);
    return row;
  }

  #options(voice) {
    const { values } = this.#voices;
    return (values.includes(voice) ? values : [...values, voice]).map((value) => {
      const option = new Option("", value);
      this.#voices.tell(option, value);
      return option;
    });
  }

  /** Enter begins the next line, unless it chooses a character of an input method. */
  #typed(event, at) {
    if (event.key !== "Enter" || event.shiftKey || event.ctrlKey || event.metaKey || event.isComposing) return;
    event.preventDefault();
    this.insert(at + 1);
  }
}
