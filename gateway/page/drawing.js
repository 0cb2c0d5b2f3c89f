// Draws speech as it comes: bars of loudness, what has been heard of them in the accent colour, and a spectrogram.
// It is given samples and the place that is being heard; colours are those of the style sheet.

import { spectrumOf } from "./spectrum.js";

const COLUMNS_PER_S = 100;
const FFT_SIZE = 1024;
const BANDS = 80;
const LEAST_S = 6; // of the axis while speech comes; longer speech fills the whole width, as does whole speech
const BAR_PX = 3, GAP_PX = 2;
const MOST_LOOKED_AT = 8; // columns for one dot of the picture

export class Drawing {
  #wave;
  #spectrum;
  #playhead;
  #loudness = new Float32Array(2 ** 10); // of each column
  #bands = new Uint8Array(2 ** 10 * BANDS);
  #count = 0;
  #rate = 24000;
  #recent = new Float32Array(FFT_SIZE);
  #pending = [];
  #analyse = null;
  #isDrawn = false; // the spectrogram, as it is now
  #isWhole = false;
  #heard = 0;
  #isResting = true;

  /** Two canvases, and the line in the second that marks the place. A canvas that is not shown is drawn later. */
  constructor(wave, spectrum, playhead) {
    [this.#wave, this.#spectrum, this.#playhead] = [wave, spectrum, playhead];
    const redraw = () => {
      this.#isDrawn = false;
      this.draw(this.#heard, this.#isResting);
    };
    const observer = new ResizeObserver(redraw);
    observer.observe(wave);
    observer.observe(spectrum);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  }

  /** Forget what was drawn. */
  clear() {
    this.#count = 0;
    this.#pending = [];
    this.#recent.fill(0);
    this.#analyse = null;
    this.#isWhole = this.#isDrawn = false;
    this.draw(0, false);
  }

  /** No more samples come. */
  finish() {
    this.#isWhole = true;
    this.#isDrawn = false;
  }

  /** Take `samples` (16 bits); they appear with the next `draw`. */
  add(samples, rate) {
    this.#rate = rate;
    this.#analyse ??= spectrumOf(FFT_SIZE, BANDS, rate);
    const hop = Math.round(rate / COLUMNS_PER_S);
    for (const sample of samples) {
      this.#pending.push(sample / 32768);
      if (this.#pending.length === hop) this.#addColumn();
    }
  }

  /** Seconds from the left edge to the right one. */
  get axis() {
    return Math.max(this.#isWhole ? 1 / COLUMNS_PER_S : LEAST_S, this.#count / COLUMNS_PER_S);
  }

  /** Draw what is there, `heard` seconds of which have been heard; at rest there is no such place to mark. */
  draw(heard, isResting) {
    [this.#heard, this.#isResting] = [heard, isResting];
    const style = getComputedStyle(this.#wave);
    const colours = Object.fromEntries(
      ["accent", "on-card", "faint", "card", "ink"].map((name) => [name, style.getPropertyValue(`--${name}`).trim()]),
    );
    if (this.#wave.clientWidth) this.#drawWave(colours);
    if (this.#spectrum.clientWidth && !this.#isDrawn) {
      this.#drawSpectrum(colours);
      this.#isDrawn = true;
    }
    this.#playhead.hidden = isResting || !this.#count;
    this.#playhead.style.left = `${(100 * heard) / this.axis}%`;
  }

  #addColumn() {
    this.#recent.copyWithin(0, this.#pending.length);
    this.#recent.set(this.#pending, FFT_SIZE - this.#pending.length);
    if (this.#count === this.#loudness.length) {
      this.#loudness = grown(this.#loudness);
      this.#bands = grown(this.#bands);
    }
    this.#loudness[this.#count] = this.#pending.reduce((most, sample) => Math.max(most, Math.abs(sample)), 0);
    this.#bands.set(this.#analyse(this.#recent), this.#count * BANDS);
    this.#count += 1;
    this.#pending = [];
    this.#isDrawn = false;
  }

  /** The columns from `x` on that `width` parts of the axis have for one part. */
  #columns(x, width) {
    const all = this.axis * COLUMNS_PER_S;
    const first = Math.floor((x * all) / width), end = Math.max(first + 1, Math.floor(((x + 1) * all) / width));
    return [first, Math.min(this.#count, end), Math.max(1, Math.floor((end - first) / MOST_LOOKED_AT))];
  }

  #drawWave(colours) {
    const { pen, width, height } = fitted(this.#wave);
    const numBars = Math.floor((width + GAP_PX) / (BAR_PX + GAP_PX));
    for (let bar = 0; bar < numBars; bar++) {
      const [first, end] = this.#columns(bar, numBars);
      const loudness = first < end ? Math.max(...this.#loudness.subarray(first, end)) : 0;
      const tall = Math.max(BAR_PX, loudness * height);
      const isHeard = this.#isResting || first <= this.#heard * COLUMNS_PER_S;
      pen.fillStyle = first < end ? (isHeard ? colours.accent : colours["on-card"]) : colours.faint;
      pen.beginPath();
      pen.roundRect(bar * (BAR_PX + GAP_PX), (height - tall) / 2, BAR_PX, tall, BAR_PX / 2);
      pen.fill();
    }
  }

  #drawSpectrum(colours) {
    const { pen, width, height } = fitted(this.#spectrum);
    const numColumns = Math.ceil(width);
    const scale = colourScale([colours.card, colours.accent, colours.ink]);
    const image = new ImageData(numColumns, BANDS);
    const dots = new Uint32Array(image.data.buffer).fill(scale[0]);
    for (let x = 0; x < numColumns; x++) {
      const [first, end, step] = this.#columns(x, numColumns);
      for (let band = 0; band < BANDS && first < end; band++) {
        let most = 0;
        for (let i = first; i < end; i += step) most = Math.max(most, this.#bands[i * BANDS + band]);
        dots[(BANDS - 1 - band) * numColumns + x] = scale[most];
      }
    }
    const small = new OffscreenCanvas(numColumns, BANDS);
    small.getContext("2d").putImageData(image, 0, 0);
    pen.drawImage(small, 0, 0, width, height);
  }
}

function grown(array) {
  const larger = new array.constructor(2 * array.length);
  larger.set(array);
  return larger;
}

/** An empty canvas with as many dots as the screen has for it; its pen draws in pixels of CSS. */
function fitted(canvas) {
  const { clientWidth: width, clientHeight: height } = canvas;
  const dots = [width, height].map((length) => Math.round(length * devicePixelRatio));
  if (canvas.width !== dots[0] || canvas.height !== dots[1]) [canvas.width, canvas.height] = dots;
  const pen = canvas.getContext("2d");
  pen.setTransform(devicePixelRatio, 0, 0, devicePixelRatio, 0, 0);
  pen.clearRect(0, 0, width, height);
  return { pen, width, height };
}

/** 256 colours from the first of `stops` to the last, as dots of an image. */
function colourScale(stops) {
  const strip = new OffscreenCanvas(256, 1).getContext("2d");
  const gradient = strip.createLinearGradient(0, 0, 256, 0);
  stops.forEach((stop, i) => gradient.addColorStop(i / (stops.length - 1), stop));
  strip.fillStyle = gradient;
  strip.fillRect(0, 0, 256, 1);
  return new Uint32Array(strip.getImageData(0, 0, 256, 1).data.buffer);
}
