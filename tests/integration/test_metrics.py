"""The metrics of a live server against what its callers saw: the differences of the counters are exactly that."""

from __future__ import annotations

import re
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from threading import Event

import pytest
from chattts_client import DeadlineExceededError, InvalidInputError, OverloadedError, TTSClient

from bench.repository import with_settings
from chattts_serving.launcher.running import running_server
from chattts_serving.triton.reports import BATCH_BOUNDS, FIRST_AUDIO_BOUNDS_S, REALTIME_BOUNDS, STEP_BOUNDS_S
from tests.metrics import AT_REST, exposition, samples, time_to_rest, wait_until

MAX_REQUESTS = 4
LONG_S = 60.0  # a busy machine must not decide
PROTOCOLS = ["grpc", "http"]
MODELS = {"whole": "speech", "stream": "chattts_stream"}  # what counts the requests of either way to ask
OUTCOMES = {
    InvalidInputError: "invalid",
    OverloadedError: "overloaded",
    DeadlineExceededError: "deadline_exceeded",
}
REFUSALS = ("invalid", "overloaded")  # which any model may tell; each is counted by the one where the request ends
ENDLESS = {"text": "This sentence takes very long to say. " * 40, "min_new_tokens": 2_048, "skip_refine": True}
# No sentence ends so early that it is drawn again: the tokens of its first draw are counted, too.
SHORT = {"text": "One sentence comes first. A second one follows.", "min_new_tokens": 8, "max_new_tokens": 100}
HISTOGRAMS = {
    "step_seconds": (STEP_BOUNDS_S, [""]),
    "step_sequences": (BATCH_BOUNDS, [""]),
    "first_audio_seconds": (FIRST_AUDIO_BOUNDS_S, [""]),
    "realtime_factor": (REALTIME_BOUNDS, [f'model="{model}"' for model in MODELS.values()]),
}


@pytest.fixture(scope="module")
def server(tiny, tmp_path_factory):
    """The tiny checkpoint with room for few requests."""
    folder = tmp_path_factory.mktemp("metrics")
    repository = with_settings(tiny.repository, folder / "models", max_requests=MAX_REQUESTS)
    with running_server(
        repository,
        log_path=repository.parent / "server.log",
        launcher_flags=["--hang-timeout=0"],  # no probe, which a full server refuses, too, and counts
    ) as running:
        yield running


@dataclass
class Seen:
    """What callers saw.

    Attributes:
        requests: by model and outcome; refusals by outcome.
        tokens: audio tokens in answers, and in the chunks of streams that were answered to their end.
        num_sounding: streams of which a chunk with audio came.
    """

    requests: Counter = field(default_factory=Counter)
    tokens: int = 0
    num_sounding: int = 0

    def __add__(self, other):
        return Seen(
            self.requests + other.requests,
            self.tokens + other.tokens,
            self.num_sounding + other.num_sounding,
        )


def ask(server, protocol, way, leave=None, **inputs) -> Seen:
    """One request, and what its caller saw; a stream is left with the first chunk after the event `leave`."""
    seen, outcome, speeches = Seen(), "answered", []
    with TTSClient(getattr(server, f"{protocol}_url"), protocol) as client:
        try:
            if way == "whole":
                speeches.append(client.synthesize(**inputs))
            for chunk in client.stream(**inputs) if way == "stream" else ():
                speeches.append(chunk)
                if leave and leave.is_set():
                    outcome = "cancelled"
                    break
        except tuple(OUTCOMES) as error:
            outcome = OUTCOMES[type(error)]
    seen.requests[what(MODELS[way], outcome)] += 1
    seen.num_sounding = int(way == "stream" and any(len(speech.audio) for speech in speeches))
    if outcome == "answered":
        seen.tokens = sum(speech.num_tokens for speech in speeches)
    return seen


def ask_at_once(server, requests) -> Seen:
    """What the callers of `requests`, all of them at once, saw together; each is the arguments of `ask`."""
    with ThreadPoolExecutor(len(requests)) as pool:
        pending = [pool.submit(ask, server, *place, **inputs) for *place, inputs in requests]
        return sum((one.result() for one in pending), Seen())


def what(model, outcome):
    """Under which `Seen.requests` has it."""
    return outcome if outcome in REFUSALS else (model, outcome)


