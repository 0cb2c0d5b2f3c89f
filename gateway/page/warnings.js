// What the server says beside speech, in the words of the page; its own sentence, in English, has the particulars.

const LETTERS = /not spoken, as the model speaks Chinese and English: ([\d,]+) letters/;
const NO_TIMES = /^this server cannot tell when each word is said/; // the page marks sentences then

/** What to tell (key and values, as `say` takes them) and the server's own words; null where there is nothing. */
export function remarkOf(warning) {
  const remarks = warning.split("; ").filter((remark) => remark && !NO_TIMES.test(remark));
  if (!remarks.length) return null;
  const counts = remarks.map((remark) => Number(LETTERS.exec(remark)?.[1].replaceAll(",", "")));
  const count = counts.reduce((sum, one) => sum + one);
  const told = count ? ["warning_letters", { count: count.toLocaleString("en") }] : ["warning_other", {}];
  return { told, said: remarks.join("; ") };
}
