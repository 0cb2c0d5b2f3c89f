// The draft: what stands in the fields, kept in this browser as it changes, so that a reload loses nothing.
// What the fields are is for the form to know.

import * as form from "./form.js";
import { read, write } from "./store.js";

const KEPT = "draft";

/** Put the draft of the last visit back, and keep what changes from now on. */
export function startDraft() {
  form.putBack({ ...form.values(), ...read(KEPT, {}) });
  document.addEventListener("input", () => write(KEPT, form.values()));
}
