"""The ChatTTS package as a system to measure: its defaults, through the methods that its `infer` calls."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from bench.repository import sentence
from export.chattts_package import load_chat

CHATTTS_BATCH = 4  # ChatTTS 0.2.5, `max_split_batch`


def load_chattts(checkpoint: Path, device: str) -> Any:
    """ChatTTS with the weights of `checkpoint` (a folder in the official layout), which says nothing but errors."""
    logging.getLogger("ChatTTS").setLevel(logging.ERROR)
    chat = load_chat(checkpoint, device)
    chat.logger.setLevel(logging.ERROR)
    return chat


def speak_by_chattts(chat: Any, count: int, tokens: int) -> None:
    """Have `count` sentences of `tokens` audio tokens spoken, CHATTTS_BATCH at once; no text is refined or split.

    Raises:
        AssertionError: a sentence has another number of tokens.
    """
    params = chat.InferCodeParams(
        spk_emb=chat.sample_random_speaker(), min_new_token=tokens, max_new_token=tokens, show_tqdm=False
    )
    texts = [sentence(number) for number in range(count)]
    for start in range(0, count, CHATTTS_BATCH):
        batch = [chat.normalizer(text) for text in texts[start : start + CHATTTS_BATCH]]
        (result,) = chat._infer_code(batch, False, chat.device, True, params)
        if any(len(ids) != tokens for ids in result.ids):
            raise AssertionError(f"ChatTTS made {[len(ids) for ids in result.ids]} tokens, not {tokens}")
        chat._decode_to_wavs(result.hiddens, True)
