// Events as a server sends them in one answer: the data of each, which is JSON, as they come.

/** The data of the events in parts of bytes, wherever the bytes were cut. */
export async function* eventsOf(parts) {
  const decoder = new TextDecoder();
  let rest = "";
  for await (const part of parts) {
    const events = (rest + decoder.decode(part, { stream: true })).split("\n\n");
    rest = events.pop();
    for (const event of events) yield dataOf(event);
  }
}

/** The bytes that Base64 says. */
export function bytesOf64(text) {
  return Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
}

function dataOf(event) {
  const lines = event.split("\n").filter((line) => line.startsWith("data:"));
  return JSON.parse(lines.map((line) => line.slice("data:".length)).join("\n"));
}
