"""What the soak's callers do: every kind of call, and how each may end.

Each call is one coroutine that returns how it ended, or raises the client's error. `Caller.outcomes` runs one and
judges it; whatever happens, there is an outcome.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import tritonclient.grpc.aio
import tritonclient.http.aio
from chattts_client import AsyncTTSClient, Chunk, Speech, SynthesisOptions, TTSError, joined
from chattts_client.errors import mapped_errors
from chattts_client.options import Mode
from chattts_client.transport import ProtocolName
from tritonclient.utils import np_to_triton_dtype

from bench.load import kind_of
from chattts_serving.audio import num_samples
from chattts_serving.launcher.tritonserver import ROOT
from chattts_serving.request import PRIORITIES
from tests.integration.test_bad_input import BAD
from tests.integration.test_bad_input import text as text_tensor
from tests.load import texts
from tests.soak import answers
from tests.soak.killed import HEARD, STREAMS
from tests.soak.texts import CONTROL, CONTROL_OPTIONS, CONTROL_TOKENS, ENDLESS, ENDLESS_OPTIONS

ANSWERED, LEFT, KILLED = "answered", "left", "killed"
NO_ANSWER, WRONG = "NO ANSWER", "WRONG"  # endings that nobody may have
FULL, LATE, REFUSED = "UNAVAILABLE", "DEADLINE_EXCEEDED", "INVALID_ARGUMENT"
PATIENCE_S = 30.0  # past the client's timeout; who has no answer by then gets none
DEADLINES_MS = (5, 20, 60, 150, 400)
BURST_TOKENS = 200
LEFT_WHOLE_S = 0.2  # after which a whole answer is left, at most
CLONED_TEXT = "This is how I speak."
SHORT_TEXT = "This one is short."
BAD_STREAMS: tuple[dict[str, Any], ...] = (
    {"text": ""},
    {"text": "hello [laugh_9] there"},
    {"speaker": "Bob"},
    {"temperature": 0.0},
    {"top_k": 627},
    {"seed": -1},
    {"language": "fr"},
    {"max_new_tokens": 2_049},
    {"speaker_sample": "nonsense"},
)


class WrongAnswerError(Exception):
    """An answer that is not what the contract says."""


@dataclass(frozen=True)
class Outcome:
    """What became of one call.

    Attributes:
        kind: of the call.
        ending: ANSWERED, LEFT, KILLED, the kind of an error, NO_ANSWER or WRONG.
        seconds: it took.
        fault: why it should not have ended so; None where it was expected.
    """

    kind: str
    ending: str
    seconds: float
    fault: str | None


@dataclass(frozen=True)
class Settings:
    """What is sent.

    Attributes:
        grpc_url, http_url: "HOST:PORT".
        burst: requests at once that are more than the server takes.
        tokens: most audio tokens of a sentence.
        timeout_s: of a request.
    """

    grpc_url: str
    http_url: str
    burst: int
    tokens: int
    timeout_s: float

    def url(self, protocol: ProtocolName) -> str:
        """The address for `protocol`."""
        return self.grpc_url if protocol == "grpc" else self.http_url


class Caller:
    """Makes calls of every kind, with connections that last from `open` to `close`."""

    def __init__(self, settings: Settings, control: Speech, rng: random.Random) -> None:
        """`control` is what the control sentence was at first."""
        self._settings = settings
        self._control_speech = control
        self._rng = rng
        self._texts = {
            length: texts.requests({length: 1.0}, random.Random(rng.randrange(2**31))) for length in texts.LENGTHS
        }

    def open(self) -> None:
        """Make clients, which connect when they are first used."""
        timeout = self._settings.timeout_s
        protocols: tuple[ProtocolName, ...] = ("grpc", "http")
        self._clients = {one: AsyncTTSClient(self._settings.url(one), one, timeout=timeout) for one in protocols}

    async def close(self) -> None:
        """Hang up."""
        for client in self._clients.values():
            await client.close()

    async def outcomes(self, kind: str) -> list[Outcome]:
        """Make a call of `kind`; what became of it (and of each one of a burst)."""
        if kind == "burst":
            burst = (self._outcome("one of a burst") for _ in range(self._settings.burst))
            return list(await asyncio.gather(*burst))
        return [await self._outcome(kind)]

    async def _outcome(self, kind: str) -> Outcome:
        call, expected = KINDS[kind]
        started = time.perf_counter()
        fault = None
        try:
            ending = await asyncio.wait_for(call(self), self._settings.timeout_s + PATIENCE_S)
        except TTSError as error:  # before TimeoutError: one of them is that, too
            ending, fault = kind_of(error), str(error)
        except (WrongAnswerError, AssertionError) as error:
            ending, fault = WRONG, str(error)
        except (TimeoutError, asyncio.TimeoutError):  # two classes until Python 3.11
            ending, fault = NO_ANSWER, "no answer, and no error of the client either"
        except Exception as error:  # the soak's own fault; the run goes on, and fails
            ending, fault = WRONG, repr(error)
        if ending in expected:
            fault = None
        elif fault is None:
            fault = f"{ending} was not expected"
        return Outcome(kind, ending, time.perf_counter() - started, fault)

    # Whole answers and streams that are heard to their end

    async def _whole(self, protocol: ProtocolName, length: str = "short", **options: Any) -> str:
        said, asked = self._asked(length, options)
        _check(answers.fault_of(await self._clients[protocol].synthesize(said, asked), most=self._settings.tokens))
        return ANSWERED

    async def _stream(self, protocol: ProtocolName, mode: Mode, length: str = "medium", **options: Any) -> str:
        said, asked = self._asked(length, options)
        chunks = await _heard(self._clients[protocol], said, asked, mode)
        _check(answers.fault_of_chunks(chunks, most=self._settings.tokens))
        return ANSWERED

    def _asked(self, length: str, options: Mapping[str, Any]) -> tuple[str, SynthesisOptions]:
        request = next(self._texts[length])
        most = self._settings.tokens
        # The least that a sentence takes: models of random weights end sooner, again and again.
        limits = {"min_new_tokens": min(8, most), "max_new_tokens": most}
        given = {"seed": request.seed, "skip_refine": True, **limits, **options}
        return request.text, SynthesisOptions(**given)

    async def _refine_only(self) -> str:
        said, asked = self._asked("short", {"skip_refine": None, "refine_only": True, "refine_max_new_tokens": 48})
        speech = await self._clients["grpc"].synthesize(said, asked)
        if len(speech.audio) or speech.num_tokens or not speech.refined_text:
            raise WrongAnswerError("an answer in text alone has audio, or no text")
        return ANSWERED

    async def _cloned(self) -> str:
        """A recording to its voice, and a sentence in that."""
        noise = np.random.default_rng(self._rng.randrange(2**31)).normal(0, 0.1, 24_000)
        client = self._clients[self._protocol()]
        voice = await client.clone(noise.astype(np.float32), 24_000)
        return await self._whole("grpc", speaker_sample=voice, sample_text=CLONED_TEXT)

    async def _library(self) -> str:
        voices = [voice.name for voice in await self._clients["grpc"].voices()]
        return await self._whole(self._protocol(), speaker=self._rng.choice(voices))

    async def _control(self, protocol: ProtocolName) -> str:
        """Whole, or as a stream; beside others in the batch."""
        client = self._clients[protocol]
        if self._rng.random() < 0.5:
            speech = await client.synthesize(CONTROL, CONTROL_OPTIONS)
        else:
            speech = joined(await _heard(client, CONTROL, CONTROL_OPTIONS, "exact"))
        _check(answers.fault_of(speech, most=CONTROL_TOKENS))
        _check(answers.difference(speech, self._control_speech, close=answers.CLOSE))
        return ANSWERED

    # Those that get an error

    async def _deadline(self, protocol: ProtocolName) -> str:
        return await self._whole(protocol, "medium", deadline_ms=self._rng.choice(DEADLINES_MS))

    async def _deadline_stream(self, protocol: ProtocolName) -> str:
        return await self._stream(protocol, "exact", deadline_ms=self._rng.choice(DEADLINES_MS))

    async def _bad(self, protocol: ProtocolName) -> str:
        name, array = self._rng.choice(BAD)
        library = tritonclient.grpc.aio if protocol == "grpc" else tritonclient.http.aio
        tensors = []
        for key, value in {"text": text_tensor("hello"), name: array}.items():
            tensors.append(library.InferInput(key, value.shape, np_to_triton_dtype(value.dtype)))
            tensors[-1].set_data_from_numpy(value)
        url = self._settings.url(protocol)
        async with library.InferenceServerClient(url) as client:
            with mapped_errors(url):
                await client.infer("chattts", tensors)
        return ANSWERED

    async def _bad_stream(self, protocol: ProtocolName) -> str:
        options = dict(self._rng.choice(BAD_STREAMS))
        await _heard(self._clients[protocol], options.pop("text", "hello"), SynthesisOptions(**options), "exact")
        return ANSWERED

    async def _one_of_a_burst(self) -> str:
        asked = SynthesisOptions(
            seed=self._rng.randrange(2**31),
            skip_refine=True,
            min_new_tokens=BURST_TOKENS,
            max_new_tokens=BURST_TOKENS,
            priority=self._rng.choice(PRIORITIES),
        )
        chunks = await _heard(self._clients["grpc"], SHORT_TEXT, asked, "exact")
        _check(answers.fault_of_chunks(chunks, least=BURST_TOKENS, most=BURST_TOKENS))
        return ANSWERED

    # Those that leave

    async def _left_stream(self, protocol: ProtocolName) -> str:
        """After the first or the second chunk; over HTTP the connection is dropped."""
        mode: Mode = self._rng.choice(("exact", "low_latency"))
        to_hear = self._rng.randint(1, 2)
        async with self._clients[protocol].stream(ENDLESS, ENDLESS_OPTIONS, mode=mode) as chunks:
            async for chunk in chunks:
                to_hear -= 1
                if not np.isfinite(chunk.audio).all():
                    raise WrongAnswerError("a sample is not finite")
                if not to_hear:
                    break
        return LEFT

    async def _left_whole(self, protocol: ProtocolName) -> str:
        """The server speaks on: an ensemble is not told."""
        said, asked = self._asked("short", {})
        speaking = asyncio.create_task(self._clients[protocol].synthesize(said, asked))
        await asyncio.wait([speaking], timeout=self._rng.uniform(0, LEFT_WHOLE_S))
        if not speaking.done():
            speaking.cancel()
            with suppress(asyncio.CancelledError):
                await speaking
            return LEFT
        _check(answers.fault_of(speaking.result(), most=self._settings.tokens))
        return ANSWERED

    async def _killed(self) -> str:
        """A process that reads streams over both protocols, all of which have begun when it is killed."""
        process = await _started("tests.soak.killed", self._settings.grpc_url, self._settings.http_url)
        try:
            lines = [(await process.stdout.readline()).decode().strip() for _ in STREAMS]
        finally:
            process.kill()
            await process.wait()
        if not set(lines) <= {HEARD, FULL}:
            raise WrongAnswerError(f"the streams of a client that was then killed began with {lines}")
        return KILLED

    async def _command_line(self) -> str:
        """`chattts` in a process of its own."""
        protocol, tokens = self._protocol(), self._settings.tokens
        options = [f"--min-new-tokens={tokens}", f"--max-new-tokens={tokens}", "--seed=3", "--skip-refine"]
        where = [f"--protocol={protocol}", f"--url={self._settings.url(protocol)}"]
        process = await _started("chattts_client", SHORT_TEXT, "-o", "-", "--stream", *where, *options)
        try:
            samples, words = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
        if process.returncode and b"overloaded" in words:
            return FULL
        if process.returncode or len(samples) != 2 * num_samples(tokens):
            raise WrongAnswerError(f"exit status {process.returncode}, {len(samples)} bytes, {words.decode().strip()}")
        return ANSWERED

    def _protocol(self) -> ProtocolName:
        return self._rng.choice(("grpc", "http"))


async def _heard(client: AsyncTTSClient, text: str, options: SynthesisOptions, mode: Mode) -> list[Chunk]:
    async with client.stream(text, options, mode=mode) as chunks:
        return [chunk async for chunk in chunks]


async def _started(module: str, *arguments: str) -> Any:
    """A Python process that runs `module`."""
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", module, *arguments, cwd=ROOT, stdout=pipe, stderr=pipe
    )


def _check(fault: str | None) -> None:
    if fault is not None:
        raise WrongAnswerError(fault)


HEARD_OR_FULL = frozenset({ANSWERED, FULL})
Call = Callable[[Caller], Awaitable[str]]
# Name -> the call, and how it may end. A server that is full says so to anybody, while there is a burst.
KINDS: dict[str, tuple[Call, frozenset[str]]] = {
    "whole grpc": (lambda c: c._whole("grpc"), HEARD_OR_FULL),
    "whole http": (lambda c: c._whole("http"), HEARD_OR_FULL),
    "stream grpc": (lambda c: c._stream("grpc", "exact"), HEARD_OR_FULL),
    "stream http": (lambda c: c._stream("http", "exact"), HEARD_OR_FULL),
    "low latency grpc": (lambda c: c._stream("grpc", "low_latency"), HEARD_OR_FULL),
    "low latency http": (lambda c: c._stream("http", "low_latency"), HEARD_OR_FULL),
    "batch grpc": (lambda c: c._whole("grpc", "medium", priority="batch"), HEARD_OR_FULL),
    "batch stream http": (lambda c: c._stream("http", "exact", priority="batch"), HEARD_OR_FULL),
    "long whole": (lambda c: c._whole("grpc", "long"), HEARD_OR_FULL),
    "long stream": (lambda c: c._stream("http", "exact", "long", priority="batch"), HEARD_OR_FULL),
    "refine": (lambda c: c._whole(c._protocol(), skip_refine=None, refine_max_new_tokens=48), HEARD_OR_FULL),
    "refine only": (Caller._refine_only, HEARD_OR_FULL),
    "clone": (Caller._cloned, HEARD_OR_FULL),
    "voice": (Caller._library, HEARD_OR_FULL),
    "control grpc": (lambda c: c._control("grpc"), HEARD_OR_FULL),
    "control http": (lambda c: c._control("http"), HEARD_OR_FULL),
    "deadline grpc": (lambda c: c._deadline("grpc"), HEARD_OR_FULL | {LATE}),
    "deadline http": (lambda c: c._deadline("http"), HEARD_OR_FULL | {LATE}),
    "deadline stream grpc": (lambda c: c._deadline_stream("grpc"), HEARD_OR_FULL | {LATE}),
    "deadline stream http": (lambda c: c._deadline_stream("http"), HEARD_OR_FULL | {LATE}),
    "bad grpc": (lambda c: c._bad("grpc"), frozenset({REFUSED, FULL})),
    "bad http": (lambda c: c._bad("http"), frozenset({REFUSED, FULL})),
    "bad stream grpc": (lambda c: c._bad_stream("grpc"), frozenset({REFUSED, FULL})),
    "bad stream http": (lambda c: c._bad_stream("http"), frozenset({REFUSED, FULL})),
    "left stream grpc": (lambda c: c._left_stream("grpc"), frozenset({LEFT, FULL})),
    "left stream http": (lambda c: c._left_stream("http"), frozenset({LEFT, FULL})),
    "left whole grpc": (lambda c: c._left_whole("grpc"), HEARD_OR_FULL | {LEFT}),
    "left whole http": (lambda c: c._left_whole("http"), HEARD_OR_FULL | {LEFT}),
    "killed client": (Caller._killed, frozenset({KILLED})),
    "command line": (Caller._command_line, HEARD_OR_FULL),
    "one of a burst": (Caller._one_of_a_burst, HEARD_OR_FULL),
}
