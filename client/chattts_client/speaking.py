"""Texts of the command line, several at once: spoken, written, reported."""

from __future__ import annotations

import asyncio
import importlib
import json
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from chattts_client import subtitles
from chattts_client.audio_file import WAV, WAV_FLOAT, Encoder, audio_format, encoded, pcm, replacing, write_whole
from chattts_client.client import AsyncTTSClient
from chattts_client.commands import Job, SpeakCommand
from chattts_client.errors import TTSError, invalid_input
from chattts_client.several import as_they_end, with_patience
from chattts_client.speech import Chunk, Speech, joined


@dataclass(frozen=True)
class Outcome:
    """What became of one job: a speech that was written, or an error.

    Attributes:
        job: the job.
        seconds_taken: from sending the text to having its audio.
        seconds_to_first_audio: to having the first samples of a stream; None for whole answers.
        speech: None after an error; without audio after `--refine-only`.
        error: None after success.
    """

    job: Job
    seconds_taken: float
    seconds_to_first_audio: float | None = None
    speech: Speech | None = None
    error: Exception | None = None

    def line(self) -> str:
        """One line for people."""
        if self.speech is None:
            return f"{self.job.name}: failed: {self.error}"
        if not self.speech.duration:
            return f"text {self.job.number}: refined, seed {self.speech.seed}, {self.seconds_taken:.2f} s taken"
        parts = [
            f"{self.speech.duration:.2f} s of audio",
            f"{self.speech.num_tokens} tokens",
            f"seed {self.speech.seed}",
            f"{self.seconds_taken:.2f} s taken",
            f"RTF {self._rtf(self.speech):.2f}",
        ]
        if self.seconds_to_first_audio is not None:
            parts.append(f"first audio after {self.seconds_to_first_audio:.2f} s")
        num_cut = sum(sentence.is_cut for sentence in self.speech.sentences)
        if num_cut:
            parts.append(f"warning: cut at --max-new-tokens: {num_cut} of {len(self.speech.sentences)} sentences")
        num_late = sum(sentence.finish_reason == "late" for sentence in self.speech.sentences)
        if num_late:
            parts.append(
                f"warning: went on long after their text: {num_late} of {len(self.speech.sentences)} sentences"
            )
        if self.speech.warning:
            parts.append(f"warning: {self.speech.warning}")
        return f"{self.job.name}: {', '.join(parts)}"

    def as_json(self) -> str:
        """One JSON object for programs."""
        report: dict[str, Any] = {"number": self.job.number, "text": self.job.text, "file": None}
        if self.speech is None:
            report["error"] = {"type": type(self.error).__name__, "message": str(self.error)}
            return json.dumps(report)
        report |= {
            "seed": self.speech.seed,
            "speaker": self.speech.speaker,
            "refined_text": self.speech.refined_text,
            "warning": self.speech.warning,
            "seconds_taken": self.seconds_taken,
        }
        if self.speech.duration:
            report |= {
                "file": self.job.name,
                "seconds": self.speech.duration,
                "sample_rate": self.speech.sample_rate,
                "num_tokens": self.speech.num_tokens,
                "sentences": [asdict(sentence) for sentence in self.speech.sentences],
                "words": [asdict(word) for word in self.speech.words],
                "rtf": self._rtf(self.speech),
            }
        if self.seconds_to_first_audio is not None:
            report["seconds_to_first_audio"] = self.seconds_to_first_audio
        return json.dumps(report)

    def _rtf(self, speech: Speech) -> float:
        """Seconds taken per second of audio; a speech that was written is never empty."""
        return self.seconds_taken / speech.duration


class InOrder:
    """Prints texts that come in any order by their numbers: 1, 2, ..."""

    def __init__(self) -> None:
        """Number 1 comes first."""
        self._waiting: dict[int, str | None] = {}
        self._next = 1

    def add(self, number: int, text: str | None) -> None:
        """Print `text` once all before it have come; None prints nothing."""
        self._waiting[number] = text
        while self._next in self._waiting:
            text = self._waiting.pop(self._next)
            self._next += 1
            if text is not None:
                print(text, flush=True)


async def speak(command: SpeakCommand) -> bool:
    """Do every job; True when all went well."""
    endpoint = command.endpoint
    all_well, refined_texts = True, InOrder()
    with _progress(len(command.jobs)) as progress:
        async with AsyncTTSClient(endpoint.url, endpoint.protocol, timeout=endpoint.timeout) as client:
            works = (partial(_do, client, job, command) for job in command.jobs)
            async with aclosing(as_they_end(works, command.concurrency)) as outcomes:
                async for outcome in outcomes:
                    all_well = all_well and outcome.speech is not None
                    progress.update()
                    progress.write(outcome.line(), file=sys.stderr)
                    if command.json:
                        print(outcome.as_json(), flush=True)
                    elif command.options.refine_only:
                        refined_texts.add(outcome.job.number, outcome.speech.refined_text if outcome.speech else None)
    return all_well


