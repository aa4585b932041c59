"""A connection that gives up on clients which never come to the point: bounds on heads, tiny chunks, time, and their number.

uvicorn parses HTTP (in C, through httptools) and applies backpressure; it sets no bound on any of these itself. A request whose
client left goes on until it notices, so requests are counted beside connections: clients that ask and leave would otherwise pile
up as many as they can send.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import orjson
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from app.http.handlers import error_response

HEALTH = "/v2/health/"  # answered however many other requests are: it says that the service lives
TINY_BYTES = 1024  # pieces of a body that are shorter are counted: only chunked coding makes many of them


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """requests: that are answered at once. head_s, body_s: to send all of a request's head, and all of its body.

    head_bytes: request line and headers.
    """

    connections: int = 1024
    requests: int = 512
    head_bytes: int = 64 * 1024
    headers: int = 256
    head_s: float = 10.0
    body_s: float = 300.0
    chunks: int = 65_536
    ahead_bytes: int = 1 << 18  # of a body that are kept before who reads it is woken, and counts them


class Connection(HttpToolsProtocol):
    """One client; `bounded` sets the limits."""

    limits = ConnectionLimits()

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._head_bytes = 0
        self._in_head = True
        self._taken_bytes = 0
        self._chunks = 0
        self._stopped = (400, "request: it is no HTTP")
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a client, or say that there are too many."""
        super().connection_made(transport)
        if len(self.connections) > self.limits.connections:
            self._refuse(503, f"server: {self.limits.connections} connections are open, the limit; try again")
            return
        self._arm(self.limits.head_s, "request head")

    def connection_lost(self, exc: Exception | None) -> None:
        """The client went."""
        self._disarm()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what came."""
        if self.transport.is_closing():
            return
        if self._in_head:
            self._head_bytes += len(data)
        super().data_received(data)
        if self._in_head and self._head_bytes > self.limits.head_bytes and not self.transport.is_closing():
            self._refuse(431, f"request head: more than {self.limits.head_bytes} bytes, the limit")

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self._in_head, self._head_bytes, self._chunks, self._taken_bytes = True, 0, 0, 0
        self._arm(self.limits.head_s, "request head")

    def on_url(self, url: bytes) -> None:
        """A part of the request line."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header."""
        self._count(len(name) + len(value))
        if len(self.headers) >= self.limits.headers:
            self._stop(431, f"request head: more than {self.limits.headers} headers, the limit")
        super().on_header(name, value)

    def _count(self, nbytes: int) -> None:
        self._taken_bytes += nbytes
        if self._taken_bytes > self.limits.head_bytes:
            self._stop(431, f"request head: more than {self.limits.head_bytes} bytes, the limit")

    def _stop(self, status: int, text: str) -> None:
        """Stop the parser, which then asks for the answer to give."""
        self._stopped = (status, text)
        raise ValueError(text)

    def on_headers_complete(self) -> None:
        """The head is whole; the body follows."""
        self._in_head = False
        self._arm(self.limits.body_s, "request body")
        super().on_headers_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        """Answer a request, or refuse it without a look at it."""
        crowded = len(self.tasks) >= self.limits.requests and not cycle.scope["path"].startswith(HEALTH)
        super()._start_asgi_task(cycle, self._crowded if crowded else app)

    async def _crowded(self, scope: Any, receive: Any, send: Any) -> None:
        while (await receive()).get("more_body"):  # who still sends when the connection closes would not see the answer
            pass
        text = f"server: {self.limits.requests} requests are being answered, the limit; try again"
        await error_response(503, text, {"Retry-After": "1"})(scope, receive, send)

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        if len(body) < TINY_BYTES:
            self._chunks += 1
            if self._chunks > self.limits.chunks:
                self._stop(400, f"request body: more than {self.limits.chunks} tiny chunks, the limit")
        if len(self.cycle.body) + len(body) > self.limits.ahead_bytes:
            super().on_body(body)  # which stops reading, and wakes who takes it
        elif not self.cycle.response_complete:
            self.cycle.body += body  # uvicorn stops, and wakes, with every 64 KiB

    def on_message_complete(self) -> None:
        """The request is whole."""
        self._disarm()
        self._in_head, self._head_bytes = True, 0
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002  uvicorn's own text
        """Answer what cannot be parsed, or was stopped by a bound."""
        self._refuse(*self._stopped)

    def _arm(self, seconds: float, what: str) -> None:
        self._disarm()
        self._timer = self.loop.call_later(seconds, self._late, f"{what}: not whole after {seconds:g} s, the limit")

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _late(self, text: str) -> None:
        if self.transport is not None and not self.transport.is_closing():
            if self._head_bytes or not self._in_head:
                self._refuse(408, text)
            else:
                self.transport.close()  # nothing was asked

    def _refuse(self, status: int, text: str) -> None:
        """Answer without the application, and close. Once its reply has begun there is nothing left to say."""
        self._disarm()
        if self.cycle is None or not self.cycle.response_started or self.cycle.response_complete:
            body = orjson.dumps({"error": text})
            retry = b"retry-after: 1\r\n" if status == 503 else b""
            head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n%b\r\n" % (len(body), retry)
            self.transport.write(STATUS_LINE[status] + head + body)
        if self.cycle is not None:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.close()


def bounded(limits: ConnectionLimits) -> type[Connection]:
    """The protocol class for uvicorn, with these limits."""
    return type("BoundedConnection", (Connection,), {"limits": limits})
