"""The prompts of both passes, and the text that the first one made: ChatTTS's `Speaker.decorate_*_prompts`."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable
from pathlib import Path

from chattts_serving.text.tags import CONTROL_TAGS, split_tags
from chattts_serving.text.tokenizer import Tokenizer
from chattts_serving.words import SentencePlaces, WordPlace

_FRAME_TAGS = ("[Stts]", "[Ptts]", "[spk_emb]", "[empty_spk]", "[Sbreak]", "[Pbreak]", "[break_0]")
_NOT_SPOKEN = ("[Stts]", "[spk_emb]", "[empty_spk]")  # refined text may hold them; a second one misleads the model
_WORD = re.compile(r"[\u4e00-\u9fff]|[^\W_\u4e00-\u9fff]+(?:['’][^\W_\u4e00-\u9fff]+)*")  # a Chinese character is one


class Prompts:
    """Prompts as token ids. Threads may share one."""

    def __init__(self, assets_dir: Path) -> None:
        """Load tokenizer.json of `assets_dir`.

        Raises:
            ConfigError: it is missing, broken, or has no ids for the tags.
        """
        self._tokenizer = Tokenizer(assets_dir / "tokenizer.json")
        for tag in (*_FRAME_TAGS, *sorted(CONTROL_TAGS)):
            self._tokenizer.id_of(tag)
        self._break_0_id = self._tokenizer.id_of("[break_0]")

    @property
    def unknown_id(self) -> int:
        """What stands for characters that the vocabulary has not."""
        return self._tokenizer.id_of("[UNK]")

    def code_prompt(self, text: str, prompt: str, sample_text: str, *, has_speaker: bool) -> tuple[int, ...]:
        """Ids of the prompt that has `text` spoken (`decorate_code_prompts` of ChatTTS).

        Args:
            text: a sentence, normalised or refined.
            prompt: control tags.
            sample_text: transcript of the reference recording whose codes follow the prompt, or "".
            has_speaker: whether a speaker's vector takes its place in the prompt.
        """
        return self._tokenizer.encode("".join(_code_parts(text, prompt, sample_text, has_speaker=has_speaker)))

    def places(self, text: str, prompt: str, sample_text: str, *, has_speaker: bool) -> SentencePlaces:
        """Where `text` and its words stand in the prompt that `code_prompt` makes of the same."""
        before, spoken, after = _code_parts(text, prompt, sample_text, has_speaker=has_speaker)
        starts = self._tokenizer.starts(before + spoken + after)
        first, end = bisect_left(starts, len(before)), bisect_left(starts, len(before + spoken))
        words, at = [], len(before)
        for number, piece in enumerate(split_tags(spoken)):
            for word in _WORD.finditer(piece) if number % 2 == 0 else ():
                place = bisect_left(starts, at + word.start()), bisect_left(starts, at + word.end())
                if place[0] < place[1]:  # else it begins within a token, that of the word before
                    words.append(WordPlace(word[0], place[0] - first, place[1] - first))
            at += len(piece)
        return SentencePlaces(first, end, tuple(words))

    def refine_prompt(self, text: str, prompt: str) -> tuple[int, ...]:
        """Ids of the prompt that has `text` refined (`decorate_text_prompts` of ChatTTS)."""
        return self._tokenizer.encode(f"[Sbreak]{text}[Pbreak]{prompt}")

    def refined_text(self, ids: Iterable[int]) -> str:
        """The text of refined token ids, less those from [break_0] on; "" where none are left."""
        return self._tokenizer.decode(token_id for token_id in ids if token_id < self._break_0_id)


def _code_parts(text: str, prompt: str, sample_text: str, *, has_speaker: bool) -> tuple[str, str, str]:
    """What stands before the sentence, the sentence, and what stands behind it."""
    for tag in _NOT_SPOKEN:
        text = text.replace(tag, "")
    voice = "[spk_emb]" if has_speaker else "[empty_spk]"
    return f"[Stts]{voice}{sample_text}{prompt}", text.strip(), "[Ptts]"
