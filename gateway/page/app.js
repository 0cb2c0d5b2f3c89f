// Ties the parts of the page together: what happens when something is clicked, and which part is told of it.
// One speech at a time, from the click to the file that stays in the player.

import { useKey } from "./api.js";
import { startCloning } from "./cloning.js";
import { Dialogue, MOST_LINES } from "./dialogue.js";
import { startDraft } from "./draft.js";
import * as form from "./form.js";
import { Hearing } from "./hearing.js";
import { History } from "./history.js";
import { startPrograms } from "./programs.js";
import { Result } from "./result.js";
import { save } from "./saving.js";
import { Speech } from "./speech.js";
import { takeDrops, textOf } from "./textfiles.js";
import { startTransfer } from "./transfer.js";
import { Voices } from "./voices.js";
import { say, startLanguage, switchLanguage, word } from "./words.js";

const part = (name) => document.getElementById(name);

startLanguage();
const status = part("status");
const result = new Result((isWaiting) => say(status, isWaiting ? "collecting" : "speaking"));
const hearing = new Hearing(part("sample"));
const voices = new Voices(part("voices"), part("voice"), {
  onHear: hear,
  onRemove: removeVoice,
  onChange: () => {
    history.show();
    dialogue.show();
    part("voices-test").hidden = !voices.areTest;
    part("export-voices").hidden = !voices.own.length;
  },
});
const dialogue = new Dialogue(part("turns"), part("lines"), part("add-line"), voices);
const history = new History(part("history"), part("history-clear"), {
  onChoose: putBack,
  tell: (element, voice) => voices.tell(element, voice),
});
let running = null; // what aborts the speech that is coming or playing
let lastLine = null; // of the dialogue that was written in
let again = null; // what waits for an API key

// Speaking

function speakText() {
  form.clearErrors();
  const held = form.values();
  if (form.isRight(held)) guarded(() => speak({ ...bodyOf(held), word_times: true }, (seed) => history.add({ ...held, seed })), failed);
}

function bodyOf(held) {
  return form.bodyOf(held, (voice) => voices.sent(voice));
}

/** What other programs are to send: an example where there is no text yet. */
function bodyForPrograms() {
  const held = form.values();
  const said = form.textsOf(held).length ? {} : { kind: "", input: word("example_1") };
  return { model: "chattts", ...bodyOf({ ...held, ...said }), response_format: part("format").value, stream: false };
}

function hear(button, voice) {
  form.clearErrors();
  part("audio").pause();
  guarded(() => hearing.toggle(button, voices.sent(voice)), (error) => form.showFailure(error, "voice"));
}

async function speak(request, onSeed = () => {}) {
  stop();
  hearing.stop();
  const mine = (running = new AbortController());
  const coming = new Speech(request);
  show("waiting", true);
  result.begin(coming).then((isPlaying) => !isPlaying && running === mine && say(status, "press_play"));
  try {
    for await (const samples of coming.stream(mine.signal)) {
      if (mine.signal.aborted) return;
      if (coming.numSamples === samples.length) onSeed(coming.seed);
      result.add(samples, coming.rate);
    }
  } catch (error) {
    if (mine.signal.aborted) return;
    if (!coming.numSamples) {
      end("");
      throw error;
    }
    form.wrong("general", "broken_off", {}, error.message);
  }
  if (!coming.numSamples) return end("nothing");
  say(status, "finishing");
  if (await result.finish()) end("done", { seconds: coming.seconds.toFixed(1) });
}

function stop() {
  if (!running) return;
  running.abort();
  end("stopped");
}

function end(key, values) {
  running = null;
  result.end();
  show(key, false, values);
}

function failed(error) {
  const isDialogue = Boolean(part("kind").value);
  form.showFailure(error, "general", isDialogue ? { voice: "input" } : {});
  const [, number] = /^'input' .* for turn (\d+)/s.exec(error.message) ?? [];
  if (isDialogue && number) dialogue.focusSpoken(number);
}

function show(key, isBusy, values) {
  say(status, key, values);
  say(part("speak").querySelector("span"), isBusy ? "stop" : "speak");
  part("speak").classList.toggle("busy", isBusy);
}

// Files

async function download() {
  const [mine, format] = [result.speech, part("format").value];
  const file = `chattts-${mine.seed}.${format}`;
  say(status, "downloading", { format });
  save(format === "wav" ? mine.wav() : await mine.as(format), file);
  say(status, "downloaded", { file });
}

function notDownloaded(error) {
  say(status, "");
  form.showFailure(error, "general");
}

