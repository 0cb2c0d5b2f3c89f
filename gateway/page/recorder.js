// Records the microphone as plain samples, which every browser can do alike, for half a minute at most.
// What becomes of the recording is for others to decide.

import { rounded, wav } from "./samples.js";

export const MOST_S = 30;
const LIMIT_S = MOST_S - 0.1; // a file of exactly 30 s may be a sample too long once it is resampled

export class Recorder {
  #context = null;
  #microphone = null;
  #parts = [];
  #numSamples = 0;

  /** Browsers hide the microphone from pages that came over plain HTTP from another machine. */
  static get isAllowed() {
    return isSecureContext && Boolean(navigator.mediaDevices);
  }

  get seconds() {
    return this.#numSamples / this.#context.sampleRate;
  }

  /** Ask for the microphone and listen; `onSound(seconds, loudness)` follows, and `onFull()` at the limit. */
  async start(onSound, onFull) {
    const plain = { channelCount: 1, echoCancellation: false, noiseSuppression: false, autoGainControl: false };
    this.#microphone = await navigator.mediaDevices.getUserMedia({ audio: plain });
    this.#context = new AudioContext();
    await this.#context.audioWorklet.addModule("tap.js");
    const mono = { numberOfOutputs: 0, channelCount: 1, channelCountMode: "explicit" };
    const tap = new AudioWorkletNode(this.#context, "tap", mono);
    tap.port.onmessage = ({ data }) => {
      this.#parts.push(rounded(data));
      this.#numSamples += data.length;
      onSound(this.seconds, data.reduce((most, sample) => Math.max(most, Math.abs(sample)), 0));
      if (this.seconds >= LIMIT_S) onFull();
    };
    new MediaStreamAudioSourceNode(this.#context, { mediaStream: this.#microphone }).connect(tap);
  }

  /** Let go of the microphone. The recording, as a WAV file. */
  stop() {
    this.#microphone.getTracks().forEach((track) => track.stop());
    this.#context.close();
    return wav(this.#parts, this.#context.sampleRate);
  }
}
