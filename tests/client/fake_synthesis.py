"""What the fake models answer: a tone of a token per character, and what arrived. The fake models import it.

`refined_text` is a JSON object {input name: {"datatype", "shape", "value"}} of every input that arrived; in a stream it
stands in the first chunk. Each line of the text, or each turn, is a sentence, "length" being the finish reason of one
that has more characters than `max_new_tokens`; the line break is spoken, too, as one token.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

SAMPLE_RATE = 24_000  # Hz
SAMPLES_PER_CHARACTER = 512
CHARACTERS_PER_CHUNK = 3
MOST_CHUNKS = 100  # so that long texts take no time
DEFAULT_SEED = 4_294_967_311  # does not fit 32 bits
SPEAKER = "蘁淰"

Outputs = dict[str, np.ndarray[Any, Any]]


def described(array: np.ndarray[Any, Any]) -> dict[str, Any]:
    """An input as `refined_text` tells it."""
    value = array.reshape(-1)[0]
    value = value.decode("utf-8") if isinstance(value, bytes) else value.item()
    return {"datatype": str(array.dtype), "shape": array.shape, "value": value}


def said(seen: dict[str, Any]) -> str:
    """The text, or those of the turns in lines."""
    if "turns" in seen:
        return "\n".join(turn["text"] for turn in json.loads(seen["turns"]["value"]))
    text: str = seen["text"]["value"]
    return text


def is_full(name: str) -> bool:
    """Whether a server has no room for the text "full NAME", as for the first one, after which there is a file NAME."""
    is_there = Path(name).exists()
    Path(name).touch()
    return not is_there


def whole(seen: dict[str, Any]) -> Outputs:
    """The answer of `chattts` to the inputs `seen`."""
    return _outputs(seen, 0, _num_tokens(seen), refined_text=json.dumps(seen))


def chunks(seen: dict[str, Any], size: int = CHARACTERS_PER_CHUNK) -> list[Outputs]:
    """The answers of `chattts_stream`, `size` tokens each, more where they would be many, and the rest in the last."""
    num_tokens = _num_tokens(seen)
    size = max(size, num_tokens // MOST_CHUNKS)
    starts = range(0, max(1, num_tokens), size)
    return [
        _outputs(seen, start, min(num_tokens, start + size), refined_text="" if index else json.dumps(seen))
        | {"chunk_index": np.array([[index]], np.int32), "is_final": np.array([[index == len(starts) - 1]])}
        for index, start in enumerate(starts)
    ]


def _num_tokens(seen: dict[str, Any]) -> int:
    refine_only = "refine_only" in seen and seen["refine_only"]["value"]
    text = said(seen)
    return 0 if refine_only or text == "silence" else len(text)


def _outputs(seen: dict[str, Any], start: int, end: int, *, refined_text: str) -> Outputs:
    """The tokens from `start` to `end`, and the sentences that end there."""
    times = np.arange(start * SAMPLES_PER_CHARACTER, end * SAMPLES_PER_CHARACTER) / SAMPLE_RATE
    ended = [(number, one) for number, (last, one) in enumerate(_sentences(seen)) if start < last <= end]
    sentences = [sentence for _, sentence in ended]
    words = [_word(number, sentence) for number, sentence in ended if "word_times" in seen]
    return {
        "audio": (0.5 * np.sin(2 * np.pi * 440 * times)).astype(np.float32)[None],
        "sample_rate": np.array([[SAMPLE_RATE]], np.int32),
        "used_seed": np.array([[seen["seed"]["value"] if "seed" in seen else DEFAULT_SEED]], np.int64),
        "warning": _string("not all" if "☃" in said(seen) else ""),
        "used_speaker": _string(seen["speaker"]["value"] if "speaker" in seen else SPEAKER),
        "refined_text": _string(refined_text),
        "num_tokens": np.array([[end - start]], np.int32),
        "sentences": _string(json.dumps(sentences)),
        "words": _string(json.dumps(words)),
    }


def _sentences(seen: dict[str, Any]) -> list[tuple[int, dict[str, Any]]]:
    """Each with the token that it ends before."""
    most = seen["max_new_tokens"]["value"] if "max_new_tokens" in seen else 2_048
    found, first = [], 0
    turns = json.loads(seen["turns"]["value"]) if "turns" in seen else []
    lines = [turn["text"] for turn in turns] or said(seen).split("\n")
    for number, line in enumerate(lines):
        last = first + len(line)
        sentence = {
            "text": line,
            "start": first * SAMPLES_PER_CHARACTER / SAMPLE_RATE,
            "end": last * SAMPLES_PER_CHARACTER / SAMPLE_RATE,
            "num_tokens": len(line),
            "finish_reason": "length" if len(line) > most else "late" if line == "on and on" else "stop",
        }
        if turns:
            sentence |= {"turn": number, "name": turns[number].get("name", "")}
        found.append((last, sentence))
        first = last + 1
    return found


def _word(number: int, sentence: dict[str, Any]) -> dict[str, Any]:
    """The one word that a sentence has."""
    times = {name: sentence[name] for name in ("start", "end")}
    return {"text": sentence["text"].lower(), **times, "sentence": number, "confidence": 0.5}


def _string(text: str) -> np.ndarray[Any, Any]:
    return np.array([[text.encode()]], object)
