"""What locust's statistics hold: one entry for each way to the server and length of text, and those named here.

Entries of requests count towards locust's line "Aggregated". First audio and RTF are measures of requests that are
counted already, so they have entries and stay out of that line: there, requests would count three times.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from chattts_client.errors import TTSError

from bench.load import kind_of
from chattts_serving.audio import SAMPLE_RATE

FIRST_AUDIO = "first audio"  # ms until the first samples of a stream
RTF = "RTF x 1000"  # of a request: 1000 * seconds until its end / seconds of audio
LEFT = "left early"  # requests whose callers went away; they have no time
TEXT = "{} text"  # ms until the end of the answer, by length of the text
MEASURES = (FIRST_AUDIO, RTF)

NO_AUDIO = "NO_AUDIO"  # kind of error: an answer without a sample
BYTES_PER_SAMPLE = 4  # float32; locust's "content length" of a request is that of its samples
BYTES_PER_AUDIO_S = BYTES_PER_SAMPLE * SAMPLE_RATE

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Heard:
    """An answer as its caller heard it.

    Attributes:
        latency_s: from the moment at which the request was due to the end of the answer.
        first_s: to its first samples; None where the answer came as a whole.
        num_samples: all in all.
    """

    latency_s: float
    first_s: float | None
    num_samples: int


class Recorder:
    """Writes what became of requests into the statistics of one locust environment."""

    def __init__(self, environment: Any, way: str) -> None:
        """`way` is how the requests go to the server: the type of the entries."""
        self._environment, self._way = environment, way

    def heard(self, length: str, heard: Heard) -> None:
        """Count an answer; without a sample it is a failure."""
        if not heard.num_samples:
            return self._request(TEXT.format(length), None, 0, NO_AUDIO)
        self._request(TEXT.format(length), 1e3 * heard.latency_s, BYTES_PER_SAMPLE * heard.num_samples, None)
        self._measure(RTF, 1e3 * heard.latency_s * SAMPLE_RATE / heard.num_samples)
        if heard.first_s is not None:
            self._measure(FIRST_AUDIO, 1e3 * heard.first_s)
        return None

    def failed(self, length: str, error: TTSError) -> None:
        """Count an error by its kind; its time would make the answers look faster or slower than they are."""
        logger.debug("%s: %s", kind_of(error), error)
        self._request(TEXT.format(length), None, 0, kind_of(error))

    def left(self) -> None:
        """Count a request that its caller left."""
        self._request(LEFT, None, 0, None)

    def _request(self, name: str, time_ms: float | None, num_bytes: int, error: str | None) -> None:
        self._environment.events.request.fire(
            request_type=self._way,
            name=name,
            response_time=time_ms,
            response_length=num_bytes,
            exception=error,
            context={},
        )

    def _measure(self, name: str, value: float) -> None:
        self._environment.stats.get(name, self._way).log(value, 0)
