"""One request from its prompts to its sound: chunk after chunk is waited for, made by `speech_chunk`, and joined.

What calls models is handed in, so that nothing here needs a server.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from chattts_serving.audio import SAMPLE_RATE
from chattts_serving.errors import CancelledError, DeadlineExceededError, ServingError
from chattts_serving.request import deadline_of
from chattts_serving.speech.reader import CallModel, Reader, Values
from chattts_serving.speech.spoken_words import words_json
from chattts_serving.speech.windows import Chunk, ReadingPlan, sentences_json

CANCEL_POLL_S = 0.1  # between two looks whether the caller of a stream has gone; one takes 16 us (measured)
PASSED_ON = ("used_speaker", "warning")  # outputs of text_frontend that each chunk of a stream has
DEADLINE_GRACE_S = 0.1  # past a deadline, which the engine keeps; decoder and vocoder know none

# What decoder and vocoder keep of a sentence, at its beginning; each call has them as inputs and gives the next ones.
BEGINNING = {name: np.zeros(1, np.float32) for name in ("decoder_state", "vocoder_state")}
NEXT = "next_{}"

Samples = npt.NDArray[np.float32]
Span = Callable[[str], AbstractContextManager[str]]
"""Of a trace: named, and as long as its block, which gets its traceparent or ""."""


@dataclass(frozen=True)
class Models:
    """How one request reaches the models.

    Attributes:
        call: calls one.
        reader: waits for chunks.
        span: where a trace has the time in which chunks are waited for.
        held: is told of states that are kept from chunk to chunk: how many more, and how many more bytes.
    """

    call: CallModel
    reader: Reader
    span: Span = lambda _: nullcontext("")
    held: Callable[[int, int], None] = lambda *_: None


@dataclass(frozen=True, eq=False)
class Heard:
    """One chunk of speech.

    Attributes:
        audio: mono samples, float32 [n], silence before and after a sentence included.
        chunk: what they are.
    """

    audio: Samples
    chunk: Chunk


class SpeechSession:
    """One request that is read."""

    def __init__(self, models: Models, plan: ReadingPlan, prepared: Values) -> None:
        """Nothing is called yet.

        Args:
            models: that speak.
            plan: how the audio is read.
            prepared: `generation` and `speaker_embedding`, as text_frontend writes them.
        """
        self._models = models
        self._states: Values = BEGINNING
        self.deadline = deadline_of(str(prepared["generation"]))
        self._stream_id = secrets.token_hex(16)
        self._opening = {name: prepared[name] for name in ("generation", "speaker_embedding")}
        self._opening["reading"] = plan.to_json()
        self._is_open = asyncio.Event()

    async def chunks(self) -> AsyncIterator[Heard]:
        """The chunks, in order; the last one says `is_final`.

        Raises:
            ServingError: the request failed.
        """
        faded = np.zeros(0, np.float32)  # what the last window made of this one's beginning
        with self._models.span("gpt_decoder") as traced:
            opening = {**self._opening, "traceparent": traced} if traced else self._opening
            await self._models.reader.first(self._stream_id, opening, self._is_open.set)
        while True:
            outputs = await self._models.call(
                "speech_chunk",
                {**self._states, "stream_id": self._stream_id},
                ["waveform", "chunk", *map(NEXT.format, BEGINNING)],
            )
            chunk = Chunk.from_json(str(outputs["chunk"]))
            self._keep({name: outputs[NEXT.format(name)] for name in BEGINNING} if chunk.keeps_state else BEGINNING)
            waveform = np.asarray(outputs["waveform"])
            end = chunk.first_sample + chunk.num_samples
            audio = cross_faded(faded, waveform[chunk.first_sample : end])
            faded = waveform[end : end + chunk.fade_samples]
            yield Heard(np.pad(audio, (chunk.lead_samples, chunk.pause_samples)), chunk)
            if chunk.is_final:
                return
            with self._models.span("gpt_decoder"):
                await self._models.reader.next(self._stream_id)

    async def extend(self, generation: str) -> None:
        """Have further sentences spoken, in a request whose text goes on, as text_frontend writes them.

        Raises:
            ServingError: the server fails or ends. Where the request has failed, who reads it hears of that.
        """
        await self._is_open.wait()  # calls overtake each other, and what nobody knows is not extended
        await self._models.call("gpt_decoder", {"stream_id": self._stream_id, "more": generation}, ["chunk"])

    def let_go(self) -> None:
        """Nobody asks for chunks any more: keep no state."""
        self._keep(BEGINNING)

    def _keep(self, states: Values) -> None:
        """Keep `states` for the next chunk, in place of those before."""
        more = (states is not BEGINNING) - (self._states is not BEGINNING)
        self._models.held(more, _num_bytes(states) - _num_bytes(self._states))
        self._states = states

    async def cancel(self) -> None:
        """Have the engine drop the request, if it is open; its next chunk is an error then."""
        with suppress(ServingError):  # what ended the request counts, and its lease ends it in any case
            await self._models.call(
                "gpt_decoder", {"stream_id": self._stream_id, "cancel": np.array([True])}, ["chunk"]
            )


def cross_faded(old: Samples, new: Samples) -> Samples:
    """`new` with its beginning faded in over `old`, the same stretch of sound, by a raised cosine."""
    length = min(len(old), len(new))
    if not length:
        return new
    rising = np.sin(0.5 * np.pi * (np.arange(length, dtype=np.float32) + 0.5) / length) ** 2
    mixed = new.copy()
    mixed[:length] = rising * new[:length] + (1 - rising) * old[:length]
    return mixed


def outputs_of(heard: Sequence[Heard], warning: str = "") -> dict[str, npt.NDArray[Any] | str]:
    """The contract's outputs for `heard`, one chunk of a stream or all chunks of a request."""
    chunks = [one.chunk for one in heard]
    return {
        "audio": np.concatenate([one.audio for one in heard]),
        "sample_rate": np.array([SAMPLE_RATE], np.int32),
        "used_seed": np.array([chunks[-1].seed], np.int64),
        "refined_text": "\n".join(text for chunk in chunks for text in chunk.texts),
        "num_tokens": np.array([sum(chunk.num_tokens for chunk in chunks)], np.int32),
        "sentences": sentences_json(tuple(sentence for chunk in chunks for sentence in chunk.sentences)),
        "words": words_json(tuple(word for chunk in chunks for word in chunk.words)),
        "warning": warning,
    }


