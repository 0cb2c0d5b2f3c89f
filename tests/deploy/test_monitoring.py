"""Prometheus's rules and Grafana's dashboard: by themselves, in made-up hours, and with a live server under load."""

from __future__ import annotations

import json
import math
import re
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml
from chattts_client import InvalidInputError, TTSClient

from gateway.process import RunningGateway, running_gateway
from tests.conftest import ROOT, Deployment
from tests.deploy.prometheus import FOLDER, RULES, Prometheus, promtool, scraping
from tests.metrics import samples

DASHBOARD = ROOT / "docker" / "grafana" / "dashboards" / "chattts.json"
PROVISIONING = ROOT / "docker" / "grafana" / "provisioning"
GRID_WIDTH = 24
SERVER = 'job="chattts", instance="one:8002"'
GATEWAY = 'job="chattts-gateway", instance="two:8080"'
GATEWAYS_UP = 'up{of="gateway"}'  # beside the server's
METRIC = re.compile(r"(?<![\w:])(?:chattts|nv)_\w+(?![\w:])")  # what rules record has a colon
MINUTES = 60  # that a made-up server is looked at

# A server on which nothing is wrong, a sample a minute; MINUTES of them in promtool's notation, first + step x times.
STEADY = {
    "up": "1x60",
    "chattts_requests_open": "2x60",
    "chattts_sequences_running": "4x60",
    "chattts_sequences_waiting": "0x60",
    "chattts_cache_tokens": "8000x60",
    "chattts_cache_tokens_used": "7000x60",
    "chattts_step_seconds_count": "0+600x60",
    'chattts_requests_total{outcome="answered"}': "0+100x60",
    'chattts_requests_total{outcome="invalid"}': "0+30x60",
    'chattts_requests_total{outcome="cancelled"}': "0+30x60",
    'chattts_requests_total{outcome="overloaded"}': "0+5x60",
    'chattts_requests_total{outcome="deadline_exceeded"}': "0+5x60",
    'chattts_requests_total{outcome="failed"}': "0+1x60",
    'chattts_first_audio_seconds_bucket{le="1"}': "0+90x60",
    'chattts_first_audio_seconds_bucket{le="2"}': "0+99x60",
    'chattts_first_audio_seconds_bucket{le="8"}': "0+100x60",
    'chattts_first_audio_seconds_bucket{le="+Inf"}': "0+100x60",
    'chattts_realtime_factor_bucket{model="chattts_stream", le="0.5"}': "0+90x60",
    'chattts_realtime_factor_bucket{model="chattts_stream", le="1"}': "0+99x60",
    'chattts_realtime_factor_bucket{model="chattts_stream", le="4"}': "0+100x60",
    'chattts_realtime_factor_bucket{model="chattts_stream", le="+Inf"}': "0+100x60",
    'chattts_realtime_factor_bucket{model="speech", le="0.5"}': "0x60",  # a whole answer may take its time
    'chattts_realtime_factor_bucket{model="speech", le="1"}': "0x60",
    'chattts_realtime_factor_bucket{model="speech", le="4"}': "0+100x60",
    'chattts_realtime_factor_bucket{model="speech", le="+Inf"}': "0+100x60",
    'nv_inference_request_success{model="vocos"}': "0+100x60",
    'nv_inference_pending_request_count{model="vocos"}': "20x60",
    'nv_inference_request_failure{model="chattts", reason="OTHER"}': "0+60x60",  # bad input is
    'nv_inference_request_failure{model="speech_chunk", reason="OTHER"}': "0+60x60",  # so is a cancelled stream
    'nv_inference_request_failure{model="vocos", reason="BACKEND"}': "0x60",
    "nv_cpu_memory_used_bytes": "90x60",
    "nv_cpu_memory_total_bytes": "100x60",
    'nv_gpu_utilization{gpu_uuid="a"}': "1x60",
    'nv_gpu_memory_used_bytes{gpu_uuid="a"}': "90x60",
    'nv_gpu_memory_total_bytes{gpu_uuid="a"}': "100x60",
    GATEWAYS_UP: "1x60",
    'chattts_gateway_syntheses_ended_total{outcome="spoken"}': "0+1000x60",
    'chattts_gateway_syntheses_ended_total{outcome="left"}': "0+300x60",
    'chattts_gateway_syntheses_ended_total{outcome="failed"}': "0+1x60",
    'chattts_gateway_syntheses_ended_total{outcome="error_500"}': "0+1x60",
    'chattts_gateway_syntheses_ended_total{outcome="error_502"}': "0+10x60",
    'chattts_gateway_syntheses_ended_total{outcome="error_503"}': "0+500x60",
}
NOTHING = "_x60"
ALL_GONE = dict.fromkeys(STEADY, NOTHING)
IDLE = {name: "5x60" for name, values in STEADY.items() if "+" in values}  # counters that nothing adds to

