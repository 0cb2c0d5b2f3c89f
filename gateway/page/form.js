// The fields of the page: what they hold, what the API is to be sent for it, and errors beside the field to blame.
// What is left as it was is not sent, so that the server's own defaults hold.

import { reasonOf } from "./errors.js";
import { quote, say } from "./words.js";

export const MOST_CHARACTERS = 20000;
const SETTINGS = ["kind", "input", "lines", "voice", "speed", "seed", "refine", "temperature", "language", "mode"];

const control = (name) => document.getElementById(name);
const field = (name) => document.querySelector(`[data-field="${CSS.escape(name)}"]`);

/** What the fields of the settings hold. */
export function values() {
  return Object.fromEntries(
    SETTINGS.map((name) => [name, name === "refine" ? control(name).checked : control(name).value]),
  );
}

/** Put `held`, which `values` gave, back into the fields. */
export function putBack(held) {
  for (const name of SETTINGS) {
    if (name === "refine") control(name).checked = held[name];
    else control(name).value = held[name] ?? "";
    control(name).dispatchEvent(new Event("input", { bubbles: true }));
  }
}

/** How fast the place of the slider is: its middle is 1, its ends a quarter and 4. */
export function speedOf(place) {
  return Math.round(100 * 2 ** place) / 100;
}

/** The text in `held`, or those of the dialogue's lines; none is empty. */
export function textsOf(held) {
  const texts = held.kind ? spoken(held).map(({ text }) => text) : [held.input];
  return texts.filter((text) => text.trim());
}

function spoken(held) {
  return JSON.parse(held.lines || "[]").filter(({ text }) => text.trim());
}

/** Whether `held` can be asked for; what is wrong is shown beside its field. */
export function isRight(held) {
  const count = textsOf(held).join("").length;
  const counted = { count: count.toLocaleString("en"), most: MOST_CHARACTERS.toLocaleString("en") };
  if (!count) return wrong("input", "text_missing");
  if (count > MOST_CHARACTERS) return wrong("input", "text_long", counted);
  if (!isSeed(held)) return wrong("seed", "seed_wrong");
  if (control("temperature").validity.badInput) return wrong("temperature", "temperature_wrong");
  return true;
}

/** The body of a request for `held`; `sent(voice)` is what the API wants for a voice. */
export function bodyOf(held, sent) {
  const [seed, temperature] = [held.seed.trim(), held.temperature.trim()];
  return {
    ...(held.kind
      ? { input: spoken(held).map(({ voice, text }) => ({ voice: sent(voice), text })) }
      : { input: held.input, voice: sent(held.voice) }),
    ...(Number(held.speed) !== 0 && { speed: speedOf(held.speed) }),
    ...(seed && isSeed(held) && { seed }),
    ...(temperature && { temperature: Number(temperature) }),
    ...(!held.refine && { refine: false }),
    ...(held.language && { language: held.language }),
    ...(held.mode && { mode: held.mode }),
  };
}

function isSeed({ seed }) {
  return /^\d*$/.test(seed.trim());
}

/** Show an error of our own beside a field, and go there; the server's words stand behind, where there are some. */
export function wrong(name, key, values, said = "") {
  quote(point(name), [key, values], said);
  return false;
}

/** Say what went wrong beside the field that the server blames, else beside `otherwise`; its own words stand behind. */
export function showFailure(error, otherwise, renamed = {}) {
  const param = renamed[error.param] ?? error.param;
  const place = point(param && field(param) ? param : otherwise);
  quote(place, reasonOf(error), error.message);
}

/** Take errors away: of the fields within `part`. */
export function clearErrors(part = document) {
  part.querySelectorAll(".error").forEach((place) => say(place, ""));
  part.querySelectorAll("[aria-invalid]").forEach((element) => element.removeAttribute("aria-invalid"));
}

/** Let an error go once its field is changed. */
export function forgiveOnInput() {
  document.addEventListener("input", ({ target }) => {
    const part = target.closest("[data-field]");
    if (part) clearErrors(part);
  });
}

function point(name) {
  const part = field(name);
  const hiding = part.closest("details");
  if (hiding) hiding.open = true;
  const kinds = ["input:checked", "textarea", "select", "input"];
  const controls = kinds.flatMap((kind) => [...part.querySelectorAll(kind)]);
  const blamed = controls.find((one) => one.checkVisibility());
  (blamed?.closest("[role=radiogroup]") ?? blamed)?.setAttribute("aria-invalid", "true");
  blamed?.focus();
  return part.querySelector(".error");
}
