"""How the sentences of one request share one row of tokens on their way through decoder and vocoder.

Sentences lie one after the other with a masked pause between them; the row is padded to one of a few lengths, so that
Triton's dynamic batcher, which groups equal shapes only, finds requests to group.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from chattts_serving.audio import num_samples

PAUSE_TOKENS = 12  # 256 ms of silence between sentences; at least 3, the reach of one convolution (6 mel frames)

# 16, 20, 24, 28, 32, 40, ... 3,584: at most a quarter is added to rows of 16 and more, and there are few shapes.
_BUCKETS = tuple((4 + quarter) << power for power in range(2, 10) for quarter in range(4))
_LARGEST_STEP = 1_024  # past the last bucket, rows are padded to a multiple of this


@dataclass(frozen=True)
class TokenRow:
    """One row for the decoder.

    Attributes:
        hidden: float32 [T, hidden], 0 where `mask` is.
        mask: float32 [T], 1 on audio tokens, 0 on pauses and padding.
        num_samples: samples of audio up to the end of the last sentence; the rest is padding.
    """

    hidden: npt.NDArray[np.float32]
    mask: npt.NDArray[np.float32]
    num_samples: int


def bucket_length(num_tokens: int) -> int:
    """The length that a row of `num_tokens` tokens is padded to."""
    place = bisect.bisect_left(_BUCKETS, num_tokens)
    if place < len(_BUCKETS):
        return _BUCKETS[place]
    return -(-num_tokens // _LARGEST_STEP) * _LARGEST_STEP


def lay_out(sentences: Sequence[npt.NDArray[np.float32]]) -> TokenRow:
    """Put the hidden states of sentences, each float32 [num_tokens >= 1, hidden], into one padded row."""
    starts: list[int] = []
    end = 0
    for sentence in sentences:
        starts.append(end + PAUSE_TOKENS if starts else 0)
        end = starts[-1] + len(sentence)
    length = bucket_length(end)
    hidden = np.zeros((length, sentences[0].shape[1]), np.float32)
    mask = np.zeros(length, np.float32)
    for start, sentence in zip(starts, sentences, strict=True):
        hidden[start : start + len(sentence)] = sentence
        mask[start : start + len(sentence)] = 1
    return TokenRow(hidden, mask, num_samples(end))
