// One text that the server speaks: asks for it, keeps the samples that come, and knows how long it all took.
// It neither plays nor draws them.

import { ask, bytesOf } from "./api.js";
import { samplesOf, wav } from "./samples.js";

const PATH = "/v1/audio/speech";

export class Speech {
  parts = [];
  numSamples = 0;
  rate = 24000;
  seed = ""; // digits: seeds have up to 63 bits, numbers of JavaScript hold 53
  firstMs = null;
  #began = 0;
  #ended = 0;

  /** `request` is the body of the request, but its seed is a string of digits. */
  constructor(request) {
    this.request = request;
  }

  /** The samples, part after part, as they come. */
  async *stream(signal) {
    this.#began = performance.now();
    const answer = await ask(PATH, post({ ...this.request, response_format: "pcm" }, signal));
    this.rate = Number(answer.headers.get("x-sample-rate"));
    this.seed = answer.headers.get("x-seed");
    for await (const part of samplesOf(bytesOf(answer))) {
      this.#ended = performance.now();
      this.firstMs ??= this.#ended - this.#began;
      this.parts.push(part);
      this.numSamples += part.length;
      yield part;
    }
    this.#ended = performance.now();
  }

  get seconds() {
    return this.numSamples / this.rate;
  }

  /** Seconds that the server took for a second of speech. */
  get factor() {
    return (this.#ended - this.#began) / 1000 / this.seconds;
  }

  /** What has come, as a WAV file. */
  wav() {
    return wav(this.parts, this.rate);
  }

  /** The same speech once more, by the server, as a file in another format. */
  async as(format) {
    const answer = await ask(PATH, post({ ...this.request, seed: this.seed, response_format: format, stream: false }));
    return answer.blob();
  }
}

function post({ seed, ...request }, signal) {
  const body = JSON.stringify({ model: "chattts", ...request });
  const seeded = seed ? `${body.slice(0, -1)},"seed":${BigInt(seed)}}` : body;
  return { method: "POST", headers: { "content-type": "application/json" }, body: seeded, signal };
}
