"""What the paths of a gateway share."""

from __future__ import annotations

from dataclasses import dataclass

from chattts_client import AsyncTTSClient
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
