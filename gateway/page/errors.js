// What went wrong, in the words of the page; the server's own sentence, which is in English, has the particulars.
// It is given answers of the server, and knows no field.

const SAID = [
  [/; allowed is (for turn \d+: )?text with at least one word/, "error_no_words"],
  [/; allowed is (for turn \d+: )?text in Chinese or English/, "error_script"],
  [/no id of a cloned voice/, "error_clone_id"],
  [/leaves room for text|whose voice this model can speak/, "error_clone_voice"],
  [/no recording that FFmpeg can read/, "error_no_recording"],
  [/has no sound|'audio_sample' is silent/, "error_silent"],
  [/is longer than 30 s|allowed is 1 to 30 s/, "error_length"],
  [/samples per second|\bHz\b/, "error_rate"],
  [/unknown API key/, "error_key"],
];
const BLAMED = { voice: "error_voice", seed: "error_seed", temperature: "error_temperature", input: "error_text" };
const STATUS = {
  0: "unreachable",
  401: "error_key",
  408: "unreachable",
  413: "error_large",
  429: "error_many",
  500: "error_server",
  502: "error_no_server",
  503: "error_busy",
  504: "error_late",
};

/** Key and values, as `say` takes them, for an `ApiError`. */
export function reasonOf({ status, message, param }) {
  const said = status < 500 && SAID.find(([pattern]) => pattern.test(message));
  if (said) return [said[1], {}];
  if (status === 400) return [BLAMED[param] ?? "error_field", {}];
  return [STATUS[status] ?? "failed", { status }];
}
