"""A real gateway process in front of a real tritonserver whose models tell what arrived."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from chattts_serving.launcher.running import RunningServer, running_server
from gateway.process import RunningGateway, running_gateway
from tests.client.conftest import FAKE_MODEL, refusing_url  # noqa: F401 - a fixture


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with running_server(FAKE_MODEL, log_path=tmp_path_factory.mktemp("server") / "tritonserver.log") as running:
        yield running


@pytest.fixture(scope="package")
def gateway(server: RunningServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    """Without keys, as on a workstation."""
    with running_gateway(server.grpc_url, tmp_path_factory.mktemp("gateway") / "gateway.log") as running:
        yield running