# What differs from the steady server, and all alerts that fire in the hour.
HOURS: dict[str, tuple[Mapping[str, str], set[str]]] = {
    "nothing is wrong": ({}, set()),
    "nobody asks for anything": (
        IDLE | {"chattts_sequences_running": "0x60", 'nv_inference_pending_request_count{model="vocos"}': "0x60"},
        set(),
    ),
    "peaks of some minutes": (
        {
            "chattts_requests_open": "2x20 stale 2x38",
            "chattts_cache_tokens_used": "7000x20 7900x7 7000x31",
            "chattts_sequences_waiting": "0x20 9x7 0x31",
            "chattts_step_seconds_count": "0+600x20 12000x1 12600+600x37",
            'chattts_requests_total{outcome="overloaded"}': "0x20 0+20x5 100x33",
            'chattts_requests_total{outcome="deadline_exceeded"}': "0x20 0+20x5 100x33",
            'chattts_first_audio_seconds_bucket{le="2"}': "0+99x20 1980+50x4 2160+99x34",
            'chattts_realtime_factor_bucket{model="chattts_stream", le="1"}': "0+99x20 1980+50x4 2160+99x34",
            'nv_inference_pending_request_count{model="vocos"}': "20x20 99x3 20x35",
            'nv_inference_request_success{model="vocos"}': "0+100x20 2000x1 2100+100x37",
            "nv_cpu_memory_used_bytes": "90x20 99x8 90x30",
            'nv_gpu_memory_used_bytes{gpu_uuid="a"}': "90x20 99x8 90x30",
            'nv_gpu_utilization{gpu_uuid="b"}': "_x28 1 _x1 stale",  # seen by mistake
        },
        set(),
    ),
    "Prometheus misses the server once": ({"up": "1x20 stale 1x38"}, set()),
    "no scrape works": (ALL_GONE | {"up": "0x60"}, {"ChatTTSDown"}),
    "models load for a minute": ({"up": "0 0 1x58"}, set()),
    "there is no server": (ALL_GONE, {"ChatTTSNoServer"}),
    "a server without its engine": (
        {name: NOTHING for name in STEADY if name.startswith("chattts_")},
        {"ChatTTSNotServing"},
    ),
    "the engine makes no step": ({"chattts_step_seconds_count": "0+600x20 12000x39"}, {"ChatTTSEngineStalled"}),
    "the engine makes no step for waiting sentences": (
        {
            "chattts_step_seconds_count": "0+600x20 12000x39",
            "chattts_sequences_running": "0x60",
            "chattts_sequences_waiting": "0x20 1x8 0x30",
        },
        {"ChatTTSEngineStalled"},
    ),
    "the engine has nothing to do": (
        {"chattts_step_seconds_count": "0+600x20 12000x39", "chattts_sequences_running": "4x20 0x39"},
        set(),
    ),
    "calls wait and the model answers none": (
        {
            'nv_inference_request_success{model="vocos"}': "0+100x20 2000x39",
            'nv_inference_pending_request_count{model="vocos"}': "1x60",
        },
        {"ChatTTSModelStuck"},
    ),
    "one start": ({'nv_inference_request_success{model="vocos"}': "0+100x20 0+100x38"}, set()),
    "two starts": ({'nv_inference_request_success{model="vocos"}': "0+100x20 0+100x9 0+100x28"}, {"ChatTTSRestarts"}),
    "two starts, far apart": ({'nv_inference_request_success{model="vocos"}': "0+100x9 0+100x38 0+100x9"}, set()),
    "one start that scrapes have seen": ({"up": "1x20 0 1x38"}, set()),
    "two starts that scrapes have seen": ({"up": "1x20 0 1x5 0 1x31"}, {"ChatTTSRestarts"}),
    "many are refused": ({'chattts_requests_total{outcome="overloaded"}': "0+20x60"}, {"ChatTTSOverloaded"}),
    "many deadlines pass": (
        {'chattts_requests_total{outcome="deadline_exceeded"}': "0+20x60"},
        {"ChatTTSDeadlines"},
    ),
    "requests fail": ({'chattts_requests_total{outcome="failed"}': "0+5x60"}, {"ChatTTSFailing"}),
    "the only request of a quiet time fails": (
        IDLE
        | {"chattts_sequences_running": "0x60", 'nv_inference_pending_request_count{model="vocos"}': "0x60"}
        # A counter that is new has no rate before its second sample.
        | {'chattts_requests_total{outcome="failed"}': "0x30 1x29"},
        set(),
    ),
    "the vocoder fails": (
        {'nv_inference_request_failure{model="vocos", reason="BACKEND"}': "0+1x60"},
        {"ChatTTSSoundFails"},
    ),
    "the vocoder fails once": ({'nv_inference_request_failure{model="vocos", reason="BACKEND"}': "0x20 1x39"}, set()),
    "one stream in ten begins late": (
        {'chattts_first_audio_seconds_bucket{le="2"}': "0+90x60"},
        {"ChatTTSSlowFirstAudio"},
    ),
    "one stream in ten is slow": (
        {'chattts_realtime_factor_bucket{model="chattts_stream", le="1"}': "0+90x60"},
        {"ChatTTSSlowerThanRealTime"},
    ),
    "sentences always wait": ({"chattts_sequences_waiting": "1x60"}, {"ChatTTSSentencesWait"}),
    "the cache is full": ({"chattts_cache_tokens_used": "7500x60"}, {"ChatTTSCacheFull"}),
    "calls queue": ({'nv_inference_pending_request_count{model="vocos"}': "40x60"}, {"ChatTTSModelQueue"}),
    "memory is short": ({"nv_cpu_memory_used_bytes": "96x60"}, {"ChatTTSMemoryFull"}),
    "memory of a GPU is short": ({'nv_gpu_memory_used_bytes{gpu_uuid="a"}': "96x60"}, {"ChatTTSGPUMemoryFull"}),
    "no scrape of the gateway works": (
        dict.fromkeys([name for name in STEADY if "gateway" in name], NOTHING) | {GATEWAYS_UP: "0x60"},
        {"ChatTTSGatewayDown"},
    ),
    "there is no gateway": (dict.fromkeys([name for name in STEADY if "gateway" in name], NOTHING), set()),
    "the gateway starts anew": ({GATEWAYS_UP: "1x20 0 1x38"}, set()),
    "the gateway finds no server": (
        {'chattts_gateway_syntheses_ended_total{outcome="error_502"}': "0+200x60"},
        {"ChatTTSGatewayCutOff"},
    ),
    "the gateway finds no server for a moment": (
        {'chattts_gateway_syntheses_ended_total{outcome="error_502"}': "0x20 300x39"},
        set(),
    ),
    "the gateway fails, and the server behind it": (
        {
            'chattts_gateway_syntheses_ended_total{outcome="failed"}': "0+15x60",
            'chattts_gateway_syntheses_ended_total{outcome="error_500"}': "0+15x60",
        },
        {"ChatTTSGatewayFailing"},
    ),
    "a GPU is gone": ({'nv_gpu_utilization{gpu_uuid="a"}': "1x25 stale"}, {"ChatTTSGPULost"}),
    "one of two GPUs is gone": ({'nv_gpu_utilization{gpu_uuid="b"}': "1x25 stale"}, {"ChatTTSGPULost"}),
    "a GPU is new": ({'nv_gpu_utilization{gpu_uuid="b"}': "_x25 1x34"}, set()),
    "the server is gone with its GPU": (
        {"up": "1x25 0x34", 'nv_gpu_utilization{gpu_uuid="a"}': "1x25 stale"},
        {"ChatTTSDown"},
    ),
}


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def alerts() -> list[dict[str, Any]]:
    return [rule for rule in rules() if "alert" in rule]


