"""What locust loads: users, shape, flags, and what is done at the end of a run.

Without a web page `make load` or `python -m tests.load` runs it; with one, in the root of the checkout:
`locust -f tests/load/locustfile.py --host 127.0.0.1:8000`. README.md has scenarios, entries and limits.
"""

from __future__ import annotations

import gc
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import gevent
from locust import events
from locust.runners import WorkerRunner
from tqdm import tqdm

from tests.load import flags, report
from tests.load.shapes import DEFAULT_RUN_S, ScenarioShape
from tests.load.summary import Entry, Summary, summarize
from tests.load.target import DEFAULT_URL
from tests.load.users import GrpcStreamUser, GrpcUser, HttpStreamUser, HttpUser

__all__ = ["GrpcStreamUser", "GrpcUser", "HttpStreamUser", "HttpUser", "ScenarioShape"]

events.init_command_line_parser.add_listener(flags.add_flags)


@events.init.add_listener
def check_flags(environment: Any, **_: object) -> None:
    """Refuse a wrong address, number or limit before anything is sent."""
    options = environment.parsed_options
    options.host = environment.host = options.host or DEFAULT_URL
    try:
        flags.check(options)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


@events.test_start.add_listener
def show_progress(environment: Any, **_: object) -> None:
    """A bar over the time of a run without a web page."""
    if environment.parsed_options.headless and not isinstance(environment.runner, WorkerRunner):
        gevent.spawn(_progress, environment)


@events.quitting.add_listener
def finish(environment: Any, **_: object) -> None:
    """Print the tables, write the report, and set the exit status: 0 where every limit is kept, else 1."""
    if isinstance(environment.runner, WorkerRunner):
        return
    options = environment.parsed_options
    entries = [Entry.from_locust(entry) for _, entry in sorted(environment.stats.entries.items(), key=_by_type)]
    summary = _summary(environment, entries)
    verdicts = flags.limits_of(options).verdicts(summary)
    print(f"\n{report.as_text(entries, summary, verdicts)}")
    if options.report:
        settings = {name: getattr(options, name) for name in flags.SETTINGS}
        path = Path(options.report)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(report.as_json(settings, entries, summary, verdicts), indent=1) + "\n")
        print(f"report: {path}")
    environment.process_exit_code = 0 if report.passed(verdicts) else 1


@events.quit.add_listener
def let_go(**_: object) -> None:
    """Delete clients that only cycles of exceptions and frames still hold, for the reason given in `Caller.on_stop`."""
    gc.collect()


def _by_type(item: tuple[tuple[str, str], Any]) -> tuple[str, str]:
    (name, way), _ = item
    return way, name


def _summary(environment: Any, entries: list[Entry]) -> Summary:
    stats = environment.stats
    errors = Counter[str]()
    for error in stats.errors.values():
        errors[str(error.error)] += error.occurrences
    exceptions = sum(exception["count"] for exception in environment.runner.exceptions.values())
    seconds = (stats.last_request_timestamp or stats.start_time) - stats.start_time
    return summarize(entries, errors, exceptions, seconds)


def _progress(environment: Any) -> None:
    options = environment.parsed_options
    with tqdm(total=round(options.run_time or DEFAULT_RUN_S), desc=options.scenario, unit="s") as bar:
        while environment.runner.state in ("ready", "spawning", "running"):
            total = environment.stats.total
            bar.set_postfix(
                users=environment.runner.user_count, sent=total.num_requests, failed=total.num_failures, refresh=False
            )
            bar.update(min(1, bar.total - bar.n))
            gevent.sleep(1)
