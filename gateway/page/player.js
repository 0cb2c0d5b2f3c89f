// Plays samples as they come through an <audio> element, whose pause button and volume hold for them, too.
// It knows nothing of the server: it is given samples, told when no more come, and tells when all were heard.

const RATE = 24000;
const START_S = 0.1; // between scheduling the first samples and hearing them
const MOST_HOLD_S = 4; // collected before going on after the samples ran out
const AHEAD_S = 10; // that are handed to the browser early; it keeps on playing when the tab sleeps
const TAIL_S = 0.4; // silence behind the end, until which the element has played what it was given

export class Player {
  #element;
  #context = null;
  #output = null;
  #queue = [];
  #queued = 0; // samples in the queue
  #sources = new Set();
  #rate = RATE;
  #next = 0; // when the next samples are due, in samples since the context began
  #given = 0; // samples that have been scheduled
  #sure = 0; // of them, those that were heard before samples ran out
  #hold = START_S;
  #complete = false;
  #ended = null;

  /** `onWaiting(true)` is called when samples ran out too early, `onWaiting(false)` when it goes on. */
  constructor(element, onWaiting) {
    this.#element = element;
    this.onWaiting = onWaiting;
    element.addEventListener("pause", () => this.#output && element.paused && this.#context.suspend());
    element.addEventListener("play", () => this.#output && this.#context.resume());
  }

  /** Get ready; browsers want this in the handler of a click. Whether the element plays by itself. */
  async begin() {
    this.stop();
    this.#context ??= new AudioContext({ sampleRate: RATE });
    this.#output = new MediaStreamAudioDestinationNode(this.#context, { channelCount: 1 });
    this.#element.srcObject = this.#output.stream;
    this.#context.resume();
    try {
      await this.#element.play();
      return true;
    } catch (error) {
      if (error.name === "NotAllowedError") this.#context.suspend();
      return error.name !== "NotAllowedError";
    }
  }

  /** Play `samples` (16 bits) after those before. */
  add(samples, rate) {
    this.#rate = rate;
    this.#queue.push(samples);
    this.#queued += samples.length;
    this.#pump();
  }

  /** No more samples come. Resolves to true when all were heard, to false when playing was stopped. */
  finish() {
    return new Promise((resolve) => {
      this.#ended = resolve;
      this.#complete = true;
      this.#pump();
    });
  }

  /** Be silent, and let go of the element. */
  stop() {
    if (!this.#output) return;
    this.#sources.forEach((source) => {
      source.onended = null;
      source.stop();
    });
    this.#release();
    this.#ended?.(false);
    this.#reset();
  }

  /** Seconds of speech that have been heard. */
  get heard() {
    if (!this.#output) return 0;
    const coming = Math.max(0, this.#next - this.#context.currentTime * this.#rate);
    return Math.max(this.#sure, this.#given - coming) / this.#rate;
  }

  #reset() {
    this.#queue = [];
    this.#queued = this.#next = this.#given = this.#sure = 0;
    this.#sources.clear();
    this.#hold = START_S;
    this.#complete = false;
    this.#ended = null;
  }

  #release() {
    this.#output = null;
    this.#element.srcObject = null;
    this.#context.suspend();
  }

  #pump() {
    const now = Math.ceil(this.#context.currentTime * this.#rate);
    if (this.#next <= now && this.#queue.length) {
      if (this.#queued < this.#hold * this.#rate && !this.#complete) return;
      this.#next = now + Math.round(START_S * this.#rate);
      this.#sure = this.#given;
      this.onWaiting(false);
    }
    while (this.#queue.length && this.#next < now + AHEAD_S * this.#rate) {
      const samples = this.#queue.shift();
      this.#queued -= samples.length;
      this.#given += samples.length;
      this.#schedule(Float32Array.from(samples, (sample) => sample / 32768), () => this.#pump());
      this.#next += samples.length;
    }
    const isDry = !this.#queue.length && !this.#sources.size;
    if (isDry && this.#complete) {
      this.#next = Math.max(this.#next, now);
      this.#schedule(new Float32Array(Math.round(TAIL_S * this.#rate)), () => this.#end());
    } else if (isDry && this.#given) {
      this.#hold = Math.min(MOST_HOLD_S, 2 * this.#hold);
      this.onWaiting(true);
    }
  }

  #schedule(samples, then) {
    const buffer = new AudioBuffer({ length: samples.length, numberOfChannels: 1, sampleRate: this.#rate });
    buffer.copyToChannel(samples, 0);
    const source = new AudioBufferSourceNode(this.#context, { buffer });
    source.connect(this.#output);
    source.onended = () => {
      this.#sources.delete(source);
      then();
    };
    source.start(this.#next / this.#rate);
    this.#sources.add(source);
  }

  #end() {
    const ended = this.#ended;
    this.#release();
    this.#reset();
    ended(true);
  }
}
