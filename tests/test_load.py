"""The load test's parts that need neither locust nor a server."""

import json
import math
import random
import sys
from argparse import Namespace
from itertools import islice, pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from chattts_client.errors import (
    ConnectionFailedError,
    DeadlineExceededError,
    InvalidInputError,
    OverloadedError,
    ServerError,
)
from hypothesis import given
from hypothesis import strategies as st

from bench.load import percentile as percentile_of_values
from tests.load import flags, report
from tests.load.arrivals import poisson_arrivals
from tests.load.entries import BYTES_PER_AUDIO_S, FIRST_AUDIO, LEFT, NO_AUDIO, RTF, TEXT, Heard, Recorder
from tests.load.limits import Limits
from tests.load.scenarios import SCENARIOS
from tests.load.summary import Entry, Summary, percentile, summarize
from tests.load.target import Target, target
from tests.load.texts import LENGTHS, SENTENCES, requests

MOST_CHARACTERS = 20_000  # of a text, by the contract


def test_the_parts_tested_here_do_not_import_locust():
    """It patches threads and sockets of the whole process, here those of every other test."""
    assert "locust" not in sys.modules


# Texts


def drawn(weights, seed, count):
    return list(islice(requests(weights, random.Random(seed)), count))


def test_requests_repeat_with_the_seed_and_differ_between_seeds():
    weights = {"short": 1, "long": 1}
    assert drawn(weights, 1, 20) == drawn(weights, 1, 20)
    assert drawn(weights, 1, 20) != drawn(weights, 2, 20)


@pytest.mark.parametrize("length", LENGTHS)
def test_a_text_has_the_sentences_of_its_length_and_one_language(length):
    for request in drawn({length: 1}, 0, 50):
        by_language = {
            language: sum(request.text.count(sentence) for sentence in sentences)
            for language, sentences in SENTENCES.items()
        }
        assert sorted(by_language.values()) == [0, LENGTHS[length]]
        assert len(request.text) < MOST_CHARACTERS


def test_lengths_come_by_their_weights_and_languages_alike():
    count = 4_000
    found = drawn({"short": 3, "medium": 1}, 0, count)
    chinese = sum(any(character > "一" for character in request.text) for request in found)
    assert sum(request.length == "short" for request in found) == pytest.approx(0.75 * count, rel=0.05)
    assert chinese == pytest.approx(count / 2, rel=0.08)


# Scenarios and arrivals


@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=SCENARIOS)
@given(passed=st.floats(0, 1), users=st.integers(1, 500))
def test_there_is_always_a_user_and_never_one_too_many(scenario, passed, users):
    assert 1 <= scenario.num_users(passed, users) <= users


@pytest.mark.parametrize("name", ["steady", "long", "abandon"])
def test_users_stay_all_the_time(name):
    assert {SCENARIOS[name].num_users(passed / 100, 8) for passed in range(101)} == {8}


def test_a_ramp_rises_to_all_users_who_stay_for_the_last_fifth():
    counts = [SCENARIOS["ramp"].num_users(passed / 100, 16) for passed in range(101)]
    assert all(before <= after for before, after in pairwise(counts))
    assert set(counts) == set(range(1, 17))
    assert counts[50] == 10
    assert counts[79] == counts[80] == counts[100] == 16


def test_a_spike_lasts_for_the_middle_third():
    counts = [SCENARIOS["spike"].num_users(passed / 100, 16) for passed in range(101)]
    assert counts == [4] * 34 + [16] * 33 + [4] * 34


def test_texts_of_every_scenario_have_known_lengths():
    for scenario in SCENARIOS.values():
        assert set(scenario.lengths) <= set(LENGTHS)


