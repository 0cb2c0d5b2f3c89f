// What the browser keeps for this page, as JSON in localStorage.
// A browser that allows none, or no more, makes the page forgetful and breaks nothing.

const PREFIX = "chattts.";

/** What was written under `name`, else `otherwise`. */
export function read(name, otherwise) {
  try {
    return JSON.parse(localStorage.getItem(PREFIX + name)) ?? otherwise;
  } catch {
    return otherwise;
  }
}

/** Whether `value` could be kept under `name`. */
export function write(name, value) {
  try {
    localStorage.setItem(PREFIX + name, JSON.stringify(value));
    return true;
  } catch {
    return false;
  }
}
