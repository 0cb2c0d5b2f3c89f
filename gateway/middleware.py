"""What holds for every request: who may ask, before its body is read, a bound on its size, a line in the log.

A WebSocket is one that lasts: refused as others are, or answered 101.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Mapping
from urllib.parse import SplitResult, urlsplit

from chattts_client.errors import shown
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.access import Access
from gateway.errors import GatewayError
from gateway.metrics import Metrics
from gateway.settings import Settings

BODY_PAUSE_S = 10.0  # between two parts of a body
REQUEST_ID = re.compile(r"[\w.:-]{1,64}", re.ASCII)
ABSOLUTE = re.compile(r"^https?://[^/]*/?", re.IGNORECASE)  # of a request as proxies write it, which h11 leaves whole
SWITCHED = 101  # to a WebSocket
ANSWERED = ("http", "websocket")  # kinds of ASGI's scopes
BEGINNINGS = ("http.response.start", "websocket.accept", "websocket.http.response.start")  # of an answer
LEFT = 499  # the client went before it was answered, as NGINX writes it
FILES, VOICES, METRICS = "/v1/audio/files", "/v1/audio/voices", "/metrics"
PRIVATE = re.compile(r"/v1/|/metrics$")  # paths that want a key
log = logging.getLogger("gateway")


class Guarded:
    """Lets in who may ask: by the header Host, by the page that sends a form, by key."""

    def __init__(self, app: ASGIApp, settings: Settings, access: Access) -> None:
        """`access` knows the keys."""
        self._app, self._settings, self._access = app, settings, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] in ANSWERED:
            try:
                self._check(scope)
            except GatewayError as error:
                await error.response()(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        hosts, host = self._settings.allowed_hosts, headers.get("host", "")
        named = _split(f"//{host}")
        if hosts and (named is None or named.hostname not in hosts):
            message = f"the header Host is {shown(host)}; allowed is {', '.join(hosts)} (--allowed-host adds names)"
            raise GatewayError(400, message, "unknown_host")
        origin = headers.get("origin")
        # A page of another site may have a browser send forms and open WebSockets here. It cannot send a key that it
        # does not know.
        method = scope.get("method", "POST")
        if method == "POST" and not self._settings.keys and origin and not self._may_call(origin, host):
            message = f"pages of {shown(origin)} may not call (--cors-origin lets them)"
            raise GatewayError(403, message, "unknown_origin")
        public = {VOICES: self._settings.public_voices, METRICS: self._settings.public_metrics}
        is_public = method == "GET" and public.get(scope["path"], False)
        if PRIVATE.match(scope["path"]) and not is_public:
            scope["state"]["owner"] = self._access.owner(headers.get("authorization"))

    def _may_call(self, origin: str, host: str) -> bool:
        allowed, page = self._settings.cors_origins, _split(origin)
        return "*" in allowed or origin in allowed or (page is not None and page.netloc == host)


class Headed:
    """Answers HEAD wherever GET is answered; the server leaves the body out."""

    def __init__(self, app: ASGIApp) -> None:
        """`app` need not know HEAD."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return
        got = {**scope, "method": "GET"}
        await self._app(got, receive, send)
        scope["route"] = got.get("route")


class Bounded:
    """Refuses bodies that are too large, whatever their headers say, and those that stop coming."""

    def __init__(self, app: ASGIApp, most: int, of_paths: Mapping[str, int]) -> None:
        """`most` bytes, but `of_paths` have their own."""
        self._app, self._most, self._of_paths = app, most, of_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        most = self._of_paths.get(scope["path"], self._most)
        too_large = GatewayError(413, f"the body is too large; allowed are {most} bytes", "too_large")
        declared = Headers(scope=scope).get("content-length", "")
        if declared.isdigit() and int(declared) > most:
            await too_large.response()(scope, receive, send)
            return
        num_bytes, is_read, is_answered = 0, False, False
        refused: GatewayError | None = None

        async def bounded() -> Message:
            nonlocal num_bytes, is_read, refused
            if is_read:
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), BODY_PAUSE_S)
            except (TimeoutError, asyncio.TimeoutError):  # two classes until Python 3.11
                refused = GatewayError(408, f"nothing of the body came for {BODY_PAUSE_S:g} s", "timeout")
                raise refused from None
            num_bytes += len(message.get("body", b""))
            is_read = not message.get("more_body", False)
            if num_bytes > most:
                refused = too_large
                raise refused
            return message

        async def answer(message: Message) -> None:
            """What the application makes of a body that broke off is not the truth."""
            nonlocal is_answered
            if refused is None:
                await send(message)
            elif not is_answered:
                is_answered = True
                await refused.response()(scope, receive, send)

        await self._app(scope, bounded, answer)


class Logged:
    """Gives each request an id and writes a line about it: never its text, unless the path says so."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        """`metrics` count the answers."""
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] not in ANSWERED:
            await self._app(scope, receive, send)
            return
        scope["path"] = ABSOLUTE.sub("/", scope["path"])
        sent = Headers(scope=scope).get("x-request-id", "")
        request_id = sent if REQUEST_ID.fullmatch(sent) else f"req_{secrets.token_hex(8)}"
        scope.setdefault("state", {})["request_id"] = request_id
        began, status = time.perf_counter(), LEFT

        async def named(message: Message) -> None:
            nonlocal status
            if message["type"] in BEGINNINGS:
                status = message.get("status", SWITCHED)
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            await self._app(scope, receive, named)
        except Exception:
            if status != LEFT:
                raise  # the connection breaks off
            log.exception("failed", extra={"fields": {"request_id": request_id}})
            error = GatewayError(500, "the gateway failed; its log says more", "internal_error")
            await error.response()(scope, receive, named)
        finally:
            self._write(scope, status, time.perf_counter() - began)

    def _write(self, scope: Scope, status: int, seconds: float) -> None:
        state = scope["state"]
        route = getattr(scope.get("route"), "path", "other")
        self._metrics.requests.labels(route, str(status)).inc()
        method = scope.get("method", "GET")
        fields = {"request_id": state["request_id"], "method": method, "path": scope["path"]}
        fields |= {"status": status, "seconds": round(seconds, 4)}
        fields |= {name: state[name] for name in ("owner", "characters", "text") if name in state}
        log.info("request", extra={"fields": fields})


def _split(url: str) -> SplitResult | None:
    """None where it is no address."""
    try:
        return urlsplit(url)
    except ValueError:
        return None
