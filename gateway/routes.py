"""The paths of the API."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, File, Form, Query, Request, Response, UploadFile, WebSocket
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from gateway import voices
from gateway.audio import FORMATS, FormatName
from gateway.batch import BATCH, BatchResponse
from gateway.batch_answers import BatchAnswer
from gateway.batch_request import BatchRequest
from gateway.errors import ErrorAnswer
from gateway.files import SAMPLES, written
from gateway.middleware import FILES
from gateway.protocol import SESSIONS
from gateway.request import MODEL, MODEL_ALIASES, SpeechRequest, check_model
from gateway.session import SpeechSession
from gateway.shared import Gateway, about, gateway_of
from gateway.speech import SpeechResponse

READY_TIMEOUT_S = 2.0


Here = Annotated[Gateway, Depends(gateway_of)]
NO: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorAnswer, "description": "The request is wrong."},
    "5XX": {"model": ErrorAnswer, "description": "It cannot be answered now."},
}
AUDIO: dict[str, Any] = {
    form.media_type: {"schema": {"type": "string", "format": "binary"}} for form in FORMATS.values()
}
SPOKEN: dict[int | str, dict[str, Any]] = {
    200: {"description": "Speech.", "content": AUDIO | {"text/event-stream": {"schema": {}}}}
}
ALL_SPOKEN: dict[int | str, dict[str, Any]] = {
    200: {
        "model": BatchAnswer,
        "description": "What became of each text.",
        "content": {
            "application/x-ndjson": {"schema": {}},
            "application/zip": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}
FILE: dict[int | str, dict[str, Any]] = {200: {"description": "A file.", "content": AUDIO}}
NOT_READY: dict[int | str, dict[str, Any]] = {
    503: {"description": "They do not.", "content": {"application/json": {"schema": {"type": "object"}}}}
}
router = APIRouter(responses=NO)


@router.post("/v1/audio/speech", response_class=Response, responses=SPOKEN, tags=["speech"])
async def speak(body: SpeechRequest, request: Request, here: Here) -> Response:
    """Say `input`; the answer begins while the model still speaks."""
    request.state.characters = len(body.text)
    if here.settings.log_text:
        request.state.text = body.text
    said_by = [await here.voices.resolved(name) for name in body.voice_names]
    return SpeechResponse(here, body, said_by, about=about(request), owner=request.state.owner)


@router.post(BATCH, response_class=Response, responses=ALL_SPOKEN, tags=["speech"])
async def speak_batch(body: BatchRequest, request: Request, here: Here) -> Response:
    """Say `items`, each a synthesis of its own that lets others go first; a wrong one fails alone."""
    request.state.characters = sum(map(len, body.texts))
    if here.settings.log_text:
        request.state.text = "\n".join(body.texts)
    return BatchResponse(here, body, about=about(request), owner=request.state.owner)


@router.post(FILES, response_class=Response, responses=FILE, openapi_extra=SAMPLES, tags=["speech"])
async def write_file(
    request: Request,
    here: Here,
    response_format: FormatName = "mp3",
    sample_rate: Annotated[int, Query(ge=8_000, le=48_000, description="of the samples, in Hz")] = 24_000,
) -> Response:
    """Samples that were spoken before, as a file. Nothing is spoken."""
    with here.access.synthesis(request.state.owner):
        data = await written(response_format, sample_rate, request.stream())
    return Response(data, headers={"x-ai-generated": "true"}, media_type=FORMATS[response_format].media_type)


@router.websocket(SESSIONS)
async def speak_while_it_is_written(socket: WebSocket, here: Here) -> None:
    """Say texts that come in pieces."""
    await SpeechSession(socket, here).run()


@router.get("/v1/models", tags=["models"])
async def list_models() -> dict[str, Any]:
    """The one model, and the names of OpenAI's that are taken for it."""
    return {"object": "list", "data": [_model(name) for name in (MODEL, *MODEL_ALIASES)]}


@router.get("/v1/models/{name:path}", tags=["models"])
async def find_model(name: str) -> dict[str, Any]:
    """One model."""
    if not name:  # a slash too many
        return await list_models()
    check_model(name)
    return _model(name)


@router.get("/v1/audio/voices", tags=["voices"])
async def list_voices(here: Here) -> dict[str, Any]:
    """The voices that have a name."""
    return voices.listed(await here.client.voices())


@router.post("/v1/audio/voices", tags=["voices"])
async def clone_voice(
    request: Request,
    here: Here,
    audio_sample: Annotated[UploadFile, File(description="up to 30 s of one speaker")],
    name: Annotated[str, Form(description="for people")],
    transcript: Annotated[str, Form(description="what is said in it")] = "",
) -> dict[str, Any]:
    """The voice of a recording. Its `id` is the voice: nothing is kept here."""
    with here.access.synthesis(request.state.owner):
        return await voices.clone(here.client, await audio_sample.read(), name, transcript)


@router.get("/health", tags=["health"])
async def health() -> dict[str, str]:
    """Whether the gateway runs."""
    return {"status": "ok"}


@router.get("/health/ready", responses=NOT_READY, tags=["health"])
async def ready(here: Here) -> Response:
    """Whether the models behind answer."""
    is_ready = await here.client.is_ready(READY_TIMEOUT_S)
    return JSONResponse({"status": "ready" if is_ready else "not ready"}, 200 if is_ready else 503)


@router.get("/metrics", include_in_schema=False)
async def scrape(here: Here) -> Response:
    """For Prometheus."""
    return Response(generate_latest(here.metrics.registry), media_type=CONTENT_TYPE_LATEST)


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "chattts-triton"}