def named(rule: dict[str, Any]) -> str:
    return str(rule["alert"])


def dashboard() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    return content


def panels() -> list[dict[str, Any]]:
    return list(dashboard()["panels"])


def drawn() -> list[dict[str, Any]]:
    """Panels that are no rows."""
    return [panel for panel in panels() if panel["type"] != "row"]


def panel_expressions(window: str) -> list[tuple[str, str]]:
    """Title of the panel and PromQL of each target, with rates over `window`."""
    values = {"$__rate_interval": window, "$instance": ".+", "$gateway": ".+"}
    found = []
    for panel in drawn():
        for target in panel["targets"]:
            expression = target["expr"]
            for name, value in values.items():
                expression = expression.replace(name, value)
            found.append((panel["title"], expression))
    return found


def metrics_in(expression: str) -> set[str]:
    """The metrics of server and gateway that `expression` names."""
    return set(METRIC.findall(without_strings(expression)))


def without_strings(expression: str) -> str:
    return re.sub(r'"[^"]*"', '""', expression)


def all_expressions() -> list[str]:
    return [rule["expr"] for rule in rules()] + [expression for _, expression in panel_expressions("1m")]


def with_labels(series: str) -> str:
    name, _, labels = series.rstrip("}").partition("{")
    return f"{name}{{{', '.join(filter(None, [GATEWAY if 'gateway' in series else SERVER, labels]))}}}"


