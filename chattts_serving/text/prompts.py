"""The prompts of both passes, and the text that the first one made: ChatTTS's `Speaker.decorate_*_prompts`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from chattts_serving.text.tags import CONTROL_TAGS
from chattts_serving.text.tokenizer import Tokenizer

_FRAME_TAGS = ("[Stts]", "[Ptts]", "[spk_emb]", "[empty_spk]", "[Sbreak]", "[Pbreak]", "[break_0]")
_NOT_SPOKEN = ("[Stts]", "[spk_emb]", "[empty_spk]")  # refined text may hold them; a second one misleads the model


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

    def code_prompt(self, text: str, prompt: str, sample_text: str, *, has_speaker: bool) -> tuple[int, ...]:
        """Ids of the prompt that has `text` spoken (`decorate_code_prompts` of ChatTTS).

        Args:
            text: a sentence, normalised or refined.
            prompt: control tags.
            sample_text: transcript of the reference recording whose codes follow the prompt, or "".
            has_speaker: whether a speaker's vector takes its place in the prompt.
        """
        voice = "[spk_emb]" if has_speaker else "[empty_spk]"
        for tag in _NOT_SPOKEN:
            text = text.replace(tag, "")
        return self._tokenizer.encode(f"[Stts]{voice}{sample_text}{prompt}{text.strip()}[Ptts]")

    def refine_prompt(self, text: str, prompt: str) -> tuple[int, ...]:
        """Ids of the prompt that has `text` refined (`decorate_text_prompts` of ChatTTS)."""
        return self._tokenizer.encode(f"[Sbreak]{text}[Pbreak]{prompt}")

    def refined_text(self, ids: Iterable[int]) -> str:
        """The text of refined token ids, less those from [break_0] on; "" where none are left."""
        return self._tokenizer.decode(token_id for token_id in ids if token_id < self._break_0_id)
