// The way to the server: the API key in each request, and every failure as an `ApiError`.
// What the requests mean is the business of the modules that make them.

const KEY = "chattts.key";

/** A request that was not answered as hoped: the server's own words, and the field to blame where there is one. */
export class ApiError extends Error {
  constructor(status, message, param) {
    super(message);
    Object.assign(this, { status, param });
  }
}

/** Keep the API key for as long as the tab is open. */
export function useKey(key) {
  sessionStorage.setItem(KEY, key);
}

/** Whether a key is in use. */
export function isLocked() {
  return Boolean(sessionStorage.getItem(KEY));
}

/** The JSON of `body`, whose seed is a string of digits: seeds have up to 63 bits, numbers of JavaScript hold 53. */
export function json({ seed, ...body }) {
  const text = JSON.stringify(body);
  return seed ? `${text.slice(0, -1)},"seed":${BigInt(seed)}}` : text;
}

/** The answer of the server at `path`; `options` are those of fetch. Aborting throws what fetch throws. */
export async function ask(path, options = {}) {
  const headers = new Headers(options.headers);
  const key = sessionStorage.getItem(KEY);
  if (key) headers.set("authorization", `Bearer ${key}`);
  const answer = await fetch(path, { ...options, headers }).catch(lost);
  if (answer.ok) return answer;
  const { error } = await answer.json().catch(() => ({}));
  throw new ApiError(answer.status, error?.message ?? "", error?.param);
}

/** The bytes of an answer as they come. */
export async function* bytesOf(answer) {
  const reader = answer.body.getReader();
  for (;;) {
    const { done, value } = await reader.read().catch(lost);
    if (done) return;
    yield value;
  }
}

function lost(error) {
  throw error.name === "AbortError" ? error : new ApiError(0, "");
}
