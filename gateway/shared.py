"""What the paths of a gateway share."""

from __future__ import annotations

from dataclasses import dataclass

from chattts_client import AsyncTTSClient
from chattts_client.tracing import About, is_traceparent
from starlette.requests import HTTPConnection

from gateway.access import Access
from gateway.metrics import Metrics
from gateway.settings import Settings
from gateway.voices import ServerVoices


@dataclass(frozen=True)
class Gateway:
    """One gateway."""

    settings: Settings
    client: AsyncTTSClient
    voices: ServerVoices
    access: Access
    metrics: Metrics


async def gateway_of(connection: HTTPConnection) -> Gateway:
    """The gateway that a request came to."""
    found: Gateway = connection.app.state.gateway
    return found


def about(connection: HTTPConnection, part: str = "") -> About:
    """What the server is told of a request that came to the gateway; `part` is added to its id."""
    traceparent = connection.headers.get("traceparent", "")
    return About(connection.state.request_id + part, traceparent if is_traceparent(traceparent) else "")
