"""`python -m client "text" -o out.wav`: speak texts from the command line."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from client.arguments import Command, Job, command_from
from client.audio_file import WAV, WAV_FLOAT, encoded
from client.client import AsyncTTSClient
from client.errors import TTSError
from client.speech import Speech


@dataclass(frozen=True)
class Outcome:
    """What became of one job: a speech that was written, or an error.

    Attributes:
        job: the job.
        seconds_taken: from sending the text to having its audio.
        speech: None after an error.
        error: None after success.
    """

    job: Job
    seconds_taken: float
    speech: Speech | None = None
    error: Exception | None = None

    def line(self) -> str:
        """One line for people."""
        if self.speech is None:
            return f"{self.job.name}: failed: {self.error}"
        return (
            f"{self.job.name}: {self.speech.duration:.2f} s of audio, {self.speech.num_tokens} tokens, "
            f"seed {self.speech.seed}, {self.seconds_taken:.2f} s taken, RTF {self._rtf(self.speech):.2f}"
        )

    def as_json(self) -> str:
        """One JSON object for programs."""
        report: dict[str, Any] = {"number": self.job.number, "text": self.job.text, "file": None}
        if self.speech is None:
            report["error"] = {"type": type(self.error).__name__, "message": str(self.error)}
        else:
            report |= {
                "file": self.job.name,
                "seconds": self.speech.duration,
                "sample_rate": self.speech.sample_rate,
                "num_tokens": self.speech.num_tokens,
                "seed": self.speech.seed,
                "refined_text": self.speech.refined_text,
                "seconds_taken": self.seconds_taken,
                "rtf": self._rtf(self.speech),
            }
        return json.dumps(report)

    def _rtf(self, speech: Speech) -> float:
        """Seconds taken per second of audio; a speech that was written is never empty."""
        return self.seconds_taken / speech.duration


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status is 0, 1 (a text failed), 2 (wrong command line) or 130 (interrupted)."""
    try:
        command = command_from(argv)
        return 0 if asyncio.run(_run(command)) else 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read standard output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes it once more at exit
        return 1


async def _run(command: Command) -> bool:
    """Do every job; True when all went well."""
    endpoint = command.endpoint
    jobs = iter(command.jobs)

    async def worker(client: AsyncTTSClient, progress: tqdm[Any]) -> bool:
        """Do the next job until there is none."""
        all_well = True
        for job in jobs:
            outcome = await _do(client, job, command)
            all_well = all_well and outcome.speech is not None
            progress.update()
            progress.write(outcome.line(), file=sys.stderr)
            if command.json:
                print(outcome.as_json(), flush=True)
        return all_well

    with tqdm(total=len(command.jobs), unit="text", leave=False, disable=not sys.stderr.isatty()) as progress:
        async with AsyncTTSClient(endpoint.url, endpoint.protocol, timeout=endpoint.timeout) as client:
            workers = min(command.concurrency, len(command.jobs))
            return all(await asyncio.gather(*(worker(client, progress) for _ in range(workers))))


async def _do(client: AsyncTTSClient, job: Job, command: Command) -> Outcome:
    started = time.perf_counter()
    try:
        speech = await client.synthesize(job.text, command.options)
        seconds_taken = time.perf_counter() - started
        await asyncio.to_thread(_write, speech, job, floating=command.floating)  # encoding takes a while
    except BrokenPipeError:
        raise
    except (TTSError, OSError) as error:
        return Outcome(job, time.perf_counter() - started, error=error)
    return Outcome(job, seconds_taken, speech=speech)


def _write(speech: Speech, job: Job, *, floating: bool) -> None:
    if job.output is not None:
        speech.save(job.output, floating=floating)
        return
    sys.stdout.buffer.write(encoded(speech.audio, speech.sample_rate, WAV_FLOAT if floating else WAV))
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    sys.exit(main())
