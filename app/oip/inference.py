"""The inference route over HTTP. It bypasses FastAPI (see `DirectRoute`)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from app.access.auth import DirectRoute, Scope, needs
from app.engine.requests import Outcome
from app.errors import CLIENT_GONE, RequestError, refuse
from app.models.repository import Served
from app.oip import codec, compression, exchange
from app.oip.request import CodecLimits, InferRequest, answered, limits_of
from app.service import service_of
from app.settings import LOOPBACK
from scheduler.session import Session

HEADER_LENGTH = "Inference-Header-Content-Length"

T = TypeVar("T")


@needs(Scope.INFER)
async def infer(request: Request) -> Response:
    """Run a model on one request."""
    service = service_of(request)
    name, version = request.path_params["name"], request.path_params.get("version")
    reply, request.state.logged = await exchange.infer(service, name, version, _Exchange(request, limits_of(service.settings)))
    return reply


ROUTES = [
    DirectRoute(path, infer, methods=["POST"])
    for path in ("/v2/models/{name}/infer", "/v2/models/{name}/versions/{version}/infer")
]


class _Exchange:
    """A request over HTTP and its reply."""

    deadline_ns = None

    def __init__(self, request: Request, limits: CodecLimits) -> None:
        self.request_id: str = request.state.request_id
        self._request, self._limits, self._body = request, limits, b""

    async def receive(self) -> int:
        """Wait for the body. A compressed one counts as large, since its size is unknown."""
        self._body, headers = await self._request.body(), self._request.headers
        if "content-encoding" in headers:
            return exchange.LARGE_BYTES + 1
        return codec.slow_bytes(self._body, codec.header_length(headers.get(HEADER_LENGTH), len(self._body)))

    def decode(self, served: Served, session: Session) -> InferRequest:
        """Decode the body."""
        headers = self._request.headers
        plain = codec.decompress(self._body, headers.get("content-encoding", ""), self._limits.body_bytes)
        json_bytes = codec.header_length(headers.get(HEADER_LENGTH), len(plain))
        return codec.decode(plain, json_bytes, self._limits) if json_bytes else _raw(plain, served, session)

    def encode(self, asked: InferRequest, served: Served, outcome: Outcome) -> Response:
        """Encode the reply."""
        head: dict[str, Any] = {"model_name": served.name, "model_version": served.version}
        if asked.id:
            head["id"] = asked.id
        head["parameters"] = {"plan_id": outcome.plan_id, "batch_rows": outcome.batch_rows}
        body, length = codec.encode(head, answered(asked, served, outcome))
        return _reply(self._request, body, length)

    async def attend(self, work: Awaitable[T]) -> T:
        """Await the work, but cancel it and raise RequestError 499 when the client closes the connection."""
        here = asyncio.current_task()
        watching, left = True, False

        def leave(received: asyncio.Future[Any]) -> None:
            nonlocal left
            if watching and here is not None and not received.cancelled():
                left = True
                here.cancel()

        gone = asyncio.ensure_future(self._request.receive())  # after the body, only a disconnect can be received
        gone.add_done_callback(leave)
        try:
            return await work
        except asyncio.CancelledError:
            if here is not None and left and not here.uncancel():
                raise RequestError(CLIENT_GONE, "request: the client closed the connection") from None
            raise
        finally:
            watching = False
            gone.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await gone


def _raw(body: bytes, served: Served, session: Session) -> InferRequest:
    if len(session.inputs) != 1:
        raise refuse(f"raw body: model '{served.name}' has {len(session.inputs)} inputs, need exactly one")
    (port,) = session.inputs
    return codec.decode_raw(body, port.name, port.dtype, port.dims or ())


def _reply(request: Request, body: bytes, json_bytes: int | None) -> Response:
    headers = {} if json_bytes is None else {HEADER_LENGTH: str(json_bytes)}
    media_type = "application/json" if json_bytes is None else "application/octet-stream"
    near = request.client is None or request.client.host in LOOPBACK
    encoding = compression.choose(request.headers.get("accept-encoding", ""), near)
    if encoding != "identity":
        body = compression.compress(body, encoding)
        headers["Content-Encoding"] = encoding
    return Response(body, media_type=media_type, headers=headers)