def check_hours(hours: Mapping[str, tuple[Mapping[str, str], set[str]]], folder: Path) -> None:
    """Have promtool live through each hour, a minute at a time, and see that its alerts and no others fire."""
    fired = 'group by (alertname) (count_over_time(ALERTS{alertstate="firing"}[1h]))'
    tests = []
    for name, (changes, firing) in hours.items():
        values = STEADY | dict(changes)
        expected = [{"labels": f'{{alertname="{alert}"}}', "value": 1} for alert in sorted(firing)]
        test = {
            "name": name,
            "interval": "1m",
            "input_series": [{"series": with_labels(series), "values": values[series]} for series in values],
            "promql_expr_test": [{"expr": fired, "eval_time": f"{MINUTES}m", "exp_samples": expected}],
        }
        tests.append(test)
    content = {"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": tests}
    (folder / "hours.yml").write_text(yaml.safe_dump(content), encoding="utf-8")
    promtool("test", "rules", folder / "hours.yml")


def test_promtool_takes_the_rules() -> None:
    promtool("check", "rules", "--lint=all", "--lint-fatal", RULES)


def test_prometheus_reads_the_file_of_rules() -> None:
    (pattern,) = yaml.safe_load((FOLDER / "prometheus.yml").read_text(encoding="utf-8"))["rule_files"]
    folder = (ROOT / "docker" / "compose.yaml").read_text(encoding="utf-8")
    assert "./prometheus:/etc/prometheus:ro" in folder
    assert RULES in FOLDER.glob(str(Path(pattern).relative_to("/etc/prometheus")))


def test_alerts_fire_when_they_must_and_no_other_does(tmp_path: Path) -> None:
    check_hours(HOURS, tmp_path)


