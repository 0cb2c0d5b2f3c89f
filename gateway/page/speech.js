// One text that the server speaks: asks for it, keeps the samples that come, and knows how long it all took.
// It neither plays nor draws them.

import { ApiError, ask, bytesOf, json } from "./api.js";
import { bytesOf64, eventsOf } from "./events.js";
import { samplesOf, wav } from "./samples.js";

const SPEECH = "/v1/audio/speech", FILES = "/v1/audio/files";
const STREAM = { response_format: "pcm", stream_format: "sse" };
const MARK = "AI-generated speech (trainedAlgorithmicMedia), made with ChatTTS"; // as in the files of the server

export class Speech {
  parts = [];
  numSamples = 0;
  rate = 24000;
  seed = ""; // digits
  warning = ""; // the server's: what of the text is not spoken
  words = []; // those of sentences that have come: text, start, end (s), sentence; where the request asks for them
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
    const answer = await ask(SPEECH, post({ ...this.request, ...STREAM }, signal));
    this.rate = Number(answer.headers.get("x-sample-rate"));
    this.seed = answer.headers.get("x-seed");
    this.warning = answer.headers.get("x-warning") ?? "";
    for await (const part of samplesOf(this.#sound(answer))) {
      this.#ended = performance.now();
      this.firstMs ??= this.#ended - this.#began;
      this.parts.push(part);
      this.numSamples += part.length;
      yield part;
    }
    this.#ended = performance.now();
  }

  /** The bytes of the samples, out of the events of an answer. */
  async *#sound(answer) {
    let last;
    for await (const event of eventsOf(bytesOf(answer))) {
      last = event;
      if (event.error) throw new ApiError(500, event.error.message);
      if (event.type === "speech.audio.words") this.words.push(...event.words);
      if (event.type === "speech.audio.delta") yield bytesOf64(event.audio);
    }
    if (last?.type !== "speech.audio.done") throw new ApiError(0, "");
  }

  /** What is said, as it was written; turns are lines. */
  get text() {
    const { input } = this.request;
    return typeof input === "string" ? input : input.map(({ text }) => text).join("\n");
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
    return wav(this.parts, this.rate, MARK);
  }

  /** What has come, as a file in another format, which the server makes of the samples. */
  async as(format) {
    const path = `${FILES}?${new URLSearchParams({ response_format: format, sample_rate: this.rate })}`;
    const headers = { "content-type": "application/octet-stream" };
    const answer = await ask(path, { method: "POST", headers, body: new Blob(this.parts) });
    return answer.blob();
  }
}

function post(request, signal) {
  const body = json({ model: "chattts", ...request });
  return { method: "POST", headers: { "content-type": "application/json" }, body, signal };
}
