"""Sends what the strategies make, looks at each answer, and after each batch at the server."""

from __future__ import annotations

import json
import socket
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import count, zip_longest
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st
from hypothesis.errors import Flaky

from chattts_serving.launcher.running import RunningServer
from tests.fuzz import garbage, inner_calls
from tests.fuzz.answers import OK, Answer, UnexpectedError, check, check_refusal
from tests.fuzz.calls import Call, Tensor, text_tensor
from tests.fuzz.guard import BrokenError, Guard
from tests.fuzz.speech_calls import speech_calls
from tests.fuzz.wires import Ending, SilenceError, Wire, Wires, http_bytes

BATCH = 250  # cases between two looks at the whole server
MOST_SHOWN = 3_000  # characters of a case in a report
LEFT = "left"  # callers who did not wait for an answer
HUNG_UP = "hung up"  # Triton's answer to bytes that are no HTTP

# Every case of a kind that talks takes about as many requests.
REQUESTS_OF_A_CONVERSATION = 9


@dataclass(frozen=True)
class Kind:
    """One kind of cases.

    Attributes:
        name: of a row in the table.
        share: of all requests, relative to the other kinds'.
        cases: makes them.
        run: sends one, checks what came back, and says the status of each answer.
        requests: that one case takes, about.
    """

    name: str
    share: int
    cases: st.SearchStrategy[Any]
    run: Callable[[Any], Sequence[str]]
    requests: int = 1


@dataclass(frozen=True)
class Batch:
    """Cases of one kind that are made and sent one after the other; `kind` names it."""

    kind: str
    cases: int
    seed: int


@dataclass(frozen=True)
class Failure:
    """What went wrong, and the smallest case that still does."""

    batch: Batch
    message: str
    case: str

    def __str__(self) -> str:
        return f"{self.batch.kind} (cases {self.batch.cases}, seed {self.batch.seed}): {self.message}\n  {self.case}"


@dataclass
class Report:
    """What was seen: statuses by kind, failures, and how far memory grew."""

    statuses: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    failures: list[Failure] = field(default_factory=list)
    growth_mb: float = 0.0

    def table(self) -> str:
        """One line for each kind, as Markdown."""
        lines = ["| kind | requests | answered | otherwise |", "|---|---|---|---|"]
        total: Counter[str] = Counter()
        for kind, statuses in [*sorted(self.statuses.items()), ("all", total)]:
            others = [f"{status} {number}" for status, number in statuses.most_common() if status != OK]
            lines.append(f"| {kind} | {statuses.total()} | {statuses[OK]} | {', '.join(others)} |")
            total.update(statuses)
        return "\n".join(lines)


class ServerBroke(BaseException):  # no Exception: Hypothesis would send the case again
    """The server died or is silent, so that no smaller case can be looked for."""


