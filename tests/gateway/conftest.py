"""A real gateway process in front of a real tritonserver whose models tell what arrived."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from chattts_serving.launcher.running import RunningServer, running_server
from gateway.process import RunningGateway, running_gateway
from tests.client.conftest import FAKE_MODEL, refusing_url  # noqa: F401 - a fixture
from tests.gateway.browsing import PATIENCE_MS, opened

FLAGS = ["--no-sandbox", "--autoplay-policy=no-user-gesture-required"]
FAKE_MICROPHONE = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One for all tests of a module; while it is there, no test can run an event loop: Playwright has its own."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("the page is tested in Chromium, and none is installed")
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        environment = os.environ | {"XDG_CONFIG_HOME": os.environ["XDG_CACHE_HOME"]}  # it writes into both
        browser = playwright.chromium.launch(executable_path=chromium, args=[*FLAGS, *FAKE_MICROPHONE], env=environment)
        yield browser
        browser.close()


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with running_server(FAKE_MODEL, log_path=tmp_path_factory.mktemp("server") / "tritonserver.log") as running:
        yield running


@pytest.fixture(scope="package")
def gateway(server: RunningServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    """Without keys, as on a workstation."""
    with running_gateway(server.grpc_url, tmp_path_factory.mktemp("gateway") / "gateway.log") as running:
        yield running


@pytest.fixture
def page(browser: Browser, gateway: RunningGateway) -> Iterator[Page]:
    with opened(browser, gateway.url) as page:
        expect(page.locator(".voice")).to_have_count(2)
        yield page
