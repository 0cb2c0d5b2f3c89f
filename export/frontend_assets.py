"""What the text frontend needs beside its code: tokenizer, homophones, speaker statistics and limits."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from chattts_serving.errors import ConfigError
from chattts_serving.request import MAX_NEW_TOKENS
from chattts_serving.voice import base16384
from export.chattts_package import homophones, is_installed, speaker_statistics
from export.checkpoint import Checkpoint
from export.layout import SPEAKER_STATISTICS_FILE
from export.parity import ParityResult

FRONTEND_ASSETS = ("tokenizer.json", "homophones.json", "frontend.json")
NUM_PARITY_STRINGS = 500
BYTES_PER_DIMENSION = 4  # of speaker statistics: standard deviation and mean, float16 each


def export_frontend_assets(checkpoint: Checkpoint, folder: Path) -> None:
    """Write FRONTEND_ASSETS into `folder`, which exists.

    - `tokenizer.json`: the `tokenizers` tokenizer inside transformers' BertTokenizerFast, which settles what the
      checkpoint's three files together mean. Without the ChatTTS package, the checkpoint's own file of that name.
    - `homophones.json`: {Chinese character: what is spoken instead}. Without the ChatTTS package, none.
    - `frontend.json`: `spk_stat` (base16384 over float16[2 * hidden]: std, mean), `hidden_size`, and
      `max_prompt_tokens`, the longest prompt that leaves room for MAX_NEW_TOKENS audio tokens.

    Raises:
        ConfigError: the tokenizer is unreadable, the speaker statistics are broken or of another hidden size, or the
            GPT has too few positions.
    """
    sizes = checkpoint.sizes.gpt
    if sizes.max_positions <= MAX_NEW_TOKENS:
        raise ConfigError(
            f"the GPT of {checkpoint.directory} has {sizes.max_positions} positions; allowed is more than "
            f"{MAX_NEW_TOKENS}, the audio tokens of a sentence"
        )
    _tokenizer(checkpoint).save(str(folder / "tokenizer.json"))
    _write_json(folder / "homophones.json", homophones() if is_installed() else {})
    frontend = {
        "spk_stat": _speaker_statistics(checkpoint),
        "hidden_size": sizes.hidden,
        "max_prompt_tokens": sizes.max_positions - MAX_NEW_TOKENS,
    }
    _write_json(folder / "frontend.json", frontend)


def check_tokenizer(checkpoint: Checkpoint, folder: Path) -> ParityResult:
    """Count the random strings that the exported tokenizer splits otherwise than BertTokenizerFast; none may differ."""
    expected = _bert_tokenizer(checkpoint)
    found = Tokenizer.from_file(str(folder / "tokenizer.json"))
    texts = _random_texts(sorted(checkpoint.special_token_ids()))
    num_differing = sum(
        found.encode(text, add_special_tokens=False).ids != expected(text, add_special_tokens=False)["input_ids"]
        for text in texts
    )
    return ParityResult("text_frontend tokenizer", num_differing, 0)


def _tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    if is_installed():
        tokenizer: Tokenizer = _bert_tokenizer(checkpoint).backend_tokenizer
        return tokenizer
    return Tokenizer.from_file(str(checkpoint.tokenizer / "tokenizer.json"))


def _bert_tokenizer(checkpoint: Checkpoint) -> Any:
    from transformers import BertTokenizerFast  # type: ignore[attr-defined]  # noqa: PLC0415 - takes seconds

    try:
        return BertTokenizerFast.from_pretrained(checkpoint.tokenizer)
    except Exception as error:  # transformers and tokenizers raise whatever their parsers do
        raise ConfigError(f"cannot read the tokenizer in {checkpoint.tokenizer}: {error}") from error


def _speaker_statistics(checkpoint: Checkpoint) -> str:
    """The checkpoint's own, else ChatTTS's."""
    hidden = checkpoint.sizes.gpt.hidden
    statistics = checkpoint.speaker_statistics() or speaker_statistics()
    try:
        found = len(base16384.decode(statistics)) / BYTES_PER_DIMENSION
    except ValueError as error:
        raise ConfigError(f"speaker statistics of {checkpoint.directory} are no base16384 text: {error}") from error
    if found != hidden:
        raise ConfigError(
            f"speaker statistics have {found:g} dimensions, the checkpoint {hidden}; "
            f"put statistics of its size into {checkpoint.directory / SPEAKER_STATISTICS_FILE}"
        )
    return statistics


def _random_texts(tags: list[str]) -> list[str]:
    """Strings of Chinese and English words, control tags, digits, accents, symbols and unknown characters."""
    rng = random.Random(0)  # noqa: S311 - test strings
    anywhere = ((0x20, 0x2FF), (0x1F300, 0x1F6FF), (0x20000, 0x2FFFF))  # Latin, pictures, rare Chinese characters
    makers = (
        lambda: chr(rng.randint(0x4E00, 0x9FFF)),
        lambda: rng.choice("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ") * rng.randint(1, 3),
        lambda: rng.choice(("hello", "The", "speech", "Größe", "naïve", "don't", "unbelievable", "x" * 120)),
        lambda: rng.choice(tags),
        lambda: str(rng.randint(0, 10**9)),
        lambda: rng.choice(" \t\n  ，。！？.,!?()[]##_-\u3000\u200b\u00ad"),
        lambda: chr(rng.randint(*rng.choice(anywhere))),
    )
    return ["".join(rng.choice(makers)() for _ in range(rng.randint(0, 30))) for _ in range(NUM_PARITY_STRINGS)]


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
