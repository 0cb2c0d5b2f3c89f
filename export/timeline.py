"""Where the frames of a layer lie in time, and what each convolution keeps of them from one call to the next.

A sentence is rendered in one call or in several. A convolution that reaches `after` frames ahead gives its outputs that
much later, so each layer has a delay: what the convolutions before it waited for. It keeps the frames that its next
outputs still need, and so a chunk costs its own frames alone and gives the samples of the whole.

Two lengths say what a call is, so that Triton makes batches of calls of one kind alone:

- `state` [B, 1] begins a sentence; [B, S] is what the call before gave, and goes on with it.
- `mask` [B, F] waits for what follows; [B, F + 1], whose last is 0, has all frames rendered as if nothing did. What is
  rendered of the last `delay` frames is then exact only if nothing does follow, and is not kept; nor are the last
  `num_guessed` frames themselves.
"""

from __future__ import annotations

import numpy as np
import spox.opset.ai.onnx.v20 as op
from spox import Var

from export.convnext import Surroundings, cast


class Timeline(Surroundings):
    """The frames of one call: [B, L, C] at any layer, behind those that were kept."""

    def __init__(self, state: Var, mask: Var, num_frames: Var, *, most_past: int, num_guessed: int = 0) -> None:
        """Read the lengths, and the mask of the frames before.

        Args:
            state: float32 [B, 1 or S].
            mask: float32 [B, F or F + 1], 1 on real frames.
            num_frames: int64 [1], F.
            most_past: frames before these that any layer needs the mask of.
            num_guessed: of the frames, how many at the end are guesses where the mask is one longer.
        """
        self._goes_on = op.min([op.sub(_length(state), _integers(1)), _integers(1)])  # 0 or 1
        self._begins = op.sub(_integers(1), self._goes_on)
        self._closes = op.clip(op.sub(_length(mask), num_frames), _integer(0), _integer(1))
        self._state, self._offset = state, 1  # behind what begins a sentence
        self._num_guessed, self._delay = num_guessed, 0
        self._kept: list[Var] = []
        self._end = _between(mask, num_frames, op.add(num_frames, _integers(1)))
        mask = op.unsqueeze(_between(mask, _integers(0), num_frames), op.const([2]))
        nothing = _zeros(mask, op.mul(self._begins, _integers(most_past)), 1)
        self._mask = op.concat([nothing, self._past(mask, most_past, 1), mask], axis=1)
        self._most_past, self._num_frames = most_past, num_frames
        self._keep(self._mask, most_past, 1)

    def mask(self, before: int = 0, after: int = 0) -> Var:
        """float32 [B, L, 1]: of this layer's frames, and of those that `around` puts around them."""
        kept = op.mul(self._goes_on, _integers(self._delay + before + after))
        lead = op.mul(self._begins, _integers(before))
        start = op.sub(op.sub(_integers(self._most_past), kept), lead)
        waiting = op.mul(op.sub(_integers(1), self._closes), _integers(self._delay))
        mask = _between(self._mask, start, op.sub(op.add(_integers(self._most_past), self._num_frames), waiting))
        return op.concat([mask, _zeros(mask, op.mul(self._closes, _integers(after)), 1)], axis=1) if after else mask

    def mask_for_the_next_model(self) -> Var:
        """float32 [B, L or L + 1]: the mask of this layer's frames, one longer where this call's is."""
        return op.concat([op.squeeze(self.mask(), op.const([2])), self._end], axis=1)

    def around(self, frames: Var, before: int, after: int) -> Var:
        """`frames` with what the next outputs need before and after them, 0 where they are not real.

        [B, L, C] -> [B, L', C], of which a kernel over `before` + 1 + `after` frames makes L' - before - after.
        """
        *_, channels = frames.unwrap_tensor().shape or (None,)
        if not isinstance(channels, int):
            raise TypeError(f"frames have no known width: {frames.type}")
        frames = op.mul(frames, cast(self.mask(), frames.unwrap_tensor().dtype.type))
        lead = _zeros(frames, op.mul(self._begins, _integers(before)), channels)
        known = op.concat([lead, self._past(frames, before + after, channels), frames], axis=1)
        self._keep(known, before + after, channels)
        self._delay += after
        return op.concat([known, _zeros(frames, op.mul(self._closes, _integers(after)), channels)], axis=1)

    def next_state(self) -> Var:
        """float32 [B, S]: what the call after this one gets."""
        return op.concat([_between(self._state, _integers(0), _integers(1)), *self._kept], axis=1)

    def _past(self, like: Var, number: int, channels: int) -> Var:
        """The next `number` frames of the state, in the type of `like`; none where a sentence begins."""
        start, self._offset = self._offset, self._offset + number * channels
        values = _between(self._state, _integers(start), _integers(self._offset))
        shape = op.concat([_batch(like), op.mul(self._goes_on, _integers(number)), _integers(channels)], axis=0)
        return cast(op.reshape(values, shape), like.unwrap_tensor().dtype.type)

    def _keep(self, known: Var, number: int, channels: int) -> None:
        """Keep the last `number` frames that are no guesses; those before the first frame are 0."""
        guessed = op.mul(self._closes, _integers(self._delay + self._num_guessed))
        end = op.max([op.sub(_length(known), guessed), _integers(0)])
        start = op.max([op.sub(end, _integers(number)), _integers(0)])
        missing = op.sub(_integers(number), op.sub(end, start))
        kept = op.concat([_zeros(known, missing, channels), _between(known, start, end)], axis=1)
        self._kept.append(cast(op.reshape(kept, op.const([0, number * channels])), np.float32))


def _between(values: Var, start: Var, end: Var) -> Var:
    """`values[:, start:end]`."""
    return op.slice(values, start, end, _integers(1))


def _zeros(like: Var, number: Var, channels: int) -> Var:
    """[B, number, channels], of the batch and type of `like`."""
    shape = op.concat([_batch(like), number, _integers(channels)], axis=0)
    return op.expand(op.const(np.zeros(1, like.unwrap_tensor().dtype)), shape)


def _batch(values: Var) -> Var:
    return op.shape(values, start=0, end=1)


def _length(values: Var) -> Var:
    return op.shape(values, start=1, end=2)


def _integers(value: int) -> Var:
    return op.const(np.array([value], np.int64))


def _integer(value: int) -> Var:
    return op.const(np.int64(value))
