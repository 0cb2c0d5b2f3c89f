// Sound as numbers: 16-bit samples out of the bytes of a stream, and WAV files made of samples.
// Both are little-endian, as is every machine that runs a browser.

const HEADER_BYTES = 44;

/** The samples in parts of bytes as they come, wherever the bytes were cut. */
export async function* samplesOf(parts) {
  let rest = new Uint8Array();
  for await (const value of parts) {
    const bytes = new Uint8Array(rest.length + value.length);
    bytes.set(rest);
    bytes.set(value, rest.length);
    const whole = bytes.length - (bytes.length % 2);
    rest = bytes.slice(whole);
    if (whole) yield new Int16Array(bytes.buffer, 0, whole / 2);
  }
}

/** A WAV file of one channel, out of parts of 16-bit samples. */
export function wav(parts, rate) {
  const numBytes = 2 * parts.reduce((sum, part) => sum + part.length, 0);
  const header = new DataView(new ArrayBuffer(HEADER_BYTES));
  const text = (at, letters) => [...letters].forEach((one, i) => header.setUint8(at + i, one.charCodeAt(0)));
  text(0, "RIFF");
  header.setUint32(4, HEADER_BYTES - 8 + numBytes, true);
  text(8, "WAVEfmt ");
  header.setUint32(16, 16, true); // bytes of the format
  header.setUint16(20, 1, true); // plain samples
  header.setUint16(22, 1, true); // one channel
  header.setUint32(24, rate, true);
  header.setUint32(28, 2 * rate, true);
  header.setUint16(32, 2, true);
  header.setUint16(34, 16, true);
  text(36, "data");
  header.setUint32(40, numBytes, true);
  return new Blob([header, ...parts], { type: "audio/wav" });
}

/** 16-bit samples of samples from -1 to 1. */
export function rounded(samples) {
  return Int16Array.from(samples, (sample) => Math.round(Math.max(-1, Math.min(1, sample)) * 32767));
}
