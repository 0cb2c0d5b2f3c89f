// The speech that came last: a compact player with its picture, figures under "Details", and the file to keep.
// It is told what comes and when that ends; who asked for it, and what is said about it, is for others to know.

import { Drawing } from "./drawing.js";
import { Player } from "./player.js";
import { Transcript } from "./transcript.js";
import { remarkOf } from "./warnings.js";
import { label, quote, say } from "./words.js";

const STILL_MS = 500; // between two pictures, for those who want less motion

const part = (name) => document.getElementById(name);
const isStill = matchMedia("(prefers-reduced-motion: reduce)");

export class Result {
  #audio = part("audio");
  #drawing = new Drawing(part("wave"), part("spectrum"), part("playhead"));
  #transcript = new Transcript(part("transcript"), (seconds) => this.#goTo(seconds));
  #player;
  #speech = null;
  #isComing = false; // more samples may come
  #isLive = false; // they come or are still being heard, until there is a file in the element
  #isDrawing = false; // again and again, while something sounds
  #leave = () => {}; // called to hear the file instead of what is left of what came
  #from = null; // where the file begins then, in s
  #drawnAt = 0; // ms
  #warning = ""; // that is shown

  /** `onWaiting(isWaiting)` is told when samples ran out too early, and when they go on. */
  constructor(onWaiting) {
    this.#player = new Player(this.#audio, onWaiting);
    const draw = () => this.#draw();
    part("play").addEventListener("click", () => this.#toggle());
    part("seek").addEventListener("input", ({ target }) => this.#goTo(Number(target.value)));
    ["pause", "ended", "seeked", "loadedmetadata"].forEach((name) => this.#audio.addEventListener(name, draw));
    this.#audio.addEventListener("play", () => this.#startDrawing());
    draw();
  }

  /** The last speech that has sound; null before there is one. */
  get speech() {
    return this.#isThere ? this.#speech : null;
  }

  /** Make room for `speech`. Resolves to whether the browser plays without another click. */
  begin(speech) {
    this.#speech = speech;
    this.#isLive = this.#isComing = true;
    URL.revokeObjectURL(this.#audio.src);
    this.#audio.removeAttribute("src");
    this.#drawing.clear();
    this.#transcript.begin(speech.text);
    this.#startDrawing();
    return this.#player.begin();
  }

  /** Samples of the speech have come. */
  add(samples, rate) {
    this.#player.add(samples, rate);
    this.#drawing.add(samples, rate);
  }

  /** All have come. Resolves to whether nobody stopped them: all were heard, or somebody went to another place. */
  finish() {
    this.#isComing = false;
    const leaving = new Promise((resolve) => (this.#leave = () => resolve(true)));
    return Promise.race([this.#player.finish(), leaving]);
  }

  /** Be silent; what has come becomes a file that can be sought. */
  end() {
    const isPlaying = !this.#audio.paused;
    this.#isLive = this.#isComing = false;
    this.#player.stop();
    this.#drawing.finish();
    if (this.#isThere) this.#audio.src = URL.createObjectURL(this.#speech.wav());
    if (this.#from !== null) {
      this.#audio.currentTime = this.#from;
      if (isPlaying) this.#toggle();
    }
    this.#from = null;
    this.#draw();
  }

  get #isThere() {
    return Boolean(this.#speech?.numSamples);
  }

  #toggle() {
    if (!this.#audio.paused) this.#audio.pause();
    else this.#audio.play().catch(() => {}); // another speech has taken its place
  }

  /** The start itself is where a player rests, with no place to mark. */
  #goTo(seconds) {
    const place = Math.max(seconds, 0.001);
    if (!this.#isLive) this.#audio.currentTime = place;
    else if (!this.#isComing) {
      this.#from = place;
      this.#leave();
    }
  }

  #startDrawing() {
    if (!this.#isDrawing) this.#keepDrawing();
  }

  #keepDrawing() {
    if (!isStill.matches || performance.now() >= this.#drawnAt + STILL_MS) this.#draw();
    else this.#markWord();
    this.#isDrawing = this.#isLive || !this.#audio.paused;
    if (this.#isDrawing) requestAnimationFrame(() => this.#keepDrawing());
  }

  get #heard() {
    return this.#isLive ? this.#player.heard : this.#audio.currentTime;
  }

  get #isResting() {
    return !this.#isLive && this.#audio.paused && !this.#audio.currentTime;
  }

  #markWord() {
    this.#transcript.take(this.#speech?.words ?? []);
    this.#transcript.show(this.#isResting || this.#audio.ended ? null : this.#heard, !this.#isComing);
  }

  #draw() {
    const heard = this.#heard;
    this.#drawnAt = performance.now();
    part("player").hidden = part("details").hidden = !this.#isThere;
    this.#drawing.draw(heard, this.#isResting);
    this.#markWord();
    this.#showWarning();
    part("keep-seed").disabled = !this.#isThere;
    part("download").disabled = this.#isComing;
    if (!this.#isThere) return;
    this.#showPlace(heard, this.#audio.paused);
    const { firstMs, seconds, factor, seed } = this.#speech;
    number("first", "milliseconds", Math.round(firstMs));
    number("length", "seconds", seconds.toFixed(1));
    number("factor", "plain", factor.toFixed(2));
    number("used-seed", "plain", seed);
    number("axis", "axis", this.#drawing.axis.toFixed(1));
  }

  #showWarning() {
    const warning = this.#isThere ? this.#speech.warning : "";
    if (warning === this.#warning) return;
    this.#warning = warning;
    const remark = remarkOf(warning);
    if (remark) quote(part("warning"), remark.told, remark.said);
    else say(part("warning"), "");
  }

  #showPlace(heard, isPaused) {
    const seek = part("seek");
    seek.disabled = this.#isComing;
    seek.max = this.#drawing.axis;
    seek.value = heard;
    const shown = `${clock(heard)} / ${clock(this.#speech.seconds)}`;
    if (part("time").textContent !== shown) {
      part("time").textContent = shown;
      seek.setAttribute("aria-valuetext", shown);
    }
    const name = isPaused ? "play" : "pause";
    if (part("play").dataset.label !== name) label(part("play"), name);
    part("play").classList.toggle("busy", !isPaused);
  }
}

function number(name, key, value) {
  const shown = part(name).dataset;
  if (shown.word !== key || shown.values !== JSON.stringify({ value })) say(part(name), key, { value });
}

function clock(seconds) {
  const whole = Math.floor(seconds);
  return `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, "0")}`;
}
