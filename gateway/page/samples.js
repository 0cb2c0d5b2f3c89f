// Sound as numbers: 16-bit samples out of the bytes of a stream, and WAV files made of samples.
// Both are little-endian, as is every machine that runs a browser.

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

/** A WAV file of one channel, out of parts of 16-bit samples, with a comment in ASCII where there is one. */
export function wav(parts, rate, comment = "") {
  const format = new DataView(new ArrayBuffer(16));
  format.setUint16(0, 1, true); // plain samples
  format.setUint16(2, 1, true); // one channel
  format.setUint32(4, rate, true);
  format.setUint32(8, 2 * rate, true);
  format.setUint16(12, 2, true);
  format.setUint16(14, 16, true);
  const even = comment.padEnd(2 * Math.ceil((comment.length + 1) / 2), "\0");
  const info = comment ? [chunk("LIST", "INFO", chunk("ICMT", even))] : [];
  return new Blob([chunk("RIFF", "WAVE", chunk("fmt ", format), chunk("data", ...parts), ...info)], { type: "audio/wav" });
}

/** A chunk of RIFF: its name, its length, what is in it. */
function chunk(name, ...parts) {
  const content = new Blob(parts);
  const length = new DataView(new ArrayBuffer(4));
  length.setUint32(0, content.size, true);
  return new Blob([name, length, content]);
}

/** 16-bit samples of samples from -1 to 1. */
export function rounded(samples) {
  return Int16Array.from(samples, (sample) => Math.round(Math.max(-1, Math.min(1, sample)) * 32767));
}
