"""A run: rounds of load on a server of its own, and a look at the server when it rests after each.

Every round has the same calls in another order. What the server holds is compared at rest, with all connections closed:
under load it depends on what is just under way, and that noise is larger than what is looked for.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from chattts_client import Speech, TTSClient, TTSError
from tqdm import tqdm

from bench.repository import with_settings
from chattts_serving.launcher.running import RunningServer
from tests.soak import answers
from tests.soak.calls import Caller, Outcome, Settings
from tests.soak.health import Busy, Rest, last_lines, look_at_rest, look_under_load, named_processes, rests_within
from tests.soak.texts import CONTROL, CONTROL_OPTIONS

CALLERS = 8  # calls under way at once, of the burst more
MAX_REQUESTS = 48  # that the server takes at once, so that a burst can fill it
SETTINGS = {"max_requests": MAX_REQUESTS, "max_batch_requests": MAX_REQUESTS // 2}
BURST = MAX_REQUESTS + 16
REST_WITHIN_S = 60.0
LOOK_EVERY_S = 5.0  # under load

DECK = {  # calls of each kind in a round
    "whole grpc": 6,
    "whole http": 6,
    "stream grpc": 4,
    "stream http": 4,
    "low latency grpc": 3,
    "low latency http": 3,
    "batch grpc": 3,
    "batch stream http": 3,
    "long whole": 1,
    "long stream": 1,
    "refine": 3,
    "refine only": 1,
    "clone": 2,
    "voice": 2,
    "control grpc": 2,
    "control http": 2,
    "deadline grpc": 2,
    "deadline http": 2,
    "deadline stream grpc": 2,
    "deadline stream http": 2,
    "bad grpc": 4,
    "bad http": 4,
    "bad stream grpc": 2,
    "bad stream http": 2,
    "left stream grpc": 3,
    "left stream http": 3,
    "left whole grpc": 2,
    "left whole http": 2,
    "killed client": 1,
    "command line": 1,
    "burst": 1,
}


@dataclass
class Record:
    """What was seen.

    Attributes:
        started_with: the server's processes at the start, by name.
        outcomes: of every call, and of the control sentence at rest.
        rests, busy: looks at the server at rest and under load.
        restless: what the engine held when it should have been at rest.
        ended: why the run stopped before its time, with the end of the server's log; None where it did not.
    """

    started_with: dict[str, int]
    outcomes: list[Outcome] = field(default_factory=list)
    rests: list[Rest] = field(default_factory=list)
    busy: list[Busy] = field(default_factory=list)
    restless: list[str] = field(default_factory=list)
    ended: str | None = None


class ServerEndedError(Exception):
    """The server does not answer, or one of its processes is not the one that was started."""


def with_few_requests(repository: Path, folder: Path) -> Path:
    """A copy of `repository` in `folder`, its artifacts linked, that takes as few requests as SETTINGS say."""
    return with_settings(repository, folder / "models", **SETTINGS)


def run(
    server: RunningServer,
    seconds: float,
    deck: Mapping[str, int],
    *,
    tokens: int = 96,
    seed: int = 0,
    least_rounds: int = 1,
) -> Record:
    """Load `server` for `seconds`, and until there were `least_rounds` rounds.

    Args:
        server: runs `with_few_requests`, at rest.
        seconds: after which no round begins.
        deck: calls of each kind in a round.
        tokens: most audio tokens of a sentence.
        seed: of the order of the calls, and of what they ask for.
        least_rounds: as many are made, however long they take.
    """
    record = Record(named_processes(server))
    settings = Settings(server.grpc_url, server.http_url, BURST, tokens, timeout_s=300.0)
    asyncio.run(_Run(server, settings, deck, random.Random(seed), record).go(seconds, least_rounds))
    return record


class _Run:
    def __init__(
        self, server: RunningServer, settings: Settings, deck: Mapping[str, int], rng: random.Random, record: Record
    ) -> None:
        self._server, self._settings, self._rng, self._record = server, settings, rng, record
        self._deck = [kind for kind, count in deck.items() for _ in range(count)]
        self._started = time.monotonic()

    async def go(self, seconds: float, least_rounds: int) -> None:
        watching = asyncio.create_task(self._watch())
        try:
            with tqdm(desc="soak", total=round(seconds), unit="s") as bar:
                await self._go(seconds, least_rounds, bar)
        except ServerEndedError as error:
            self._note_end(str(error))
        finally:
            watching.cancel()
            with suppress(asyncio.CancelledError):
                await watching

    async def _go(self, seconds: float, least_rounds: int, bar: tqdm) -> None:
        try:
            control = await asyncio.to_thread(_control, self._server.grpc_url)
        except TTSError as error:
            raise ServerEndedError(f"the server did not speak the control sentence: {error}") from error
        caller = Caller(self._settings, control, self._rng)
        while time.monotonic() - self._started < seconds or len(self._record.rests) < least_rounds:
            await self._round(caller)
            self._check_alive()
            try:
                await self._rest(control)
            except (OSError, KeyError) as error:
                raise ServerEndedError(f"the server does not tell how busy it is: {error!r}") from error
            self._check_alive()
            bar.update(min(bar.total, round(time.monotonic() - self._started)) - bar.n)

    async def _round(self, caller: Caller) -> None:
        kinds = self._rng.sample(self._deck, len(self._deck))
        caller.open()
        await asyncio.gather(*(self._work(caller, iter_of_all) for iter_of_all in [iter(kinds)] * CALLERS))
        await caller.close()

    async def _work(self, caller: Caller, kinds: Iterator[str]) -> None:
        for kind in kinds:
            if not self._has_ended():
                self._record.outcomes += await caller.outcomes(kind)

    async def _rest(self, control: Speech) -> None:
        restless = await asyncio.to_thread(rests_within, self._server, REST_WITHIN_S)
        if restless is not None:
            self._record.restless.append(restless)
        self._record.outcomes.append(await asyncio.to_thread(self._control_at_rest, control))
        look = asyncio.to_thread(look_at_rest, self._server, self._started, len(self._record.outcomes))
        self._record.rests.append(await look)

    def _control_at_rest(self, control: Speech) -> Outcome:
        """The control sentence alone: the same samples, to the last bit."""
        started = time.perf_counter()
        try:
            fault = answers.difference(_control(self._server.grpc_url), control, close=0.0)
        except TTSError as error:
            fault = str(error)
        ending = "answered" if fault is None else "WRONG"
        return Outcome("control at rest", ending, time.perf_counter() - started, fault)

    def _check_alive(self) -> None:
        if self._has_ended():
            raise ServerEndedError

    def _has_ended(self) -> bool:
        """Whether any of the server's processes is no longer what it was; asked before each call."""
        now, before = named_processes(self._server), self._record.started_with
        other = [name for name in before | now if before.get(name) != now.get(name)]
        if other:
            self._note_end(f"ended, or started anew: {', '.join(other)}")
        return self._record.ended is not None

    def _note_end(self, why: str) -> None:
        """Take the log's last lines at once: the launcher starts the server anew, which says much."""
        if self._record.ended is None:
            self._record.ended = f"{why}\n{last_lines(self._server.log_path)}"

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            with suppress(OSError, KeyError):  # a server that has ended; the rounds see that, too
                look = asyncio.to_thread(look_under_load, self._server, self._started)
                self._record.busy.append(await look)


def _control(grpc_url: str) -> Speech:
    with TTSClient(grpc_url, timeout=300.0) as client:
        return client.synthesize(CONTROL, CONTROL_OPTIONS)