@pytest.mark.parametrize(("expected", "changes"), [({"ChatTTSDown"}, {}), (set(), {"up": "0x60"})])
def test_an_alert_too_few_or_too_many_fails_the_check(
    expected: set[str], changes: dict[str, str], tmp_path: Path
) -> None:
    with pytest.raises(AssertionError, match="ChatTTSDown"):
        check_hours({"an hour": (changes, expected)}, tmp_path)


def test_every_alert_fires_in_some_hour() -> None:
    assert {named(rule) for rule in alerts()} == set().union(*(firing for _, firing in HOURS.values()))


@pytest.mark.parametrize("rule", alerts(), ids=named)
def test_an_alert_says_what_is_wrong_and_where_to_read_on(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in {"critical", "warning"}
    assert set(rule["annotations"]) == {"summary", "description"}
    pages = re.findall(r"(docs/\w+\.md)(?:#(\w+))?", rule["annotations"]["description"])
    assert pages
    for page, section in pages:
        headings = re.findall(r"^#+ (.+)$", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE)
        assert not section or section in [heading.lower().replace(" ", "-") for heading in headings]


def test_the_documentation_has_every_alert_and_every_recorded_name() -> None:
    text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert [name for rule in rules() if f"`{(name := rule.get('alert') or rule['record'])}`" not in text] == []


def test_the_documentation_has_every_metric_that_is_used() -> None:
    text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    used = set().union(*(metrics_in(expression) for expression in all_expressions()))
    families = {re.sub(r"_(bucket|sum|count)$", "", name) if name.startswith("chattts_") else name for name in used}
    assert [name for name in sorted(families) if f"`{name}" not in text] == []


def test_panels_have_ids_of_their_own_and_say_what_they_show() -> None:
    assert [number for number, count in Counter(panel["id"] for panel in panels()).items() if count > 1] == []
    assert [panel["id"] for panel in drawn() if not (panel["title"] and panel["description"])] == []
    assert [panel["title"] for panel in drawn() if "unit" not in panel["fieldConfig"]["defaults"]] == []


def test_panels_do_not_overlap() -> None:
    for one, other in combinations([panel["gridPos"] for panel in panels()], 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        assert beside or one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= GRID_WIDTH for panel in panels())


def test_every_target_asks_the_chosen_data_source_about_the_chosen_servers() -> None:
    source = {"type": "prometheus", "uid": "${datasource}"}
    for panel in drawn():
        assert panel["datasource"] == source
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"]) > 0
        for target in panel["targets"]:
            assert target["datasource"] == source
            named = METRIC.findall(without_strings(target["expr"]))
            of_gateways = [name for name in named if name.startswith("chattts_gateway_")]
            assert target["expr"].count('{instance=~"$gateway"') == len(of_gateways)
            assert target["expr"].count('{instance=~"$instance"') == len(named) - len(of_gateways)
    assert [variable["name"] for variable in dashboard()["templating"]["list"]] == ["datasource", "instance", "gateway"]


def test_grafana_finds_the_dashboard_and_its_data_source() -> None:
    (provider,) = yaml.safe_load((PROVISIONING / "dashboards" / "chattts.yaml").read_text(encoding="utf-8"))[
        "providers"
    ]
    compose = (ROOT / "docker" / "compose.yaml").read_text(encoding="utf-8")
    assert f"./grafana/dashboards:{provider['options']['path']}:ro" in compose
    (source,) = yaml.safe_load((PROVISIONING / "datasources" / "prometheus.yaml").read_text(encoding="utf-8"))[
        "datasources"
    ]
    interval = yaml.safe_load((FOLDER / "prometheus.yml").read_text(encoding="utf-8"))["global"]["scrape_interval"]
    assert source["jsonData"]["timeInterval"] == interval


def test_promtool_parses_the_dashboards_expressions(tmp_path: Path) -> None:
    written = [{"record": f"panel:{number}", "expr": one} for number, (_, one) in enumerate(panel_expressions("1m"))]
    file = tmp_path / "rules.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": written}]}), encoding="utf-8")
    promtool("check", "rules", file)


