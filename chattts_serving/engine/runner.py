"""What an engine needs of whatever computes its steps; the runners for the CPU and for the GPU are of this shape."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from chattts_serving.engine.batch import Batch, IntArray
from chattts_serving.engine.gpt_config import GPTConfig, TextHead
from chattts_serving.engine.kv_slots import Slot
from chattts_serving.engine.sequence import Sequence
from chattts_serving.errors import ConfigError

logger = logging.getLogger(__name__)

# Of a GPU's memory that is free beside the weights. The rest is for decoder and vocoder, which take up to 3 GB for the
# longest windows and start at the same time, for CUDA graphs, and for other programs.
MEMORY_SHARE = 0.5


class PendingStep(Protocol):
    """A step on its way."""

    def tokens(self) -> IntArray:
        """Wait for the step; the token that each lane drew, int32 [lanes, num_codebooks], of text in the first column.

        NO_TOKEN stands in a token where the logits are no finite numbers; this concerns no other sequence.
        """

    def looks(self) -> IntArray | None:
        """The token of its prompt that each of the runner's `text_heads` looked at most, int32 [lanes, heads].

        Of lanes that are `watched`, among the tokens that they say, the first of several; once `tokens` has returned.
        None where no lane is.
        """


@dataclass(frozen=True)
class DonePending:
    """A step that was computed when it was launched."""

    drawn: IntArray
    looked: IntArray | None

    def tokens(self) -> IntArray:
        """As `PendingStep`."""
        return self.drawn

    def looks(self) -> IntArray | None:
        """As `PendingStep`."""
        return self.looked


class Runner(Protocol):
    """The model with its cache.

    Attributes:
        config: sizes of the model.
        num_cache_tokens: tokens that the key-value cache holds.
        text_heads: whose looks steps note of sequences that are `watched`; none where it cannot.
        steps_ahead: steps that may be launched before the oldest is read. 0: `launch` computes before it returns.
            1: a step takes the tokens of the one before it from where they were drawn, so that it can start unread.
    """

    config: GPTConfig
    num_cache_tokens: int
    text_heads: tuple[TextHead, ...]
    steps_ahead: int

    def launch(self, batch: Batch) -> PendingStep:
        """Start a step that computes every uncached token of the sequences in `batch` and draws the next one of each.

        Of those that are not `joined` that is the last token that they drew.
        """

    def generated_hidden(self, sequence: Sequence, first: int, last: int) -> npt.NDArray[np.float32]:
        """The hidden states that its generated tokens `first` to `last` - 1, read by now, were drawn from.

        Returns:
            A copy on the host, [last - first, hidden].
        """

    def move_cache(self, source: Slot, target: Slot, num_tokens: int) -> None:
        """Copy the first `num_tokens` of slot `source` into slot `target`; the two do not overlap."""

    def warm_up(self) -> None:
        """Do what would make the first steps slow; called once, before the first step."""


def share_of_memory_gb(free_bytes: int, most_tokens: int, bytes_per_token: int) -> float:
    """A size for the cache of a GPU, 10**9 bytes: `most_tokens`, or MEMORY_SHARE of what is free where that is less."""
    return min(most_tokens * bytes_per_token, MEMORY_SHARE * free_bytes) / 1e9


def cache_capacity(kv_cache_gb: float, bytes_per_token: int) -> int:
    """Tokens that fit into a cache of `kv_cache_gb` * 10**9 bytes.

    Raises:
        ConfigError: `kv_cache_gb` is no number above 0.
    """
    if not 0 < kv_cache_gb < math.inf:
        raise ConfigError(f"kv_cache_gb is {kv_cache_gb}; allowed is a number above 0")
    num_tokens = int(kv_cache_gb * 1e9 / bytes_per_token)
    logger.info("key-value cache: %.2f GB, %d tokens", kv_cache_gb, num_tokens)
    return num_tokens