class Session:
    """One server that is fuzzed."""

    def __init__(self, server: RunningServer, report: Report) -> None:
        """Have the server speak a control sentence, to which later ones are compared."""
        self._wires = Wires(server)
        self._guard = Guard(server, self._wires)
        self._http_url = server.http_url
        self._report = report
        self._serials = count()
        self._abandoned: list[socket.socket] = []
        self.kinds: Mapping[str, Kind] = {kind.name: kind for kind in self._kinds()}

    def close(self) -> None:
        self._wires.close()

    def run(self, batch: Batch) -> bool:
        """Run `batch`, and look at the server; whether it can take more."""
        kind = self.kinds[batch.kind]
        failed: list[tuple[str, str]] = []  # message and case, of the smallest one last

        @seeded(batch.seed)
        @settings(
            max_examples=batch.cases,
            database=None,
            deadline=None,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
            report_multiple_bugs=False,
            print_blob=False,
        )
        @given(kind.cases)
        def one(case: Any) -> None:
            try:
                self._send(kind, case)
            except (UnexpectedError, ServerBroke) as error:
                failed.append((str(error), _shown(case)))
                raise

        try:
            one()
        except UnexpectedError:
            self._report.failures.append(Failure(batch, *failed[-1]))
        except Flaky:
            self._report.failures.append(Failure(batch, f"not every time: {failed[-1][0]}", failed[-1][1]))
        except ServerBroke:
            self._report.failures.append(Failure(batch, *failed[-1]))
            return False
        try:
            self._guard.check()
        except BrokenError as error:
            self._report.failures.append(Failure(batch, str(error), "seen after the batch"))
            return False
        finally:
            while self._abandoned:
                self._abandoned.pop().close()
        self._report.growth_mb = max(self._report.growth_mb, self._guard.growth_mb())
        return True

    def _send(self, kind: Kind, case: Any) -> None:
        try:
            statuses = kind.run(case)
        except (SilenceError, TimeoutError) as error:
            raise ServerBroke(f"no answer: {error}") from error
        except OSError as error:
            if not self._guard.is_same():
                raise ServerBroke(f"the server died: {error}") from error
            raise UnexpectedError(f"the connection broke: {error!r}") from error
        if not self._guard.is_same():
            raise ServerBroke("a process of the server died")
        self._report.statuses[kind.name].update(statuses)

    def _kinds(self) -> Iterator[Kind]:
        whole, streams = self._wires.whole, self._wires.streams
        for name, share in {
            "grpc": 12,
            "grpc, typed": 6,
            "http, JSON": 12,
            "http, binary": 6,
            "grpc, stream": 5,
        }.items():
            cases = speech_calls("chattts", huge=not name.endswith("JSON"))
            yield Kind(f"chattts ({name})", share, cases, _calling(whole[name]))
        for name, wire in streams.items():
            cases = speech_calls("chattts_stream", shapes=name.startswith("grpc"), huge=name.startswith("grpc"))
            yield Kind(f"chattts_stream ({name})", 14, cases, _calling(wire))
        for name in ("grpc", "http, JSON"):
            cases = speech_calls("text_frontend", huge=name == "grpc")
            yield Kind(f"text_frontend ({name})", 4, cases, _calling(whole[name]))
        generation = self._generation()
        yield Kind("speech (grpc)", 4, inner_calls.speech_calls(generation), _calling(whole["grpc"]))
        for name in ("grpc", "http, binary"):
            yield Kind(
                f"decoder, vocoder, encoders ({name})", 3, inner_calls.tensor_calls(), _checking_tensors(whole[name])
            )
        talking = inner_calls.conversations(generation)
        yield Kind("gpt_decoder's protocol (grpc)", 6, talking, self._talk, REQUESTS_OF_A_CONVERSATION)
        yield Kind("malformed HTTP", 12, garbage.http_garbage(), self._send_http_garbage)
        yield Kind("malformed gRPC", 8, garbage.grpc_garbage(), self._send_grpc_garbage)
        yield Kind("cancelled gRPC", 2, garbage.cancelled(), self._send_and_cancel)

    def _generation(self) -> Mapping[str, Any]:
        """What text_frontend writes for a short text of two sentences."""
        options = (Tensor("skip_refine", "BOOL", (1, 1), (True,)), Tensor("max_new_tokens", "INT32", (1, 1), (40,)))
        call = Call("text_frontend", (text_tensor("text", "Hello there. How are you?"), *options))
        answer = self._wires.whole["grpc"](call)
        generation: Mapping[str, Any] = json.loads(answer.responses[0]["generation"].item())
        return generation

    def _talk(self, conversation: inner_calls.Conversation) -> Sequence[str]:
        statuses: list[str] = []

        def wire(call: Call) -> Answer:
            answer = self._wires.whole["grpc"](call)
            statuses.append(answer.status)
            return answer

        inner_calls.Caller(wire, conversation, next(self._serials)).talk()
        return statuses

    def _send_http_garbage(self, case: garbage.RawHttp) -> Sequence[str]:
        answer = http_bytes(self._http_url, case.parts, case.ending, self._abandoned)
        if answer is None:
            return [LEFT if case.ending in (Ending.RESET, Ending.ABANDON) else HUNG_UP]
        if answer.status != OK:
            check_refusal(answer)
        return [answer.status]

    def _send_grpc_garbage(self, case: garbage.RawGrpc) -> Sequence[str]:
        answer = self._wires.grpc_bytes(case.method, case.body, streams=case.streams)
        if answer.status != OK:
            check_refusal(answer)
        return [answer.status]

    def _send_and_cancel(self, case: garbage.Cancelled) -> Sequence[str]:
        self._wires.grpc_cancelled(case.call, case.after_s, streams=case.streams)
        return [LEFT]


def batches(kinds: Mapping[str, Kind], requests: int, seed: int) -> list[Batch]:
    """About `requests` requests of all `kinds` by their shares, in turns; each batch's seed follows from `seed`."""
    shares = sum(kind.share for kind in kinds.values())
    rows = []
    for kind in kinds.values():
        left = max(1, round(requests * kind.share / shares / kind.requests))
        sizes = [min(BATCH, left - start) for start in range(0, left, BATCH)]
        rows.append([Batch(kind.name, size, _seed(seed, kind.name, number)) for number, size in enumerate(sizes)])
    return [batch for column in zip_longest(*rows) for batch in column if batch is not None]


def run(
    serve: Callable[[], AbstractContextManager[RunningServer]],
    requests: int,
    seed: int,
    is_wanted: Callable[[str], bool],
    say: Callable[[str], None],
) -> Report:
    """Run a whole campaign; a server that breaks is replaced by the next one of `serve`."""
    report = Report()
    todo: list[Batch] | None = None
    while todo is None or todo:
        with serve() as server:
            session = Session(server, report)
            if todo is None:
                kinds = {name: kind for name, kind in session.kinds.items() if is_wanted(name)}
                todo = batches(kinds, requests, seed)
            while todo:
                batch = todo.pop(0)
                known = len(report.failures)
                can_go_on = session.run(batch)
                found = report.failures[known:]
                say(f"{batch.kind}: {batch.cases} cases, {len(found)} failures; {len(todo)} batches left")
                for failure in found:
                    say(f"FAILED: {failure}")
                if not can_go_on:
                    break
            session.close()
    return report


def _calling(wire: Wire) -> Callable[[Call], Sequence[str]]:
    def send(call: Call) -> Sequence[str]:
        answer = wire(call)
        check(call, answer)
        return [answer.status]

    return send


def _checking_tensors(wire: Wire) -> Callable[[Call], Sequence[str]]:
    def send(call: Call) -> Sequence[str]:
        answer = wire(call)
        inner_calls.check_tensors(call, answer)
        return [answer.status]

    return send


def _shown(case: Any) -> str:
    text = repr(case)
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}... ({len(text)} characters)"


def _seed(seed: int, kind: str, number: int) -> int:
    return zlib.crc32(f"{seed}/{kind}/{number}".encode())
