// Where in the text as it was written the words stand that the server said for it. Those have no marks, numbers are
// written out, and refining changes them: the same words are found, and what lies between them takes the rest.

// What is written and spoken: Latin words, Chinese characters, numbers, and what is spelled. Tags are not.
const TOKEN = /\[spell [^\]]*\]|\[(?:pause )?[\w.]+\]|\p{Script=Han}|[\p{Script=Latin}\p{M}\p{N}'’]+/gu;
const TAG = /^\[(?!spell )/;
const END = /[.!?]["'’”)\]]*(?=\s|$)|[。！？…；\n]/; // of a sentence, between two tokens
const SKIP = 0.05, SKIP_END = 1; // what it costs to leave a token out, and one behind which a sentence ends
const SPARE = 64; // tokens that are looked at besides twice those that are said

export class Alignment {
  #tokens; // { key, from, to, isLast } each; the last ones of their sentences
  #next = 0; // the first token that was not said yet
  #numLost = 0; // words since the last one that was found

  /** `text` is as it was written. */
  constructor(text) {
    this.#tokens = [...text.matchAll(TOKEN)]
      .filter(([token]) => !TAG.test(token))
      .map(({ 0: token, index }) => ({ key: keyOf(token), from: index, to: index + token.length, isLast: false }));
    this.#tokens.forEach((token, i) => (token.isLast = END.test(text.slice(token.to, this.#tokens[i + 1]?.from))));
  }

  /**
   * The places of a sentence's words, which follow those before: for each the characters [from, to) of the text; null
   * where nothing is written for it. A word may have several words in it, such as those of the whole sentence.
   */
  places(words) {
    const said = words.flatMap((word, of) => keysOf(word).map((key) => ({ key, of })));
    const stretches = this.#stretches(said.map(({ key }) => key));
    return words.map((_, of) => {
      const own = stretches.filter((stretch, i) => stretch && said[i].of === of);
      return own.length ? [this.#tokens[own[0][0]].from, this.#tokens[own.at(-1)[1] - 1].to] : null;
    });
  }

  /** For each key the tokens [first, end) that it says, or null. */
  #stretches(keys) {
    const found = this.#found(keys);
    const stretches = found.map((token) => (token === null ? null : [token, token + 1]));
    for (let i = 0; i < keys.length; i++) {
      if (found[i] !== null) continue;
      let end = i;
      while (end < keys.length && found[end] === null) end++;
      const stretch = this.#between(found[i - 1], found[end], end - i);
      const near = stretches[i - 1] ?? stretches[end] ?? null;
      for (; i < end; i++) stretches[i] = stretch ?? near;
    }
    const last = stretches.at(-1);
    if (last) this.#next = last[1];
    return stretches;
  }

  /** What `count` keys say between two tokens that were found, one of which may be undefined. */
  #between(before, after, count) {
    let first = before === undefined ? this.#next : before + 1;
    let end = after ?? Math.min(this.#tokens.length, first + count);
    const isOver = after === undefined && before !== undefined && this.#tokens[before].isLast;
    if (isOver) return null;
    for (let i = first; i < end; i++) {
      if (!this.#tokens[i].isLast) continue;
      if (after === undefined) end = i + 1;
      else if (before === undefined) first = i + 1;
    }
    return first < end ? [first, end] : null;
  }

  /** For each key the token that is the same word, or null: as many as can be without leaving much out. */
  #found(keys) {
    const first = this.#next;
    const window = this.#tokens.slice(first, first + 2 * (keys.length + this.#numLost) + SPARE);
    const width = window.length + 1;
    const best = new Float64Array((keys.length + 1) * width); // of the keys from i on and the tokens from j on
    const skipped = (i, j) => best[i * width + j + 1] - SKIP - (window[j].isLast ? SKIP_END : 0);
    const matched = (i, j) => (keys[i] === window[j].key ? 1 + best[(i + 1) * width + j + 1] : 0);
    for (let i = keys.length - 1; i >= 0; i--) {
      for (let j = window.length - 1; j >= 0; j--) {
        best[i * width + j] = Math.max(matched(i, j), best[(i + 1) * width + j], skipped(i, j));
      }
    }
    const found = [];
    let j = 0;
    for (let i = 0; i < keys.length; i++) {
      const isWorth = best[i * width + j] > best[(i + 1) * width + j];
      while (isWorth && matched(i, j) < best[i * width + j]) j++;
      found.push(isWorth ? first + j++ : null);
    }
    this.#numLost = found.some((token) => token !== null) ? 0 : this.#numLost + keys.length;
    return found;
  }
}

/** What two spellings of the same word have in common. */
function keyOf(word) {
  return word.normalize("NFKC").toLowerCase().replace(/['’]/g, "");
}

function keysOf(said) {
  return [...said.matchAll(TOKEN)].map(([token]) => token).filter((token) => !TAG.test(token)).map(keyOf);
}
