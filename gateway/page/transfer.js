// Cloned voices as a file, to keep them or to take them to another browser: JSON, { voices: [{ name, id }, ...] }.
// They are whole in it: their ids are all that the server needs.

import { clearErrors, wrong } from "./form.js";
import { save } from "./saving.js";
import { say } from "./words.js";

const MOST_BYTES = 20_000_000;

const part = (name) => document.getElementById(name);

/** Make the two buttons work. */
export function startTransfer(voices) {
  part("export-voices").addEventListener("click", () => {
    const listed = voices.own.map(([name, id]) => ({ name, id }));
    save(new Blob([JSON.stringify({ voices: listed }, null, 1)], { type: "application/json" }), "chattts-voices.json");
  });
  part("import-voices").addEventListener("change", async ({ target }) => {
    clearErrors(part("cloning"));
    const [file] = target.files;
    const found = file && (await voicesOf(file));
    target.value = ""; // so that the same file can be chosen again
    if (!file) return;
    if (!found) wrong("voices_file", "voices_file_wrong", { name: file.name });
    else if (!voices.keep(found)) wrong("voices_file", "clone_not_kept");
    else say(part("transferred"), "voices_loaded", { count: found.length });
  });
}

/** [[name, id], ...] of a file; null if it is none of ours. */
async function voicesOf(file) {
  try {
    if (file.size > MOST_BYTES) return null;
    const { voices } = JSON.parse(await file.text());
    const isVoice = ({ name, id }) => /^.{1,100}$/u.test(name) && typeof name === "string" && /^clone_[\w=-]+$/.test(id);
    return voices.length && voices.every(isVoice) ? voices.map(({ name, id }) => [name, id]) : null;
  } catch {
    return null;
  }
}