async def speak(models: Models, plan: ReadingPlan, prepared: Values) -> Values:
    """The whole speech of a request, as the contract's outputs; `prepared` may have a `warning` of the text.

    Raises:
        ServingError: the request failed.
    """
    session = SpeechSession(models, plan, prepared)
    try:
        heard = await asyncio.wait_for(_all(session), _seconds_left(session))
        return outputs_of(heard, _joined(str(prepared.get("warning", "")), *(one.chunk.warning for one in heard)))
    except asyncio.TimeoutError:
        await session.cancel()
        raise _deadline_exceeded() from None
    except BaseException:
        await session.cancel()
        raise
    finally:
        session.let_go()


async def stream(
    models: Models,
    plan: ReadingPlan,
    inputs: Values,
    send: Callable[[Values], None],
    is_cancelled: Callable[[], bool],
) -> None:
    """Speak a request and send every chunk of it.

    Args:
        models: that speak.
        plan: how the audio is read.
        inputs: the request's inputs, as text_frontend takes them.
        send: sends one chunk's outputs.
        is_cancelled: whether the caller has gone; asked every CANCEL_POLL_S seconds.

    Raises:
        ServingError: the request failed, or was cancelled.
    """
    prepared = await models.call("text_frontend", inputs, ["generation", "speaker_embedding", *PASSED_ON])
    if is_cancelled():
        raise CancelledError("the caller has gone")
    session = SpeechSession(models, plan, prepared)
    sending = asyncio.create_task(send_all(session, {name: prepared[name] for name in PASSED_ON}, send))
    await watched(session, sending, is_cancelled)


def _joined(*warnings: str) -> str:
    """Each of `warnings` once."""
    return "; ".join(dict.fromkeys(filter(None, warnings)))


def _num_bytes(states: Values) -> int:
    """What is kept of a sentence; nothing of its beginning."""
    return 0 if states is BEGINNING else sum(np.asarray(state).nbytes for state in states.values())


async def _all(session: SpeechSession) -> list[Heard]:
    return [heard async for heard in session.chunks()]


def _seconds_left(session: SpeechSession) -> float | None:
    return None if session.deadline is None else session.deadline + DEADLINE_GRACE_S - time.monotonic()


def _deadline_exceeded() -> DeadlineExceededError:
    return DeadlineExceededError("deadline exceeded before the audio was complete")


async def watched(session: SpeechSession, sending: asyncio.Task[None], is_cancelled: Callable[[], bool]) -> None:
    """Wait for `sending`, which reads `session`; what ends it early gives the request up. Its state goes in any case.

    Raises:
        CancelledError: the caller has gone.
        DeadlineExceededError: the deadline has passed.
        ServingError: the request failed.
    """
    try:
        await _ended(session, sending, is_cancelled)
    except BaseException:
        await give_up(session, sending)
        raise
    finally:
        session.let_go()


async def _ended(session: SpeechSession, sending: asyncio.Task[None], is_cancelled: Callable[[], bool]) -> None:
    while not sending.done():
        await asyncio.wait([sending], timeout=CANCEL_POLL_S)
        if sending.done():
            break
        if is_cancelled():
            raise CancelledError("the caller has gone")
        left = _seconds_left(session)
        if left is not None and left <= 0:
            sending.cancel()  # whatever it waits for; the engine drops the request by itself
            raise _deadline_exceeded()
    sending.result()


async def give_up(session: SpeechSession, sending: asyncio.Task[None]) -> None:
    """Cancel `session` until `sending` has ended: a cancel may overtake the call that opens the request."""
    while True:
        await session.cancel()
        await asyncio.wait([sending], timeout=CANCEL_POLL_S)
        if sending.done():
            if not sending.cancelled():
                sending.exception()  # taken, or asyncio would log it
            return


async def send_all(session: SpeechSession, passed_on: Values, send: Callable[[Values], None]) -> None:
    """Send every chunk, with what `passed_on` has then."""
    index = 0
    warnings: list[str] = []
    async for heard in session.chunks():
        warnings.append(heard.chunk.warning)
        outputs: dict[str, Any] = {**passed_on, **outputs_of([heard], _joined(str(passed_on["warning"]), *warnings))}
        outputs["chunk_index"] = np.array([index], np.int32)
        outputs["is_final"] = np.array([heard.chunk.is_final])
        send(outputs)
        index += 1
