// The request of the page for other programs, a command of curl and Python, which follow the fields.
// It is given the body of the request, and writes no key.

import { isLocked, json } from "./api.js";
import { say } from "./words.js";

const part = (name) => document.getElementById(name);

/** Show the programs while they are unfolded; `bodyOf()` is what they are to send. */
export function startPrograms(bodyOf) {
  const show = () => {
    if (!part("programs").open) return;
    const url = `${location.origin}/v1/audio/speech`;
    part("curl").textContent = curlOf(bodyOf(), url, isLocked());
    part("python").textContent = pythonOf(bodyOf(), url, isLocked());
    say(part("copied"), "");
  };
  part("programs").addEventListener("toggle", show);
  document.addEventListener("input", show);
  ["curl", "python"].forEach((name) => part(`copy-${name}`).addEventListener("click", () => copy(part(name))));
}

async function copy(element) {
  try {
    await navigator.clipboard.writeText(element.textContent);
  } catch {
    getSelection().selectAllChildren(element); // pages over plain HTTP may copy what is selected
    document.execCommand("copy");
  }
  say(part("copied"), "copied");
}

/** `body` as curl sends it to `url`; `hasKey`: the server wants a key. */
function curlOf(body, url, hasKey) {
  const lines = [`curl --fail-with-body ${url}`, "-H 'Content-Type: application/json'"];
  if (hasKey) lines.push('-H "Authorization: Bearer $CHATTTS_API_KEY"');
  lines.push(`-d '${json(body).replaceAll("'", "'\\''")}'`, `-o speech.${body.response_format}`);
  return lines.join(" \\\n  ");
}

/** `body` as Python sends it with the package requests. */
function pythonOf(body, url, hasKey) {
  const key = '    headers={"Authorization": "Bearer " + os.environ["CHATTTS_API_KEY"]},\n';
  return `${hasKey ? "import os\n\n" : ""}import requests

answer = requests.post(
    ${JSON.stringify(url)},
    json=${literal(body)},
${hasKey ? key : ""}    timeout=600,
)
answer.raise_for_status()
with open("speech.${body.response_format}", "wb") as file:
    file.write(answer.content)
`;
}

function literal({ seed, ...body }) {
  const of = (value) => {
    if (typeof value === "boolean") return value ? "True" : "False";
    if (Array.isArray(value)) return `[${value.map(of).join(", ")}]`;
    if (typeof value !== "object") return JSON.stringify(value);
    return `{${Object.entries(value).map(([name, one]) => `${JSON.stringify(name)}: ${of(one)}`).join(", ")}}`;
  };
  const pairs = Object.entries(body).map(([name, value]) => `        ${JSON.stringify(name)}: ${of(value)},\n`);
  if (seed) pairs.push(`        "seed": ${BigInt(seed)},\n`);
  return `{\n${pairs.join("")}    }`;
}