def _progress(num_jobs: int) -> Any:
    """tqdm's bar, where it is installed (the extra `progress`), else the lines alone."""
    try:
        tqdm = importlib.import_module("tqdm").tqdm
    except ImportError:
        return _NoBar()
    return tqdm(total=num_jobs, unit="text", leave=False, disable=not sys.stderr.isatty())


class _NoBar(nullcontext[Any]):
    """What is used of tqdm's bar."""

    def __init__(self) -> None:
        super().__init__(self)

    def update(self) -> None:
        """Nothing is drawn."""

    def write(self, line: str, *, file: TextIO) -> None:
        """Print `line`."""
        print(line, file=file)


async def _do(client: AsyncTTSClient, job: Job, command: SpeakCommand) -> Outcome:
    started = time.perf_counter()
    do = partial(_do_whole if command.mode is None else _do_stream, client, job, command)
    try:
        patience_s = command.endpoint.timeout if len(command.jobs) > 1 else 0.0
        outcome = await with_patience(do, patience_s)
        if outcome.speech is not None and job.subtitles is not None:
            write_whole(job.subtitles, _subtitles(job.subtitles, outcome.speech).encode())
    except BrokenPipeError:
        raise
    except (TTSError, OSError) as error:
        return Outcome(job, time.perf_counter() - started, error=error)
    return outcome


def _subtitles(path: Path, speech: Speech) -> str:
    return subtitles.subtitles(path.suffix.lower(), speech.sentences, speech.words)


async def _do_whole(client: AsyncTTSClient, job: Job, command: SpeakCommand) -> Outcome:
    started = time.perf_counter()
    speech = await client.synthesize(job.text, command.options)
    seconds_taken = time.perf_counter() - started
    if not command.options.refine_only:
        await asyncio.to_thread(_write, speech, job, floating=command.floating)  # encoding takes a while
    return Outcome(job, seconds_taken, speech=speech)


def _write(speech: Speech, job: Job, *, floating: bool) -> None:
    if job.audio is not None:
        speech.save(job.audio, floating=floating)
    else:
        _write_out(encoded(speech.audio, speech.sample_rate, WAV_FLOAT if floating else WAV))


def _write_out(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


async def _do_stream(client: AsyncTTSClient, job: Job, command: SpeakCommand) -> Outcome:
    started = time.perf_counter()
    first_audio = None
    chunks: list[Chunk] = []
    sink = _file(job.audio, floating=command.floating) if job.audio else _standard_output(floating=command.floating)
    async with sink as write:
        async with client.stream(job.text, command.options, mode=command.mode or "exact") as stream:
            async for chunk in stream:
                if first_audio is None and len(chunk.audio):
                    first_audio = time.perf_counter() - started
                chunks.append(chunk)
                await write(chunk)
        seconds_taken = time.perf_counter() - started
        if first_audio is None:
            raise invalid_input("audio", [], "1 or more samples")
    return Outcome(job, seconds_taken, first_audio, speech=joined(chunks))


Write = Callable[[Chunk], Awaitable[None]]


@asynccontextmanager
async def _file(path: Path, *, floating: bool) -> AsyncIterator[Write]:
    """Encodes chunks as they come; the file gets its name when the last one is there."""
    with replacing(path) as part, Encoder(part, audio_format(path, floating=floating)) as encoder:

        async def write(chunk: Chunk) -> None:
            encoder.write(chunk.audio, chunk.sample_rate)

        yield write


@asynccontextmanager
async def _standard_output(*, floating: bool) -> AsyncIterator[Write]:
    """Raw samples. A player that takes them slowly must not hold the stream up, so they wait here."""
    waiting: asyncio.Queue[bytes | None] = asyncio.Queue()

    async def write_all() -> None:
        while (data := await waiting.get()) is not None:
            await asyncio.to_thread(_write_out, data)

    writer = asyncio.create_task(write_all())

    async def write(chunk: Chunk) -> None:
        if writer.done():
            await writer  # raises: whoever read has gone
        waiting.put_nowait(pcm(chunk.audio, floating=floating))

    try:
        yield write
        waiting.put_nowait(None)
        await writer
    finally:
        writer.cancel()
        await asyncio.gather(writer, return_exceptions=True)