async function takeText(file) {
  form.clearErrors();
  if (!file) return;
  const [wrong, text] = await textOf(file);
  if (wrong) return form.wrong("input", wrong, { name: file.name });
  const isDialogue = Boolean(part("kind").value);
  const lines = text.split("\n").filter((line) => line.trim());
  const counted = { name: file.name, count: lines.length, most: MOST_LINES };
  if (isDialogue && lines.length > MOST_LINES) return form.wrong("input", "file_lines", counted);
  if (form.textsOf(form.values()).length && !confirm(word("file_sure", { name: file.name }))) return;
  if (isDialogue) dialogue.take(lines);
  else form.putBack({ ...form.values(), input: text });
  say(status, "file_taken", { name: file.name });
}

// History, and tags at the cursor

function putBack(held) {
  const isThere = Boolean(held.kind) || voices.has(held.voice);
  form.putBack(isThere ? held : { ...held, voice: part("voice").value });
  say(status, isThere ? "history_put_back" : "voice_gone");
  if (held.kind) dialogue.focus(0);
  else part("input").focus();
}

/** Where tags go: the line of the dialogue that was written in last, or the text. */
function written() {
  if (!part("kind").value) return part("input");
  return lastLine?.isConnected ? lastLine : part("turns").querySelector("textarea");
}

function insert(tag) {
  const text = written();
  text.setRangeText(tag, text.selectionStart, text.selectionEnd, "end");
  text.dispatchEvent(new Event("input", { bubbles: true }));
  text.focus();
}

function removeVoice(name) {
  if (!confirm(word("remove_sure", { name }))) return;
  voices.remove(name);
  say(status, "removed", { name });
}

// API key

async function guarded(action, onFailure) {
  try {
    await action();
  } catch (error) {
    if (error.status === 401) askForKey(error, () => guarded(action, onFailure));
    else onFailure(error);
  }
}

function askForKey(error, action) {
  again = action;
  part("key-form").hidden = false;
  part("key").focus();
  if (part("key").value) form.showFailure(error, "key");
}

function takeKey(event) {
  event.preventDefault();
  form.clearErrors(part("key-form"));
  const key = part("key").value.trim();
  if (!key) return form.wrong("key", "key_missing");
  useKey(key);
  part("key-form").hidden = true;
  again?.();
}

function loadVoices() {
  return guarded(() => voices.load(), (error) => form.showFailure(error, "voice"));
}

// Wiring

part("speak").addEventListener("click", () => (running ? stop() : speakText()));
part("audio").addEventListener("play", () => hearing.stop());
part("download").addEventListener("click", () => guarded(download, notDownloaded));
part("open-file").addEventListener("change", ({ target }) => {
  takeText(target.files[0]);
  target.value = ""; // so that the same file can be chosen again
});
takeDrops(part("text"), takeText);
part("key-form").addEventListener("submit", takeKey);
part("keep-seed").addEventListener("click", () => form.putBack({ ...form.values(), seed: result.speech.seed }));
part("switch-language").addEventListener("click", switchLanguage);
part("history-clear").addEventListener("click", () => confirm(word("history_sure")) && history.clear());
document.querySelectorAll("[data-tag]").forEach((tag) => tag.addEventListener("click", () => insert(tag.dataset.tag)));
document.querySelectorAll(".example").forEach((chip) => chip.addEventListener("click", () => insert(chip.textContent)));
part("speed").addEventListener("input", showSpeed);
part("turns").addEventListener("focusin", ({ target }) => (lastLine = target.tagName === "TEXTAREA" ? target : lastLine));
part("example-lines").addEventListener("click", () => dialogue.take(word("example_lines").split(" | ")));
["kind", "input", "lines"].forEach((name) => part(name).addEventListener("input", showText));
part("kinds").addEventListener("change", ({ target }) => form.putBack({ ...form.values(), kind: target.value }));
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") {
    hearing.stop();
    stop();
  }
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !event.target.closest("form")) speakText();
});

function showSpeed() {
  const shown = `${form.speedOf(part("speed").value).toFixed(2)} ×`;
  part("speed-shown").textContent = shown;
  part("speed").setAttribute("aria-valuetext", shown);
}

function showText() {
  const held = form.values();
  const [count, most] = [form.textsOf(held).join("").length, form.MOST_CHARACTERS];
  say(part("count"), "count", { count: count.toLocaleString("en"), most: most.toLocaleString("en") });
  part("count").classList.toggle("over", count > most);
  const isDialogue = Boolean(held.kind);
  part("kinds").querySelectorAll("input").forEach((one) => (one.checked = one.value === held.kind));
  part("input").hidden = part("voice-field").hidden = isDialogue;
  part("dialogue").hidden = !isDialogue;
  part("examples").hidden = isDialogue || count > 0;
  part("example-lines").hidden = count > 0;
}

form.forgiveOnInput();
showSpeed();
showText();
startDraft();
startCloning(voices, guarded);
startTransfer(voices);
startPrograms(bodyForPrograms);
loadVoices();
