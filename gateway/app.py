"""The application: the paths of the API, the page, and what holds for all of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from chattts_client import AsyncTTSClient, TTSError
from chattts_client.errors import shown
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import FileResponse, JSONResponse
from starlette.exceptions import HTTPException

from gateway.access import Access
from gateway.batch import BATCH
from gateway.errors import GatewayError, from_client
from gateway.files import MAX_SAMPLES_BYTES
from gateway.metrics import Metrics
from gateway.middleware import FILES, VOICES, Bounded, Guarded, Headed, Logged
from gateway.request import wrong_field
from gateway.routes import router
from gateway.settings import Settings
from gateway.shared import Gateway
from gateway.voices import ServerVoices

PAGE = Path(__file__).parent / "page"
MAX_JSON_BYTES = 2**19  # 20,000 characters are up to 240 KB as JSON has them, the id of a cloned voice 64 KB
MAX_BATCH_BYTES = 2**22  # 100,000 characters are up to 1.2 MB
MULTIPART_BYTES = 2**14  # around an uploaded recording
# Scripts and styles of this server alone; sounds and pictures that the page makes itself.
PAGE_HEADERS = {
    "content-security-policy": "default-src 'self'; media-src 'self' blob: mediastream:; img-src 'self' data: blob:; "
    "object-src 'none'; base-uri 'none'; frame-ancestors 'none'; form-action 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


def create_app(settings: Settings) -> FastAPI:
    """The gateway as an ASGI application."""
    client, metrics = AsyncTTSClient(settings.triton, timeout=settings.timeout_s), Metrics()
    access = Access(settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with client:
            yield

    app = FastAPI(
        title="ChatTTS",
        description="Speech by ChatTTS behind OpenAI's API.",
        lifespan=lifespan,
        docs_url=None,  # its page loads scripts from elsewhere
        redoc_url=None,
        exception_handlers={
            GatewayError: _gateway_error,
            TTSError: _client_error,
            RequestValidationError: _validation_error,
            HTTPException: _http_error,
        },
    )
    app.state.gateway = Gateway(settings, client, ServerVoices(client, settings.voice_aliases), access, metrics)
    app.include_router(router)
    for path, file in _page_files().items():
        app.add_api_route(path, _sender(file), include_in_schema=False)
    of_paths = {
        BATCH: MAX_BATCH_BYTES,
        FILES: MAX_SAMPLES_BYTES,
        VOICES: settings.max_upload_bytes + MULTIPART_BYTES,
    }
    app.add_middleware(Bounded, most=MAX_JSON_BYTES, of_paths=of_paths)
    app.add_middleware(Guarded, settings=settings, access=access)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.cors_origins),
            allow_methods=["GET", "HEAD", "POST"],
            allow_headers=["*"],  # OpenAI's own client sends a dozen
            allow_private_network=True,
            expose_headers=[
                "retry-after",
                "x-ai-generated",
                "x-ignored",
                "x-request-id",
                "x-sample-rate",
                "x-seed",
                "x-warning",
            ],
        )
    app.add_middleware(Headed)
    app.add_middleware(Logged, metrics=metrics)  # the outermost
    return app


def _page_files() -> dict[str, Path]:
    """Path -> file: of those that are there, so that no other can be asked for."""
    files = {f"/{path.relative_to(PAGE).as_posix()}": path for path in PAGE.rglob("*") if path.is_file()}
    return {("/" if path == "/index.html" else path): file for path, file in files.items()}


def _sender(file: Path) -> Callable[[], Awaitable[FileResponse]]:
    async def send() -> FileResponse:
        return FileResponse(file, headers=PAGE_HEADERS)

    return send


async def _gateway_error(_: Request, error: Any) -> JSONResponse:
    found: GatewayError = error
    return found.response()


async def _client_error(_: Request, error: Any) -> JSONResponse:
    return from_client(error).response()


async def _validation_error(request: Request, error: Any) -> JSONResponse:
    """The first of the fields that are wrong."""
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return GatewayError(400, "the body is no JSON", "invalid_json").response()
    allowed = ("multipart/form-data",) if request.scope["path"] == VOICES else ("application/json",)
    sent = request.headers.get("content-type", "")
    if not sent.startswith(allowed) and (first["type"] == "missing" or len(first["loc"]) == 1):
        message = f"the header Content-Type is {shown(sent) if sent else 'missing'}; allowed is {allowed[0]}"
        return GatewayError(400, message, "invalid_content_type").response()
    return wrong_field({**first, "loc": first["loc"][1:]}).response()


async def _http_error(_: Request, error: Any) -> JSONResponse:
    return GatewayError(error.status_code, str(error.detail), headers=error.headers).response()