@pytest.fixture(scope="module")
def gateway(tiny: Deployment, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    with running_gateway(tiny.server.grpc_url, tmp_path_factory.mktemp("gateway") / "log") as running:
        yield running


def test_every_metric_that_is_used_is_there(tiny: Deployment, gateway: RunningGateway) -> None:
    say(gateway, "Hello.")
    own = requests.get(f"{gateway.url}/metrics", timeout=30).text.splitlines()
    there = {name.partition("{")[0] for name in samples(tiny.server)} | {re.split("[{ ]", line)[0] for line in own}
    used = set().union(*(metrics_in(expression) for expression in all_expressions()))
    assert [name for name in sorted(used - there) if not name.startswith("nv_gpu_")] == []


# A live server under load


ONLY_ON_SOME_MACHINES = "nv_gpu_"
ONLY_WHEN_SOMETHING_FIRES = "ALERTS"
TEXTS = ["Hello there, how are you today?", "今天天气真不错。", "One sentence. And a second one, a little longer."]
# The least that a sentence takes: random weights end sooner, again and again.
LIMITS = {"min_new_tokens": 8, "max_new_tokens": 200}


def alerts_of_the_server(prometheus: Prometheus) -> set[str]:
    """Those that fire or are about to, without what the machine is to blame for."""
    return {alert["labels"]["alertname"] for alert in prometheus.alerts()} - {"ChatTTSMemoryFull"}


def say(gateway: RunningGateway, text: str, **options: Any) -> None:
    body = {"model": "chattts", "input": text, "response_format": "pcm"} | options
    answer = requests.post(f"{gateway.url}/v1/audio/speech", json=body, timeout=60)
    assert answer.ok, answer.text


@contextmanager
def speaking(server: Any, gateway: RunningGateway) -> Iterator[None]:
    """Whole answers, streams and bad requests, some of each at once, again and again until the block ends."""
    is_over = threading.Event()

    def speak() -> None:
        with TTSClient(server.grpc_url) as client, ThreadPoolExecutor(6) as pool:
            ways = (
                client.synthesize,
                lambda text, **options: list(client.stream(text, **options)),
                partial(say, gateway),
            )
            while not is_over.is_set():
                for done in [pool.submit(way, text, **LIMITS) for way in ways for text in TEXTS]:
                    done.result()
                with pytest.raises(InvalidInputError):
                    client.synthesize("")

    with ThreadPoolExecutor(1) as pool:
        load = pool.submit(speak)
        try:
            yield
        finally:
            is_over.set()
        load.result()


def is_drawn(prometheus: Prometheus, expression: str) -> bool:
    return any(math.isfinite(value) for value in prometheus.values(expression))


def test_prometheus_draws_every_panel_from_a_server_under_load(
    tiny: Deployment, gateway: RunningGateway, tmp_path: Path
) -> None:
    with scraping(tiny.server.metrics_url, tmp_path, gateway.url.removeprefix("http://")) as prometheus:
        # None fires within these seconds, but one that waits for its time would be there as "pending".
        prometheus.wait_until(lambda: not alerts_of_the_server(prometheus), "at rest there are alerts")
        with speaking(
            tiny.server, gateway
        ):  # for as long as it takes: how much a scrape a second sees of a load, pace decides
            open_ones = "max_over_time(chattts_requests_open[1m]) > 0"
            prometheus.wait_until(lambda: bool(prometheus.values(open_ones)), "Prometheus has not seen the load")
            for title, expression in panel_expressions("1m"):
                if ONLY_ON_SOME_MACHINES in expression or ONLY_WHEN_SOMETHING_FIRES in expression:
                    continue
                prometheus.wait_until(partial(is_drawn, prometheus, expression), f"nothing in {title}: {expression}")
        assert [rule["name"] for rule in prometheus.rules() if rule["health"] != "ok"] == []