@pytest.mark.parametrize("num_users", [1, 8])
def test_arrivals_of_all_users_together_are_a_poisson_process_of_the_rate(num_users):
    rate, count = 5.0, 20_000
    each = [poisson_arrivals(rate / num_users, random.Random(user)) for user in range(num_users)]
    arrivals = np.sort([moment for user in each for moment in islice(user, count // num_users)])
    arrivals = arrivals[: count * 9 // 10]  # until then none of the users has ended
    gaps = np.diff(arrivals, prepend=0.0)
    assert gaps.mean() == pytest.approx(1 / rate, rel=5 / count**0.5)  # five standard errors
    assert gaps.std() == pytest.approx(1 / rate, rel=0.05)  # exponential: as large as the mean
    per_second = np.bincount(arrivals.astype(int))[:-1]
    assert per_second.var() == pytest.approx(per_second.mean(), rel=0.15)  # a count's variance is its mean


# What is recorded


class Environment:
    """Stands in for locust's: what was fired, and what was logged beside it."""

    def __init__(self):
        self.fired, self.logged = [], []
        self.events = SimpleNamespace(request=SimpleNamespace(fire=lambda **values: self.fired.append(values)))
        self.stats = SimpleNamespace(get=self._entry)

    def _entry(self, name, way):
        return SimpleNamespace(log=lambda value, num_bytes: self.logged.append((way, name, value, num_bytes)))


@pytest.fixture
def environment():
    return Environment()


def fired(way, name, time_ms, num_bytes, error):
    return {
        "request_type": way,
        "name": name,
        "response_time": time_ms,
        "response_length": num_bytes,
        "exception": error,
        "context": {},
    }


def test_a_stream_is_one_request_with_two_measures_beside_it(environment):
    Recorder(environment, "grpc stream").heard("short", Heard(3.0, 0.5, 48_000))
    assert environment.fired == [fired("grpc stream", "short text", 3_000.0, 4 * 48_000, None)]
    assert environment.logged == [("grpc stream", RTF, 1_500.0, 0), ("grpc stream", FIRST_AUDIO, 500.0, 0)]


def test_a_whole_answer_has_no_first_audio(environment):
    Recorder(environment, "http").heard("long", Heard(1.0, None, 24_000))
    assert environment.fired == [fired("http", "long text", 1_000.0, 4 * 24_000, None)]
    assert environment.logged == [("http", RTF, 1_000.0, 0)]


def test_an_answer_without_a_sample_is_a_failure(environment):
    Recorder(environment, "grpc").heard("short", Heard(1.0, None, 0))
    assert environment.fired == [fired("grpc", "short text", None, 0, NO_AUDIO)]
    assert environment.logged == []


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OverloadedError("full"), "UNAVAILABLE"),
        (DeadlineExceededError("late"), "DEADLINE_EXCEEDED"),
        (ConnectionFailedError("gone"), "CONNECTION_FAILED"),
        (InvalidInputError("wrong"), "INVALID_ARGUMENT"),
        (ServerError("broken", "INTERNAL"), "INTERNAL"),
    ],
)
def test_an_error_is_counted_by_its_kind_and_has_no_time(environment, error, kind):
    Recorder(environment, "grpc").failed("medium", error)
    assert environment.fired == [fired("grpc", "medium text", None, 0, kind)]
    assert environment.logged == []


def test_a_request_that_was_left_is_neither_an_answer_nor_a_failure(environment):
    Recorder(environment, "http stream").left()
    assert environment.fired == [fired("http stream", LEFT, None, 0, None)]


# Summary


@given(st.lists(st.integers(0, 10_000), min_size=1), st.sampled_from([0.07, 0.5, 0.95, 1.0]))
def test_percentiles_of_counted_values_are_those_of_the_values(values, share):
    times = {value: values.count(value) for value in values}
    assert percentile(times, share) == percentile_of_values(values, share)


def test_there_is_no_percentile_of_nothing():
    assert percentile({}, 0.95) is None


def entry(way="grpc", name="short text", requests=0, failures=0, times=None, audio_s=0.0):
    return Entry(way, name, requests, failures, times or {}, audio_s)


RUN = [
    entry("grpc", TEXT.format("short"), 10, 2, {1_000: 7, 9_000: 1}, 16.0),
    entry("grpc", RTF, 8, 0, {500: 7, 4_500: 1}),
    entry("grpc stream", TEXT.format("long"), 30, 0, {2_000: 30}, 600.0),
    entry("grpc stream", LEFT, 5),
    entry("grpc stream", FIRST_AUDIO, 30, 0, {300: 20, 400: 10}),
    entry("http stream", FIRST_AUDIO, 10, 0, {200: 5, 800: 5}),
]


def test_a_summary_counts_requests_once_and_takes_percentiles_over_all_ways():
    assert summarize(RUN, {"UNAVAILABLE": 2}, 0, 20.0) == Summary(
        seconds=20.0,
        requests=45,
        answered=38,
        left=5,
        errors={"UNAVAILABLE": 2},
        exceptions=0,
        audio_s_per_s=30.8,
        first_audio_p95_s=0.8,
        latency_p95_s=2.0,
        rtf_p95=4.5,
    )
    assert summarize(RUN, {"UNAVAILABLE": 2}, 0, 20.0).error_share == 2 / 45


def test_an_entry_is_read_from_locust():
    values = {"num_requests": 3, "num_failures": 1, "response_times": {120: 2}, "total_content_length": 0}
    values |= {"method": "grpc", "name": "short text", "total_content_length": 2 * BYTES_PER_AUDIO_S}
    assert Entry.from_locust(SimpleNamespace(**values)) == Entry("grpc", "short text", 3, 1, {120: 2}, 2.0)


# Limits


def summary(**changes):
    values = {"seconds": 10.0, "requests": 100, "answered": 99, "left": 0, "errors": {"UNAVAILABLE": 1}}
    values |= {"exceptions": 0, "audio_s_per_s": 5.0}
    values |= {"first_audio_p95_s": 1.0, "latency_p95_s": 8.0, "rtf_p95": 2.0}
    return Summary(**values | changes)


def broken(limits, **changes):
    return [verdict.name for verdict in limits.verdicts(summary(**changes)) if not verdict.kept]


MEASURED = Limits(errors=0.01, first_audio_s=1.0, latency_s=8.0, rtf=2.0)


def test_what_equals_its_limit_keeps_it():
    assert broken(MEASURED) == []


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"errors": {"UNAVAILABLE": 1, "INTERNAL": 1}}, "share of errors"),
        ({"first_audio_p95_s": 1.1}, "first audio p95 s"),
        ({"latency_p95_s": 8.1}, "latency p95 s"),
        ({"rtf_p95": 2.1}, "RTF p95"),
        ({"exceptions": 1}, "exceptions in the test"),
        ({"answered": 0}, "requests heard, fewest"),
    ],
)
def test_each_limit_can_be_exceeded_alone(changes, name):
    assert broken(MEASURED, **changes) == [name]


