"""Prometheus with the shipped rules, and its checker, on the loopback."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from chattts_serving.launcher.processes import end_with_parent

FOLDER = Path(__file__).resolve().parent.parent.parent / "docker" / "prometheus"
RULES = FOLDER / "rules" / "chattts.yml"
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def program(name: str) -> str:
    """Where `prometheus` or `promtool` is; skips the test where it is not installed."""
    found = shutil.which(name)
    if not found:
        pytest.skip(f"{name} is not installed (on Debian: apt-get install prometheus)")
    return found


def promtool(*arguments: str | Path) -> str:
    """What promtool prints; it must find nothing wrong."""
    result = subprocess.run([program("promtool"), *arguments], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@dataclass(frozen=True)
class Prometheus:
    """A running Prometheus at "HOST:PORT"."""

    url: str

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The instant vector of `expression`: "metric" (labels) and "value" of each series."""
        found: list[dict[str, Any]] = self._get("query", query=expression)["result"]
        return found

    def values(self, expression: str) -> list[float]:
        """The values of `expression`, without their labels."""
        return [float(one["value"][1]) for one in self.query(expression)]

    def alerts(self) -> list[dict[str, Any]]:
        """The alerts that fire or are about to."""
        found: list[dict[str, Any]] = self._get("alerts")["alerts"]
        return found

    def rules(self) -> list[dict[str, Any]]:
        """Every rule, with its health."""
        return [rule for group in self._get("rules")["groups"] for rule in group["rules"]]

    def wait_until(self, holds: Callable[[], bool], what: str, within_s: float = 30.0) -> None:
        """Wait until `holds`, which raises no error but those of a Prometheus that does not listen yet."""
        end = time.monotonic() + within_s
        while True:
            try:
                if holds():
                    return
            except urllib.error.URLError:
                pass
            assert time.monotonic() < end, f"after {within_s} s: {what}"
            time.sleep(0.1)

    def _get(self, path: str, **parameters: str) -> dict[str, Any]:
        address = f"http://{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with DIRECT.open(address, timeout=30) as response:
            answer: dict[str, Any] = json.load(response)
        return answer["data"]  # type: ignore[no-any-return]


@contextmanager
def scraping(metrics_url: str, folder: Path, gateway_url: str = "", interval_s: int = 1) -> Iterator[Prometheus]:
    """A Prometheus with the shipped configuration, but for one server, one gateway or none, and in shorter intervals.

    Its files lie in `folder`. When the block begins it has scraped the server and evaluated every rule.
    """
    binary = program("prometheus")
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"127.0.0.1:{free.getsockname()[1]}"
    file = folder / "prometheus.yml"
    file.write_text(yaml.safe_dump(_configuration(metrics_url, gateway_url, interval_s)), encoding="utf-8")
    command = [binary, f"--config.file={file}", f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address={url}"]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            preexec_fn=end_with_parent,  # noqa: PLW1509
        )
        try:
            running = Prometheus(url)
            jobs = 2 if gateway_url else 1
            running.wait_until(lambda: len(running.values("up == 1")) == jobs, "a scrape did not work")
            running.wait_until(lambda: all(rule["health"] == "ok" for rule in running.rules()), "a rule is not well")
            yield running
        finally:
            process.terminate()
            process.wait()


def _configuration(metrics_url: str, gateway_url: str, interval_s: int) -> dict[str, Any]:
    configuration: dict[str, Any] = yaml.safe_load((FOLDER / "prometheus.yml").read_text(encoding="utf-8"))
    for name in ("scrape_interval", "evaluation_interval"):
        configuration["global"][name] = f"{interval_s}s"
    configuration["rule_files"] = [str(FOLDER / "rules" / Path(path).name) for path in configuration["rule_files"]]
    server, gateway = configuration["scrape_configs"]
    del server["dns_sd_configs"]
    server["static_configs"] = [{"targets": [metrics_url]}]
    gateway["static_configs"] = [{"targets": [gateway_url] if gateway_url else []}]
    return configuration
