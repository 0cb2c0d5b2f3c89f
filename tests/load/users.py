"""Those who call, one class for each way to the server. They know nothing of load shapes, limits and reports.

Closed loop: a user sends the next request when the last one is answered. Open loop (`--rate`): a user sends whenever
one is due, in a greenlet of its own, and times count from the moment at which it was due.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import gevent
import grpc.experimental.gevent
from chattts_client import SynthesisOptions, TTSClient, TTSError
from chattts_client.transport import ProtocolName
from gevent.pool import Group
from locust import User, task

from tests.load.arrivals import poisson_arrivals
from tests.load.entries import Heard, Recorder
from tests.load.scenarios import SCENARIOS
from tests.load.target import target
from tests.load.texts import Request, requests

grpc.experimental.gevent.init_gevent()
# A blocking gRPC call waits in a thread of gevent's pool; with the pool's 10, all further calls would wait unsent.
gevent.get_hub().threadpool.maxsize = 2_000

PAUSE_AFTER_ERROR_S = 1.0  # in a closed loop: a full server refuses at once, and would be asked without pause

_numbers = itertools.count()


class Caller(User):
    """One caller; the classes below say which way it takes."""

    abstract = True
    protocol: ClassVar[ProtocolName]
    streams: ClassVar[bool]

    def __init__(self, environment: Any) -> None:
        """Nothing is sent yet."""
        super().__init__(environment)
        options = environment.parsed_options
        self._settings = options
        self._scenario = SCENARIOS[options.scenario]
        self._record = Recorder(environment, f"{self.protocol}{' stream' if self.streams else ''}")
        self._target = target(self.host or options.host, options.grpc_url)
        # Workers of a distributed run count users on their own.
        seed = f"{options.seed} {environment.runner.worker_index} {next(_numbers)}"
        self._arrival_rng, self._patience_rng = random.Random(f"{seed} arrivals"), random.Random(f"{seed} patience")
        self._requests = requests(self._scenario.lengths, random.Random(f"{seed} texts"))
        self._idle_clients: list[TTSClient] = []
        self._underway = Group()

    def on_start(self) -> None:
        """Draw the first arrival of an open loop."""
        self._started = self._due = time.perf_counter()
        self._arrivals: Iterator[float] | None = None
        if self._settings.rate:
            share = self._settings.rate / (self._settings.num_users or 1)
            self._arrivals = poisson_arrivals(share, self._arrival_rng)
            self._due += next(self._arrivals)

    def wait_time(self) -> float:
        """Seconds until the next request is due."""
        return max(0.0, self._due - time.perf_counter())

    @task
    def call(self) -> None:
        """Send one request: at once and to its end, or when it is due and beside the others."""
        if self._arrivals is None:
            answered = self._send(time.perf_counter())
            self._due = time.perf_counter() + (0.0 if answered else PAUSE_AFTER_ERROR_S)
            return
        self.wait()
        self._underway.spawn(self._send_reported, self._due)
        self._due = self._started + next(self._arrivals)

    def on_stop(self) -> None:
        """Let the open loop's requests end, within locust's --stop-timeout, and hang up.

        The clients are let go as well: tritonclient closes a channel once more when its object is deleted, and where
        that is left to the end of the interpreter, it waits for a gevent that is gone (measured).
        """
        self._underway.join(timeout=self.environment.stop_timeout or 0)
        self._underway.kill()
        while self._idle_clients:
            self._idle_clients.pop().close()

    def _send_reported(self, due: float) -> None:
        """As `_send`; what goes wrong in this class itself is locust's to count."""
        try:
            self._send(due)
        except Exception as error:
            self.environment.events.user_error.fire(user_instance=self, exception=error, tb=error.__traceback__)

    def _send(self, due: float) -> bool:
        """Send one request and record what came of it; False after an error."""
        request = next(self._requests)
        heard = None
        try:
            with self._client() as client, gevent.Timeout(self._patience_s(), False):
                heard = self._listen(client, request, due)
        except TTSError as error:
            self._record.failed(request.length, error)
            return False
        if heard is None:
            self._record.left()
        else:
            self._record.heard(request.length, heard)
        return True

    def _patience_s(self) -> float | None:
        """Seconds after which a stream is left; None stays to the end."""
        if not (self.streams and self._scenario.leaves):
            return None
        return self._patience_rng.expovariate(1 / self._settings.patience)

    def _listen(self, client: TTSClient, request: Request, due: float) -> Heard:
        """The answer to `request`; a stream that is left by an exception is cancelled."""
        most = self._settings.max_new_tokens
        options = SynthesisOptions(
            seed=request.seed,
            # The least that a sentence takes: models of random weights end sooner, again and again.
            min_new_tokens=min(8, most),
            max_new_tokens=most,
            skip_refine=not self._settings.refine,
        )
        if not self.streams:
            num_samples = len(client.synthesize(request.text, options).audio)
            return Heard(time.perf_counter() - due, None, num_samples)
        first_s, num_samples = None, 0
        with client.stream(request.text, options, mode=self._settings.mode) as chunks:
            for chunk in chunks:
                num_samples += len(chunk.audio)
                if first_s is None and num_samples:
                    first_s = time.perf_counter() - due
        return Heard(time.perf_counter() - due, first_s, num_samples)

    @contextmanager
    def _client(self) -> Iterator[TTSClient]:
        """A client that no other greenlet of this user has."""
        url = self._target.grpc_url if self.protocol == "grpc" else self._target.http_url
        if not self._idle_clients:
            self._idle_clients.append(TTSClient(url, self.protocol, timeout=self._settings.timeout))
        client = self._idle_clients.pop()
        try:
            yield client
        finally:
            self._idle_clients.append(client)


class GrpcUser(Caller):
    """Whole answers of `chattts` over gRPC."""

    protocol, streams = "grpc", False


class GrpcStreamUser(Caller):
    """Streams of `chattts_stream` over gRPC."""

    protocol, streams = "grpc", True


class HttpUser(Caller):
    """Whole answers of `chattts` over HTTP."""

    protocol, streams = "http", False


class HttpStreamUser(Caller):
    """Streams over HTTP: server-sent events of `generate_stream`."""

    protocol, streams = "http", True
