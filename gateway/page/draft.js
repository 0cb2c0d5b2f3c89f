// The draft: what stands in the fields, kept in this browser as it changes, so that a reload loses nothing.
// What the fields are is for the form to know.

import * as form from "./form.js";
import { read, write } from "./store.js";

const KEPT = "draft";

/** Put the draft of the last visit back, and keep what changes from now on. Its voice, which may not be there yet. */
export function startDraft() {
  const { voice = form.values().voice, ...held } = read(KEPT, {});
  form.putBack({ ...form.values(), ...held });
  document.addEventListener("input", () => write(KEPT, form.values()));
  return voice;
}
