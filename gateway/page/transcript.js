// The text that is spoken, as it was written, with a mark on the word that is heard; a click or a key goes to a word.
// It is given words with their times and the time that is heard, and tells to which time somebody wants to go.

import { Alignment } from "./alignment.js";

const EARLY_S = 0.01; // that a word is marked; browsers round the place that was sought
const LINGER_S = 0.4; // that a mark stays behind its word where no other begins
const KEYS = {
  ArrowLeft: (place) => place - 1,
  ArrowRight: (place) => place + 1,
  Home: () => 0,
  End: () => Infinity,
};

const isStill = matchMedia("(prefers-reduced-motion: reduce)");

export class Transcript {
  #box;
  #alignment;
  #words = []; // { start, end, span } each, in their order
  #numTaken = 0;
  #rest; // the text behind the words that have come
  #offset = 0; // its first character
  #begun = -1; // the last word that has begun
  #marked = null;

  /** `onSeek(seconds)` is told when somebody goes to a word, while words can be gone to. */
  constructor(box, onSeek) {
    this.#box = box;
    this.onSeek = onSeek;
    box.addEventListener("click", ({ target }) => getSelection().isCollapsed && this.#goTo(target));
    box.addEventListener("keydown", (event) => this.#typed(event));
    this.begin("");
  }

  /** Show `text`, of which no word has a time yet. */
  begin(text) {
    this.#alignment = new Alignment(text);
    this.#words = [];
    this.#numTaken = this.#offset = 0;
    this.#begun = -1;
    this.#marked = null;
    this.#rest = document.createTextNode(text);
    this.#box.replaceChildren(this.#rest);
    this.#box.scrollTop = 0;
  }

  /** Take those of `words` that were not there before; all of a sentence come at once. */
  take(words) {
    const fresh = words.slice(this.#numTaken);
    this.#numTaken = words.length;
    for (const sentence of Map.groupBy(fresh, (one) => one.sentence).values()) {
      const places = this.#alignment.places(sentence.map(({ text }) => text));
      sentence.forEach(({ start, end }, i) => this.#words.push({ start, end, span: this.#span(places[i]) }));
    }
  }

  /** Mark the word that is heard after so many `seconds`; null where nothing is heard. Words can be gone to or not. */
  show(seconds, canSeek) {
    this.#box.classList.toggle("seekable", canSeek);
    const time = seconds === null ? -Infinity : seconds + EARLY_S;
    this.#begun = this.#words.findLastIndex(({ start }) => start <= time);
    const word = this.#words[this.#begun];
    this.#mark(word && time < word.end + LINGER_S ? word.span : null);
  }

  /** What stands at a place of the text; one that was there before, where it has no place of its own. */
  #span(place) {
    if (!place || place[1] <= this.#offset) return this.#words.at(-1)?.span ?? null;
    const from = Math.max(place[0], this.#offset);
    const span = document.createElement("span");
    const said = this.#rest.splitText(from - this.#offset);
    this.#rest = said.splitText(place[1] - from);
    this.#offset = place[1];
    said.replaceWith(span);
    span.append(said);
    return span;
  }

  #mark(span) {
    if (span === this.#marked) return;
    this.#marked?.classList.remove("now");
    span?.classList.add("now");
    this.#marked = span;
    if (span) this.#keepInView(span);
  }

  #keepInView(span) {
    const [box, mark] = [this.#box.getBoundingClientRect(), span.getBoundingClientRect()];
    if (mark.top >= box.top && mark.bottom <= box.bottom) return;
    const top = this.#box.scrollTop + mark.top - box.top - (box.height - mark.height) / 3;
    this.#box.scrollTo({ top, behavior: isStill.matches ? "instant" : "smooth" });
  }

  #typed(event) {
    if (!(event.key in KEYS) || event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
    const spans = [...this.#box.querySelectorAll("span")];
    const place = KEYS[event.key](spans.indexOf(this.#words[this.#begun]?.span));
    event.preventDefault();
    this.#goTo(spans[Math.max(0, Math.min(spans.length - 1, place))]);
  }

  #goTo(span) {
    const word = this.#words.find((one) => one.span === span);
    if (word && this.#box.classList.contains("seekable")) this.onSeek(word.start);
  }
}
