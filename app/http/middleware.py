"""ASGI middleware: checks of Host, Origin and API key, limits of body and rate, and one log line for every request."""

from __future__ import annotations

import asyncio
import hmac
import time

import structlog
from starlette.requests import Request
from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.access.auth import COOKIE, Principal, authorise, read_cookie, sent_key
from app.access.directory import Directory
from app.access.held import HeldBytes
from app.access.rates import Rates
from app.errors import RequestError
from app.http.authority import host_of, is_same_origin
from app.http.connection import TARGET_AUTHORITY
from app.http.handlers import error_response
from app.service import Service
from app.watch.requests import Ended, choose_id, record_request
from kernels.record import record

PUBLIC = frozenset({"/v2/health/live", "/v2/health/ready", "/login"})
PUBLIC_FOLDER = "/static/"
UPLOAD = "/v1/models"  # POST: the body is written to disk as it arrives, not held in memory
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_CLOSE = {"Connection": "close"}


@record
class BodyLimits:
    """Limits of request bodies.

    protocol_bytes: of one request to infer or load. upload_bytes: of one upload. control_bytes: of any other request.
    """

    protocol_bytes: int
    upload_bytes: int
    control_bytes: int


class Guard:
    """Refuses unknown Host headers (DNS rebinding), cross-site writes, and bodies beyond their limits.

    allowed_hosts: as `authority.parse` spells them; None = all. together: what the bodies of all requests may take.
    """

    def __init__(self, app: ASGIApp, allowed_hosts: frozenset[str] | None, limits: BodyLimits, together: HeldBytes) -> None:
        self.app = app
        self.allowed_hosts = allowed_hosts
        self.limits = limits
        self.together = together

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on HTTP requests that meet the rules."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {key.decode("latin-1").lower(): value.decode("latin-1") for key, value in scope["headers"]}
        large = scope["path"].startswith("/v2/") and scope["path"].endswith(("/infer", "/load"))
        upload = scope["path"] == UPLOAD and scope["method"] == "POST"
        limits = self.limits
        limit = limits.protocol_bytes if large else limits.upload_bytes if upload else limits.control_bytes
        try:
            self._check(scope, headers.get("content-length", "0"), limit)
        except RequestError as refusal:
            await error_response(refusal.status, str(refusal), refusal.headers)(scope, receive, send)
            return
        received = held = 0

        async def limited() -> Message:
            nonlocal received, held
            message = await receive()
            size = len(message.get("body", b""))
            received += size
            if received > limit:
                raise _too_large(f"more than {limit}", limit)
            if upload:
                return message
            held += size
            self.together.take(size)
            return message

        try:
            await self.app(scope, limited, send)
        finally:
            self.together.give(held)

    def _check(self, scope: Scope, length: str, limit: int) -> None:
        """Raise RequestError 400, 403, 413 or 421 for a request that is refused before its body is looked at."""
        host = host_of(_sent(scope, b"host"), scope["http_version"], scope.get("state", {}).get(TARGET_AUTHORITY))
        if self.allowed_hosts is not None and (host is None or host.host not in self.allowed_hosts):
            raise RequestError(421, "Host header: not one of this server's names; see EDGEWISE_ALLOWED_HOSTS")
        if scope["method"] not in SAFE_METHODS:
            foreign = any(not is_same_origin(origin, host) for origin in _sent(scope, b"origin"))
            if foreign or not {"cross-site", "same-site"}.isdisjoint(_sent(scope, b"sec-fetch-site")):
                raise RequestError(403, "Origin header: requests from another site may not write")
        if length.isdigit() and (len(length) > 18 or int(length) > limit):
            raise _too_large(length[:20], limit)


def _sent(scope: Scope, name: bytes) -> list[str]:
    """Return every value that was sent of a header. name: in lower case."""
    return [value.decode("latin-1") for key, value in scope["headers"] if key.lower() == name]


def _too_large(size: str, limit: int) -> RequestError:
    return RequestError(413, f"body: {size} bytes, the limit is {limit}", _CLOSE)


class Authenticate:
    """Requires a key for all but PUBLIC paths, and counts requests against each caller's rate."""

    def __init__(self, app: ASGIApp, directory: Directory, rates: Rates) -> None:
        self.app = app
        self.directory = directory
        self.rates = rates

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Authenticate the caller and store it as `principal` in the request's state."""
        path = scope.get("path", "")
        if scope["type"] != "http" or path in PUBLIC or path.startswith(PUBLIC_FOLDER):
            await self.app(scope, receive, send)
            return
        headers = {key.decode("latin-1").lower(): value.decode("latin-1") for key, value in scope["headers"]}
        try:
            principal = await self._principal(scope, headers)
            key = principal.key
            self.rates.take(principal.account, key.rate_per_s if key else None)
        except RequestError as error:
            pages = "text/html" in headers.get("accept", "") and error.status == 401 and scope["method"] == "GET"
            reply = RedirectResponse("/login", 303) if pages else error_response(error.status, str(error), error.headers)
            await reply(scope, receive, send)
            return
        scope.setdefault("state", {})["principal"] = principal

        async def entitled() -> Message:
            await authorise(Request(scope))  # before FastAPI does: it reads the body first, also of those who may not send it
            return await receive()

        await self.app(scope, entitled, send)

    async def _principal(self, scope: Scope, headers: dict[str, str]) -> Principal:
        if text := sent_key(headers):
            return await self.directory.by_key(text)
        cookie = read_cookie(headers.get("cookie", ""), COOKIE)
        if cookie and (principal := await self.directory.by_cookie(cookie)) is not None and principal.key is not None:
            token = self.directory.sessions.form_token(cookie, principal.key).encode()
            proven = hmac.compare_digest(headers.get("x-csrf-token", "").encode(), token)
            scope.setdefault("state", {})["form_token"] = token.decode()
            if (
                scope["method"] in SAFE_METHODS or proven or scope["path"] == "/logout"
            ):  # whose route checks the token in its form
                return principal
            raise RequestError(403, "X-CSRF-Token header: missing or wrong, a page's session needs it to write")
        return await self.directory.local()


class RequestLog:
    """Gives every request an id, and logs and counts it when it ends."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app = app
        self.service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Time the request, and return its id as X-Request-ID."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id, started, status = _request_id(scope), time.perf_counter_ns(), 0
        scope.setdefault("state", {})["request_id"] = request_id

        async def labelled(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                extra = [(b"connection", b"close")] if self.service.health.draining else []
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode()), *extra]
            await send(message)

        structlog.contextvars.bind_contextvars(request_id=request_id)
        try:
            await self.app(scope, receive, labelled)
        except asyncio.CancelledError:  # by the server, after EDGEWISE_DRAIN_S
            if status:
                raise
            await error_response(503, "server: it is shutting down, this request took too long; try again")(
                scope, receive, labelled
            )
        finally:
            ended = Ended(_route(scope), scope["method"], scope["path"], status, time.perf_counter_ns() - started)
            record_request(self.service.metrics, ended, scope["state"].get("logged", {}))
            structlog.contextvars.clear_contextvars()


def _route(scope: Scope) -> str:
    """Return the declared path of the matched route. An included router's path lacks its prefix, which is added."""
    path: str = getattr(scope.get("route"), "path", "unmatched")
    return f"/v1{path}" if scope["path"].startswith("/v1/") and path != "unmatched" and not path.startswith("/v1") else path


def _request_id(scope: Scope) -> str:
    """Return the caller's X-Request-ID if it is well-formed, else a new id."""
    return choose_id(next((value.decode("latin-1") for key, value in scope["headers"] if key == b"x-request-id"), ""))
