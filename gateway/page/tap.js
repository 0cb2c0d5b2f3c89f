// Runs where the browser makes sound: passes the samples of the microphone on to recorder.js.
// It keeps nothing.

class Tap extends AudioWorkletProcessor {
  process([[samples]]) {
    if (samples) this.port.postMessage(samples.slice());
    return true;
  }
}

registerProcessor("tap", Tap);