class Counted:
    """How much the server's counters have grown since this was made, at rest."""

    def __init__(self, server) -> None:
        time_to_rest(server, LONG_S)
        self._server, self._before = server, samples(server)

    def growth(self, name, *labels):
        """Of `chattts_NAME` with all of `labels`; the order of labels in the name is Triton's."""
        now = samples(self._server)
        found = [series for series in now if self._is(series, name, labels)]
        assert found, (name, labels)
        return sum(now[series] - self._before[series] for series in found)

    def requests(self) -> Counter:
        """As `Seen.requests`, those that are not 0."""
        grown = Counter()
        for series, value in samples(self._server).items():
            if series.startswith("chattts_requests_total{"):
                labels = dict(re.findall(r'(\w+)="([^"]*)"', series))
                grown[what(labels["model"], labels["outcome"])] += int(value - self._before[series])
        return +grown

    def check(self, seen: Seen):
        """What was counted is what callers saw; the last ones are counted a moment after they have ended."""
        end = time.monotonic() + LONG_S
        while not seen.requests <= self.requests() and time.monotonic() < end:
            time.sleep(0.05)
        time_to_rest(self._server, LONG_S)
        time.sleep(0.2)  # for one too many to be seen
        assert self.requests() == seen.requests
        while self._still_here() and time.monotonic() < end:  # a stream goes a moment after it has ended
            time.sleep(0.05)
        assert not self._still_here()

    def _still_here(self) -> dict:
        """The models with requests that came and have not gone, and their number."""
        models = {model: f'model="{model}"' for model in MODELS.values()}
        gone = {model: self.growth("requests_gone_total", label) for model, label in models.items()}
        here = {model: self.growth("requests_come_total", label) - gone[model] for model, label in models.items()}
        return {model: number for model, number in here.items() if number}

    @staticmethod
    def _is(series, name, labels):
        base, _, rest = series.rstrip("}").partition("{")
        return base == f"chattts_{name}" and set(labels) <= set(rest.split(","))


def check_histogram(counted, name, count, *labels):
    """It grew by `count`; each bucket holds those below it, and the sum lies between what the buckets allow."""
    bounds = HISTOGRAMS[name][0]
    ends = [*(f"{bound:g}" for bound in bounds), "+Inf"]
    buckets = [counted.growth(f"{name}_bucket", f'le="{end}"', *labels) for end in ends]
    assert all(one <= other for one, other in pairwise(buckets))
    assert buckets[-1] == counted.growth(f"{name}_count", *labels) == count
    inside = [other - one for one, other in pairwise([0, *buckets])]
    total = counted.growth(f"{name}_sum", *labels)
    assert sum(number * bound for number, bound in zip(inside, [0, *bounds], strict=True)) <= total + 1e-6
    if not inside[-1]:
        assert total <= sum(number * bound for number, bound in zip(inside, bounds, strict=False)) + 1e-6


def test_answers_of_every_kind_are_counted_with_their_tokens(server):
    counted = Counted(server)
    requests = [(protocol, way, SHORT | {"skip_refine": True}) for protocol in PROTOCOLS for way in MODELS]
    seen = ask_at_once(server, requests)
    assert counted.growth("tokens_total", 'kind="text"') == 0
    seen += ask_at_once(server, [(*place, inputs | {"skip_refine": False}) for *place, inputs in requests])
    counted.check(seen)
    assert seen.requests == {("speech", "answered"): 4, ("chattts_stream", "answered"): 4}
    assert counted.growth("tokens_total", 'kind="audio"') == seen.tokens > 0
    assert counted.growth("tokens_total", 'kind="text"') > 0
    check_histogram(counted, "first_audio_seconds", seen.num_sounding)
    assert seen.num_sounding == 4
    for model in MODELS.values():
        check_histogram(counted, "realtime_factor", 4, f'model="{model}"')