def test_what_was_not_measured_keeps_its_limit():
    assert broken(MEASURED, first_audio_p95_s=None, latency_p95_s=None, rtf_p95=None) == []


def test_a_run_in_which_all_were_left_can_pass():
    assert broken(MEASURED, answered=0, left=99) == []


@pytest.mark.parametrize("limit", ["errors", "first_audio_s", "latency_s", "rtf"])
@pytest.mark.parametrize("value", [-1.0, math.nan])
def test_a_limit_that_makes_no_sense_is_refused(limit, value):
    with pytest.raises(ValueError, match=f"limit '{limit}' is"):
        Limits(**{limit: value})


# Report


def test_the_report_says_what_was_exceeded():
    text = report.as_text(RUN, summary(latency_p95_s=8.1), MEASURED.verdicts(summary(latency_p95_s=8.1)))
    (line,) = [line for line in text.splitlines() if "EXCEEDED" in line]
    assert line.split() == ["latency", "p95", "s", "8.1", "8", "EXCEEDED"]
    assert "1 UNAVAILABLE" in text


def test_the_report_is_strict_json_also_without_limits_and_measures():
    limits = Limits(rtf=math.inf)
    written = report.as_json({"scenario": "steady"}, RUN, summary(), limits.verdicts(summary()))
    read = json.loads(json.dumps(written, allow_nan=False))
    assert read["passed"] is True
    assert {limit["name"]: limit["limit"] for limit in read["limits"]}["RTF p95"] is None
    assert read["entries"][0] == {
        "type": "grpc",
        "name": "short text",
        "requests": 10,
        "failures": 2,
        "p50": 1_000,
        "p90": 9_000,
        "p95": 9_000,
        "p99": 9_000,
        "p100": 9_000,
    }
    assert read["entries"][3]["p95"] is None


# Addresses and flags


@pytest.mark.parametrize(
    ("url", "grpc_url", "expected"),
    [
        ("127.0.0.1:8000", "", Target("127.0.0.1:8000", "127.0.0.1:8001")),
        ("http://tts.example:9000/", "", Target("tts.example:9000", "tts.example:9001")),
        ("http://[::1]:8000", "", Target("[::1]:8000", "[::1]:8001")),
        ("127.0.0.1:8000", "10.0.0.1:7", Target("127.0.0.1:8000", "10.0.0.1:7")),
    ],
)
def test_addresses_of_both_protocols(url, grpc_url, expected):
    assert target(url, grpc_url) == expected


@pytest.mark.parametrize(
    ("url", "grpc_url", "name"),
    [("localhost", "", "host"), ("::1:8000", "", "host"), ("a:1", "https://a:1", "grpc-url")],
)
def test_what_is_no_address_is_refused_by_name(url, grpc_url, name):
    with pytest.raises(ValueError, match=f"--{name} is '.*'; allowed is HOST:PORT"):
        target(url, grpc_url)


GOOD = {"host": "a:1", "grpc_url": "", "rate": 0.0, "timeout": 1.0, "patience": 1.0, "max_new_tokens": 1}
GOOD |= {"max_errors": 0.0, "max_first_audio": 0.0, "max_latency": 0.0, "max_rtf": 0.0}


def test_each_limit_has_its_flag():
    given = Namespace(max_errors=0.1, max_first_audio=0.2, max_latency=0.3, max_rtf=0.4)
    assert flags.limits_of(given) == Limits(errors=0.1, first_audio_s=0.2, latency_s=0.3, rtf=0.4)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("rate", -1.0, "--rate is -1; allowed is"),
        ("timeout", 0.0, "--timeout is 0; allowed is"),
        ("patience", 0.0, "--patience is 0; allowed is"),
        ("max_new_tokens", 0, "--max-new-tokens is 0; allowed is"),
        ("max_rtf", -1.0, "limit 'rtf' is -1.0; allowed is"),
    ],
)
def test_a_flag_out_of_its_range_is_refused(name, value, message):
    flags.check(Namespace(**GOOD))
    with pytest.raises(ValueError, match=message):
        flags.check(Namespace(**GOOD | {name: value}))
