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

/** The answer of the server at `path`; `options` are those of fetch. Aborting throws what fetch throws. */
export async function ask(path, options = {}) {
  const headers = new Headers(options.headers);
  const key = sessionStorage.getItem(KEY);
  if (key) headers.set("authorization", `Bearer ${key}`);
  let answer;
  try {
    answer = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, "");
  }
  if (answer.ok) return answer;
  const { error } = await answer.json().catch(() => ({}));
  throw new ApiError(answer.status, error?.message ?? "", error?.param);
}