def test_each_step_is_counted_with_its_sentences(server):
    """A request of one sentence alone has a step for each of its tokens, one that ends it, and none beside."""
    counted = Counted(server)
    inputs = SHORT | {"text": "One sentence alone.", "skip_refine": True, "min_new_tokens": 50, "max_new_tokens": 50}
    counted.check(ask(server, "grpc", "whole", **inputs))
    steps = counted.growth("step_seconds_count")
    assert 50 <= steps <= 52
    assert counted.growth("tokens_total", 'kind="audio"') == 50
    check_histogram(counted, "step_seconds", steps)
    check_histogram(counted, "step_sequences", steps)
    assert 50 <= counted.growth("step_sequences_sum") <= 52
    assert counted.growth("step_sequences_bucket", 'le="1"') == steps


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("way", MODELS)
def test_bad_input_is_counted(server, protocol, way):
    counted = Counted(server)
    seen = ask(server, protocol, way, text="[laugh_9]")
    seen += ask(server, protocol, way, text="Hello.", max_new_tokens=0)
    counted.check(seen)
    assert seen.requests == {"invalid": 2}
    check_histogram(counted, "first_audio_seconds", 0)


def test_whatever_becomes_of_requests_at_once_is_counted_once(server):
    """Which of them are refused, the clock decides; what their callers saw is what is counted."""
    counted = Counted(server)
    requests, leave = [], Event()
    leave.set()
    for protocol in PROTOCOLS:
        requests += 2 * [(protocol, "stream", leave, ENDLESS)]
        requests += 2 * [(protocol, way, SHORT) for way in MODELS]
        requests += [(protocol, way, ENDLESS | {"deadline_ms": 400}) for way in MODELS]
        requests += [(protocol, "stream", {"text": ""})]
    seen = ask_at_once(server, [(*place, inputs) for *place, inputs in requests])
    for protocol in PROTOCOLS:  # for sure, when all others have gone
        seen += ask(server, protocol, "stream", leave, **ENDLESS)
        for way in MODELS:
            seen += ask(server, protocol, way, **ENDLESS, deadline_ms=300)
            seen += ask(server, protocol, way, **SHORT)
        wait_until(server, lambda engine: engine == AT_REST, LONG_S)
    counted.check(seen)
    assert seen.requests["invalid"] == 2
    for way, model in MODELS.items():
        assert all(seen.requests[model, outcome] for outcome in ("answered", "deadline_exceeded")), way
    assert seen.requests["chattts_stream", "cancelled"] >= 2
    assert counted.growth("tokens_total", 'kind="audio"') > seen.tokens  # those of sentences that were cut off, too
    check_histogram(counted, "first_audio_seconds", seen.num_sounding)
    check_histogram(counted, "realtime_factor", seen.requests["speech", "answered"], 'model="speech"')
    answered_streams = seen.requests["chattts_stream", "answered"]
    check_histogram(counted, "realtime_factor", answered_streams, 'model="chattts_stream"')


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("way", MODELS)
def test_a_full_server_counts_whom_it_refuses(server, protocol, way):
    counted, leave = Counted(server), Event()
    with ThreadPoolExecutor(MAX_REQUESTS) as pool:
        streams = [pool.submit(ask, server, "grpc", "stream", leave, **ENDLESS) for _ in range(MAX_REQUESTS)]
        wait_until(server, lambda engine: engine.requests_open == MAX_REQUESTS, LONG_S)
        refused = ask(server, protocol, way, **SHORT)
        leave.set()
        seen = sum((one.result() for one in streams), refused)
    counted.check(seen)
    assert refused.requests == {"overloaded": 1}
    assert seen.requests - refused.requests == {("chattts_stream", "cancelled"): MAX_REQUESTS}
    check_histogram(counted, "first_audio_seconds", MAX_REQUESTS)


def test_gauges_are_back_at_rest_and_the_cache_has_its_size(server):
    time_to_rest(server, LONG_S)
    now = samples(server)
    assert now["chattts_cache_tokens"] > 4_096
    for histogram, (_, labels) in HISTOGRAMS.items():
        assert len(labels) == sum(series.startswith(f"chattts_{histogram}_count") for series in now)


def test_every_metric_has_its_type_and_a_description(server):
    text = exposition(server)
    names = {series.partition("{")[0] for series in samples(server) if series.startswith("chattts_")}
    gauges = {"requests_open", "sequences_running", "sequences_waiting", "cache_tokens_used", "cache_tokens"}
    gauges |= {"states_held", "state_bytes"}
    for name in names:
        kind = "gauge" if name.removeprefix("chattts_") in gauges else "counter"
        assert f"# TYPE {name} {kind}\n" in text
        assert re.search(rf"^# HELP {name} \S", text, re.MULTILINE)
