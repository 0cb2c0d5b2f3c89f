// Text files, from the picker or dropped: UTF-8, UTF-16 with its mark, else GB 18030, which is what Windows writes in China.
// They are read in the browser and sent nowhere.

const MOST_BYTES = 1_000_000;
const MARKS = [["utf-16le", 0xff, 0xfe], ["utf-16be", 0xfe, 0xff]];

/** Key of what is wrong with `file`, or its text: [key, text]. */
export async function textOf(file) {
  if (file.size > MOST_BYTES) return ["file_large", ""];
  const text = decoded(new Uint8Array(await file.arrayBuffer()));
  if (text === null || text.includes("\0")) return ["file_wrong", ""];
  return text.trim() ? ["", text.replaceAll("\r\n", "\n").trim()] : ["file_empty", ""];
}

/** Let files be dropped on `target`; `onFile(file)` gets the first. */
export function takeDrops(target, onFile) {
  const hasFile = ({ dataTransfer }) => dataTransfer.types.includes("Files");
  target.addEventListener("dragover", (event) => {
    if (!hasFile(event)) return;
    event.preventDefault();
    target.classList.add("dropping");
  });
  target.addEventListener("dragleave", () => target.classList.remove("dropping"));
  target.addEventListener("drop", (event) => {
    target.classList.remove("dropping");
    if (!hasFile(event)) return;
    event.preventDefault();
    onFile(event.dataTransfer.files[0]);
  });
}

function decoded(bytes) {
  const marked = MARKS.find(([, ...mark]) => mark.every((byte, i) => bytes[i] === byte));
  for (const encoding of marked ? [marked[0]] : ["utf-8", "gb18030"]) {
    try {
      return new TextDecoder(encoding, { fatal: true }).decode(bytes);
    } catch {
      continue;
    }
  }
  return null;
}
