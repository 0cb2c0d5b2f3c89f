// The two languages of the page, whose words are in english.js and chinese.js; nothing else knows a word of either.
// An element names its words (data-word, data-label, data-placeholder); `say` does that for words that change.

import chinese from "./chinese.js";
import english from "./english.js";
import { read, write } from "./store.js";

const LANGUAGE = "language";
const WORDS = { en: english, zh: chinese };

let chosen = "en";

/** What the page says for `key`, with `values` in the places of {names}. */
export function word(key, values = {}) {
  return WORDS[chosen][key].replace(/\{(\w+)\}/g, (_, name) => values[name]);
}

/** Put words into `element` that follow a change of the language; an empty key clears it. */
export function say(element, key, values = {}) {
  element.dataset.word = key;
  element.dataset.values = JSON.stringify(values);
  element.removeAttribute("lang");
  render(element);
}

/** The same with the server's own words behind, whose only language is English; none are empty. */
export function quote(element, [key, values], said) {
  const [own, quoted] = [document.createElement("span"), document.createElement("span")];
  say(element, "");
  delete element.dataset.word; // what is put into it changes its language by itself
  say(own, key, values);
  quoted.className = "said";
  quoted.lang = "en";
  quoted.textContent = said;
  element.append(own, ...(said ? [" ", quoted] : []));
}

/** Put a label beside the words of `element`, mostly for screen readers; it follows a change of the language, too. */
export function label(element, key, values = {}) {
  element.dataset.label = key;
  element.dataset.labelValues = JSON.stringify(values);
  render(element);
}

/** Show the page in the language of the last visit, or in the browser's own. */
export function startLanguage() {
  show(read(LANGUAGE, navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en"));
}

/** Show the page in the other language, and remember it. */
export function switchLanguage() {
  show(chosen === "en" ? "zh" : "en");
  write(LANGUAGE, chosen);
}

function show(language) {
  chosen = language in WORDS ? language : "en";
  document.documentElement.lang = chosen === "zh" ? "zh-CN" : "en";
  document.querySelectorAll("[data-word], [data-label], [data-placeholder]").forEach(render);
  const button = document.querySelector("#switch-language");
  button.textContent = word("switch_to");
  button.lang = chosen === "zh" ? "en" : "zh-CN";
}

function render(element) {
  const { word: key, values, label: name, labelValues, placeholder } = element.dataset;
  if (key !== undefined) element.textContent = key && word(key, JSON.parse(values ?? "{}"));
  if (name) element.setAttribute("aria-label", word(name, JSON.parse(labelValues ?? "{}")));
  if (placeholder) element.placeholder = word(placeholder);
}
