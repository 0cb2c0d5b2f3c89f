"""Custom metrics on Triton's metrics endpoint, `chattts_NAME` each.

Triton 2.51 has no custom histograms: a `Histogram` is counters under the names that Prometheus gives those of a
histogram, so that its `histogram_quantile` takes them.
"""

from __future__ import annotations

import logging
import threading
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Any

logger = logging.getLogger(__name__)

WRITE_S = 0.1  # between two writes: each value is a message to the server and back


class Value:
    """A gauge, which is set, or a counter, which is added to; from any thread."""

    def __init__(self, metric: Any, changed: threading.Event, *, is_counter: bool) -> None:
        """The value of `metric`, 0; `changed` is set with every change."""
        self._metric, self._changed, self._is_counter = metric, changed, is_counter
        self._lock = threading.Lock()
        self._wanted = self._written = 0.0

    def set(self, number: float) -> None:
        """Make it `number`."""
        with self._lock:
            self._wanted = number
        self._changed.set()

    def add(self, number: float = 1.0) -> None:
        """Make it so much more."""
        with self._lock:
            self._wanted += number
        self._changed.set()

    def notify(self) -> None:
        """Say that there is something to write."""
        self._changed.set()

    def release(self) -> None:
        """Let go of the server's part of it."""
        self._metric = None

    def write(self) -> None:
        """Tell the server, if it has changed."""
        wanted = self._wanted
        if wanted == self._written:
            return
        if self._is_counter:
            self._metric.increment(wanted - self._written)
        else:
            self._metric.set(wanted)
        self._written = wanted


class Histogram:
    """How often values up to each of some bounds were observed, the number of all and their sum; from any thread."""

    def __init__(self, bounds: Sequence[float], buckets: Sequence[Value], total: Value, count: Value) -> None:
        """`bounds` are ascending; `buckets` has a counter for each, and one more for all."""
        self._bounds, self._buckets, self._total, self._count = bounds, buckets, total, count
        self._lock = threading.Lock()
        self._tally, self._sum = [0] * len(buckets), 0.0

    def observe(self, number: float) -> None:
        """Count `number`."""
        with self._lock:
            self._tally[bisect_left(self._bounds, number)] += 1
            self._sum += number
        self._count.notify()

    def tally(self) -> None:
        """Add to the counters what was observed since the last time."""
        with self._lock:
            tally, self._tally = self._tally, [0] * len(self._buckets)
            total, self._sum = self._sum, 0.0
        if not any(tally):
            return
        number = 0
        for new, bucket in zip(tally, self._buckets, strict=True):
            number += new
            bucket.add(number)
        self._count.add(number)
        self._total.add(total)


class Metrics:
    """Makes metrics, and writes those that change from a thread of its own, so that nobody waits for the server."""

    def __init__(self, pb_utils: Any) -> None:
        """Start without any; `pb_utils` is the model's `triton_python_backend_utils`."""
        self._kinds = pb_utils.MetricFamily
        self._families: dict[str, Any] = {}  # without its family a metric cannot be written
        self._counters: list[Value] = []
        self._gauges: list[Value] = []
        self._histograms: list[Histogram] = []
        self._changed, self._closed = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)
        self._thread.start()

    def gauge(self, name: str, description: str, **labels: str) -> Value:
        """A new gauge; those of one name differ in `labels`."""
        return self._value(name, description, labels, is_counter=False)

    def counter(self, name: str, description: str, **labels: str) -> Value:
        """A new counter; those of one name differ in `labels`."""
        return self._value(name, description, labels, is_counter=True)

    def histogram(self, name: str, description: str, bounds: Sequence[float], **labels: str) -> Histogram:
        """A new histogram of values up to each of `bounds`, ascending, and of all."""
        ends = [*(f"{bound:g}" for bound in bounds), "+Inf"]
        buckets = [self.counter(f"{name}_bucket", description, **labels, le=end) for end in ends]
        total, count = (self.counter(f"{name}_{part}", description, **labels) for part in ("sum", "count"))
        histogram = Histogram(bounds, buckets, total, count)
        self._histograms.append(histogram)
        return histogram

    def close(self) -> None:
        """Write the last changes and free the metrics: any that outlive the server crash the model's process."""
        self._closed.set()
        self._changed.set()
        self._thread.join()
        for value in [*self._counters, *self._gauges]:
            value.release()
        self._counters.clear()
        self._gauges.clear()
        self._families.clear()

    def _value(self, name: str, description: str, labels: Mapping[str, str], *, is_counter: bool) -> Value:
        kind = self._kinds.COUNTER if is_counter else self._kinds.GAUGE
        if name not in self._families:
            self._families[name] = self._kinds(f"chattts_{name}", description, kind)
        value = Value(self._families[name].Metric(labels=dict(labels)), self._changed, is_counter=is_counter)
        (self._counters if is_counter else self._gauges).append(value)
        return value

    def _run(self) -> None:
        while not self._closed.is_set():
            self._changed.wait()
            self._changed.clear()
            self._write()
            self._closed.wait(WRITE_S)
        self._write()

    def _write(self) -> None:
        try:
            for histogram in list(self._histograms):  # new ones may come
                histogram.tally()
            # Gauges last: who sees the server at rest sees all that it has counted.
            for value in [*self._counters, *self._gauges]:
                value.write()
        except Exception:  # whatever it is, requests matter more
            logger.exception("metrics could not be written")
