// The part of the page that clones a voice: a file or a recording, and its fields.
// The answer of the server is the voice; `Voices` keeps it.

import { ask } from "./api.js";
import { clearErrors, showFailure, wrong } from "./form.js";
import { MOST_S, Recorder } from "./recorder.js";
import { say } from "./words.js";

const BLAMED = { audio: "audio_sample", sample_rate: "audio_sample", sample_text: "transcript" };

const part = (name) => document.getElementById(name);

let recorder = null;
let recording = null; // the file or what was recorded, whichever came last

/** Make the part work; `guarded(action, onFailure)` runs what may need an API key. */
export function startCloning(voices, guarded) {
  part("clone-file").addEventListener("change", ({ target }) => {
    take(target.files[0] ?? null);
    say(part("countdown"), recording ? "plain" : "", { value: recording?.name });
  });
  part("record").addEventListener("click", () => (recorder ? stopRecording() : record()));
  part("clone-form").addEventListener("submit", (event) => {
    event.preventDefault();
    clearErrors(part("cloning"));
    if (recorder) stopRecording();
    if (isComplete()) guarded(() => clone(voices), failed);
  });
}

function take(file) {
  recording = file;
  const preview = part("clone-preview");
  URL.revokeObjectURL(preview.src);
  preview.hidden = !file;
  if (file) preview.src = URL.createObjectURL(file);
  clearErrors(preview.parentElement);
}

async function record() {
  clearErrors(part("cloning"));
  if (!Recorder.isAllowed) return wrong("audio_sample", "insecure");
  const starting = new Recorder();
  part("record").disabled = true;
  try {
    await starting.start(showProgress, stopRecording);
  } catch (error) {
    return wrong("audio_sample", "no_microphone", { reason: error.message });
  } finally {
    part("record").disabled = false;
  }
  recorder = starting;
  part("level").hidden = false;
  return say(part("record").firstElementChild, "record_stop");
}

function showProgress(seconds, loudness) {
  const left = Math.ceil(MOST_S - seconds);
  if (part("countdown").dataset.left !== String(left)) say(part("countdown"), "countdown", { seconds: left });
  part("countdown").dataset.left = left;
  part("level").value = Math.max(loudness, 0.95 * part("level").value);
}

function stopRecording() {
  if (!recorder) return;
  const seconds = recorder.seconds.toFixed(1);
  part("clone-file").value = "";
  take(recorder.stop());
  recorder = null;
  part("level").hidden = true;
  say(part("record").firstElementChild, "record");
  say(part("countdown"), "recorded", { seconds });
}

function isComplete() {
  if (!recording) return wrong("audio_sample", "recording_missing");
  if (!part("clone-name").value.trim()) return wrong("name", "name_missing");
  if (!part("consent").checked) return wrong("consent", "consent_missing");
  return true;
}

async function clone(voices) {
  const body = new FormData();
  body.set("audio_sample", recording, recording.name ?? "recording.wav");
  body.set("name", part("clone-name").value.trim());
  if (part("clone-transcript").value.trim()) body.set("transcript", part("clone-transcript").value.trim());
  part("clone").disabled = true;
  say(part("clone-status"), "cloning_now");
  try {
    const { id, name } = await (await ask("/v1/audio/voices", { method: "POST", body })).json();
    const isKept = voices.keep([[name, id]]);
    say(part("clone-status"), isKept ? "clone_ready" : "", { name });
    if (!isKept) return void wrong("clone", "clone_not_kept");
    part("clone-form").reset();
    take(null);
    say(part("countdown"), "");
  } finally {
    part("clone").disabled = false;
  }
}

function failed(error) {
  say(part("clone-status"), "");
  showFailure(error, "clone", BLAMED);
}
