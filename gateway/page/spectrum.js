// How strong each pitch is in a stretch of sound: a Fourier transform, gathered into bands as the ear hears them.
// Pure arithmetic.

const RANGE_DB = [-90, -20];

/** A function (samples [size]) -> strengths [numBands] from 0 to 255, low pitches first. */
export function spectrumOf(size, numBands, rate) {
  const window = Float32Array.from({ length: size }, (_, i) => 0.5 - 0.5 * Math.cos((2 * Math.PI * i) / size));
  const bins = bandEdges(size, numBands, rate);
  const real = new Float32Array(size), imaginary = new Float32Array(size);
  return (samples) => {
    for (let i = 0; i < size; i++) real[i] = samples[i] * window[i];
    imaginary.fill(0);
    transform(real, imaginary);
    return Uint8Array.from({ length: numBands }, (_, band) => {
      let most = 0;
      for (let i = bins[band]; i <= Math.max(bins[band], bins[band + 1] - 1); i++) {
        most = Math.max(most, real[i] ** 2 + imaginary[i] ** 2);
      }
      const db = 10 * Math.log10((16 * most) / size ** 2 + 1e-12); // of a full tone: 0
      return 255 * Math.max(0, Math.min(1, (db - RANGE_DB[0]) / (RANGE_DB[1] - RANGE_DB[0])));
    });
  };
}

/** Bins of the transform at which bands begin, equally wide on the mel scale. */
function bandEdges(size, numBands, rate) {
  const most = 2595 * Math.log10(1 + rate / 2 / 700);
  return Int32Array.from({ length: numBands + 1 }, (_, i) => {
    const hertz = 700 * (10 ** ((most * i) / numBands / 2595) - 1);
    return Math.min(size / 2 - 1, Math.round((hertz * size) / rate));
  });
}

/** Cooley and Tukey's transform, in place; the size is a power of two. */
function transform(real, imaginary) {
  const size = real.length;
  for (let i = 1, j = 0; i < size; i++) {
    let bit = size >> 1;
    for (; j & bit; bit >>= 1) j ^= bit;
    j ^= bit;
    if (i < j) {
      [real[i], real[j]] = [real[j], real[i]];
      [imaginary[i], imaginary[j]] = [imaginary[j], imaginary[i]];
    }
  }
  for (let half = 1; half < size; half *= 2) {
    for (let k = 0; k < half; k++) {
      const cos = Math.cos((Math.PI * k) / half), sin = -Math.sin((Math.PI * k) / half);
      for (let i = k; i < size; i += 2 * half) {
        const re = real[i + half] * cos - imaginary[i + half] * sin;
        const im = real[i + half] * sin + imaginary[i + half] * cos;
        real[i + half] = real[i] - re;
        imaginary[i + half] = imaginary[i] - im;
        real[i] += re;
        imaginary[i] += im;
      }
    }
  }
}
