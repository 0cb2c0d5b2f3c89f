"""The vocabulary of the demo checkpoint: single characters, and every word that the corpus has."""

from __future__ import annotations

import string

from export.synthetic_tokenizer import BERT_TOKENS, CHATTTS_TOKENS
from training.sentences import vocabulary

_CHARACTERS = [chr(code) for code in range(33, 127) if chr(code) not in string.ascii_uppercase]
_CONTINUATIONS = [f"##{character}" for character in string.ascii_lowercase + string.digits]

VOCABULARY = list(dict.fromkeys([*BERT_TOKENS, *_CHARACTERS, *_CONTINUATIONS, *vocabulary()]))
IDS = {token: number for number, token in enumerate([*VOCABULARY, *CHATTTS_TOKENS])}
