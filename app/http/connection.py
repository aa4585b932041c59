"""Limits of an HTTP connection: size of the head, number of tiny chunks, time to send, number of connections and requests.

uvicorn parses HTTP (in C, through httptools) and applies backpressure, but sets none of these limits. A request whose client has
left runs on until it notices, so requests are limited beside connections: otherwise clients that send a request and leave would
pile up work without bound.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import orjson
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from app.http.handlers import error_response

HEALTH = "/v2/health/"  # always answered, however many requests are running
TINY_BYTES = 1024  # shorter pieces of a body are counted: only chunked transfer coding makes many of them


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Limits of all connections together, and of one request.

    connections: open at once. requests: answered at once. head_bytes: of request line and headers. headers: their number.
    head_s, body_s: time to send the whole head, and the whole body. chunks: pieces of a body shorter than TINY_BYTES.
    """

    connections: int = 1024
    requests: int = 512
    head_bytes: int = 64 * 1024
    headers: int = 256
    head_s: float = 10.0
    body_s: float = 300.0
    chunks: int = 65_536
    ahead_bytes: int = 1 << 18  # of a body kept before the application is woken to count them


class Connection(HttpToolsProtocol):
    """One client's connection; `bounded` sets the limits."""

    limits = ConnectionLimits()

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._head_bytes = 0
        self._in_head = True
        self._taken_bytes = 0
        self._chunks = 0
        self._stopped = (400, "request: not HTTP")
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept a connection, or refuse it at the limit."""
        super().connection_made(transport)
        if len(self.connections) > self.limits.connections:
            self._refuse(503, f"server: {self.limits.connections} connections are open, the limit; try again")
            return
        self._arm(self.limits.head_s, "request head")

    def connection_lost(self, exc: Exception | None) -> None:
        """Clean up after the client has gone."""
        self._disarm()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse received bytes."""
        if self.transport.is_closing():
            return
        if self._in_head:
            self._head_bytes += len(data)
        super().data_received(data)
        if self._in_head and self._head_bytes > self.limits.head_bytes and not self.transport.is_closing():
            self._refuse(431, f"request head: more than {self.limits.head_bytes} bytes, the limit")

    def on_message_begin(self) -> None:
        """Begin a request."""
        super().on_message_begin()
        self._in_head, self._head_bytes, self._chunks, self._taken_bytes = True, 0, 0, 0
        self._arm(self.limits.head_s, "request head")

    def on_url(self, url: bytes) -> None:
        """Count a part of the request line."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count a header."""
        self._count(len(name) + len(value))
        if len(self.headers) >= self.limits.headers:
            self._stop(431, f"request head: more than {self.limits.headers} headers, the limit")
        super().on_header(name, value)

    def _count(self, nbytes: int) -> None:
        self._taken_bytes += nbytes
        if self._taken_bytes > self.limits.head_bytes:
            self._stop(431, f"request head: more than {self.limits.head_bytes} bytes, the limit")

    def _stop(self, status: int, text: str) -> None:
        """Stop the parser, which then calls `send_400_response`."""
        self._stopped = (status, text)
        raise ValueError(text)

    def on_headers_complete(self) -> None:
        """End the head; the body follows."""
        self._in_head = False
        self._arm(self.limits.body_s, "request body")
        super().on_headers_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        """Pass a request to the application, or refuse it at the limit."""
        crowded = len(self.tasks) >= self.limits.requests and not cycle.scope["path"].startswith(HEALTH)
        super()._start_asgi_task(cycle, self._crowded if crowded else app)

    async def _crowded(self, scope: Any, receive: Any, send: Any) -> None:
        while (await receive()).get("more_body"):  # a client that still sends when the connection closes would not see the reply
            pass
        text = f"server: {self.limits.requests} requests are being answered, the limit; try again"
        await error_response(503, text, {"Retry-After": "1"})(scope, receive, send)

    def on_body(self, body: bytes) -> None:
        """Count and pass on a piece of the body."""
        if len(body) < TINY_BYTES:
            self._chunks += 1
            if self._chunks > self.limits.chunks:
                self._stop(400, f"request body: more than {self.limits.chunks} tiny chunks, the limit")
        if len(self.cycle.body) + len(body) > self.limits.ahead_bytes:
            super().on_body(body)  # which pauses reading and wakes the application
        elif not self.cycle.response_complete:
            self.cycle.body += body  # uvicorn stops, and wakes, with every 64 KiB

    def on_message_complete(self) -> None:
        """End the request."""
        self._disarm()
        self._in_head, self._head_bytes = True, 0
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002  uvicorn's own text
        """Reply to a request that cannot be parsed or that broke a limit."""
        self._refuse(*self._stopped)

    def _arm(self, seconds: float, what: str) -> None:
        self._disarm()
        self._timer = self.loop.call_later(seconds, self._late, f"{what}: incomplete after {seconds:g} s, the limit")

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
        """Reply without the application and close; only close if the application's reply has begun."""
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
    """Return the protocol class for uvicorn with these limits."""
    return type("BoundedConnection", (Connection,), {"limits": limits})
