// What people call a voice: in the words of the page where it knows the server's description, else that description.
// A voice without one has its name alone.

const KNOWN = [
  [/^A woman from the United States\b/, "voice_woman_us"],
  [/^A man from the United States, rather a machine\b/, "voice_machine_us"],
  [/^A man from the United States\b/, "voice_man_us"],
  [/^A man from Scotland\b/, "voice_man_scotland"],
  [/^Sampled by seed (?<value>\d+)\b/, "voice_sampled"],
  [/^The same voice in every request\b/, "voice_same"],
];

/** Whether it is one of the small checkpoint that comes with the server. */
export function isTest({ description = "" }) {
  return /\bafter flite's voice\b/.test(description);
}

/** Key and values, as `say` takes them. */
export function titleOf({ id, description = "" }) {
  for (const [pattern, key] of KNOWN) {
    const found = pattern.exec(description);
    if (found) return [key, { ...found.groups }];
  }
  return ["plain", { value: description || id }];
}
