// Samples of voices, one at a time; each is asked for once while the page is open.
// Which voice that is, and what an error means, is for others to know.

import { Player } from "./player.js";
import { Speech } from "./speech.js";
import { word } from "./words.js";

export class Hearing {
  #player;
  #kept = new Map(); // whole speeches, by voice and text
  #button = null; // that is sounding
  #running = null;

  /** The element that plays. */
  constructor(audio) {
    this.#player = new Player(audio, () => {});
  }

  /** Say something in `voice`, as the API names it; a second click on the same button stops that. */
  async toggle(button, voice) {
    const isStopping = this.#button === button;
    this.stop();
    if (isStopping) return;
    const mine = (this.#running = new AbortController());
    this.#button = button;
    button.classList.add("busy");
    this.#player.begin();
    try {
      await this.#say({ input: word("sample_text"), voice }, mine.signal);
    } catch (error) {
      if (!mine.signal.aborted) throw error;
    } finally {
      if (!mine.signal.aborted) this.stop();
    }
  }

  stop() {
    this.#running?.abort();
    this.#player.stop();
    this.#button?.classList.remove("busy");
    this.#running = this.#button = null;
  }

  async #say(request, signal) {
    const key = JSON.stringify(request);
    const kept = this.#kept.get(key);
    const speech = kept ?? new Speech(request);
    for await (const samples of kept ? kept.parts : speech.stream(signal)) {
      if (signal.aborted) return;
      this.#player.add(samples, speech.rate);
    }
    if (speech.numSamples) this.#kept.set(key, speech);
    await this.#player.finish();
  }
}
