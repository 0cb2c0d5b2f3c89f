"""Text to token ids and back, as transformers' BertTokenizerFast does it, without transformers."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer as RustTokenizer

from chattts_serving.errors import ConfigError

# transformers' `clean_up_tokenization`, in its order; ChatTTS's tokenizer configuration asks for it. What is decoded is
# tokenised again, and "do n't" and "don't" are not the same tokens.
_CLEAN_UPS = (
    *((f" {mark}", mark) for mark in (".", "?", "!", ",")),
    (" ' ", "'"),
    *((f" {ending}", ending) for ending in ("n't", "'m", "'s", "'ve", "'re")),
)


class Tokenizer:
    """The checkpoint's vocabulary. Threads may share one."""

    def __init__(self, path: Path) -> None:
        """Read `tokenizer.json`.

        Raises:
            ConfigError: the file is missing or broken.
        """
        try:
            self._tokenizer = RustTokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises bare Exception
            raise ConfigError(f"cannot read {path}: {error}; run python -m export") from error
        self._tokenizer.no_truncation()  # the official file cuts and pads every text to 256 tokens
        self._tokenizer.no_padding()

    def encode(self, text: str) -> tuple[int, ...]:
        """The ids of `text`; tags and other special tokens in it become one id each, and none are added."""
        return tuple(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def starts(self, text: str) -> tuple[int, ...]:
        """The character of `text` at which each of the tokens begins that `encode` makes of it."""
        return tuple(start for start, _ in self._tokenizer.encode(text, add_special_tokens=False).offsets)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`, special tokens included, as `BertTokenizerFast.decode` writes it."""
        text = str(self._tokenizer.decode(list(ids), skip_special_tokens=False))
        for spaced, closed in _CLEAN_UPS:
            text = text.replace(spaced, closed)
        return text

    def id_of(self, token: str) -> int:
        """The id of a special token.

        Raises:
            ConfigError: the vocabulary has no such token.
        """
        token_id: int | None = self._tokenizer.token_to_id(token)
        if token_id is None:
            raise ConfigError(f"the tokenizer has no token {token}; it is not one of a ChatTTS checkpoint")
        return token_id
