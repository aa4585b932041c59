"""Limits of an HTTP connection: size of the head, number of tiny chunks, time to send, number of connections and requests.

uvicorn parses HTTP (in C, through httptools) and applies backpressure, but sets none of these limits. A request whose client has
left runs on until it notices, so requests are limited beside connections: otherwise clients that send a request and leave would
pile up work without bound.

A request may be answered before all of it has arrived, most often because it is refused. Its client is then read on, within
limits, and what it sends is dropped: a client that writes all before it reads would not see the answer otherwise.
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import Callable
from typing import Any, ClassVar

import httptools
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from app.http.handlers import error_response
from app.http.lingering import LingeringTransport, LingerLimits
from kernels.record import record

HEALTH = "/v2/health/"  # always answered, however many requests are running
TINY_BYTES = 1024  # shorter pieces of a body are counted: only chunked transfer coding makes many of them
TARGET_AUTHORITY = "target_authority"  # in a request's state: the host in its request line, where one is there
_ABSOLUTE = re.compile(rb"https?://([^/?#]*)(.*)", re.IGNORECASE | re.DOTALL)


_LINGER = LingerLimits()


@record
class ConnectionLimits:
    """Limits of all connections together, and of one request.

    connections: open at once. requests: answered at once. head_bytes: of request line and headers. headers: their number.
    head_s, body_s: time to send the whole head, and the whole body. chunks: pieces of a body shorter than TINY_BYTES.
    linger: how much is read of a client that has its answer.
    """

    connections: int = 1024
    requests: int = 512
    head_bytes: int = 64 * 1024
    headers: int = 256
    head_s: float = 10.0
    body_s: float = 300.0
    chunks: int = 65_536
    ahead_bytes: int = 1 << 18  # of a body kept before the application is woken to count them
    linger: LingerLimits = _LINGER


class Connection(HttpToolsProtocol):
    """One client's connection; `bounded` sets the limits and makes the set of those that linger."""

    limits = ConnectionLimits()
    lingering: ClassVar[set[LingeringTransport]] = set()
    transport: LingeringTransport

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._head_bytes = 0
        self._in_head, self._begun = True, False  # within the head of a request, or before it; whether a byte of it has come
        self._taken_bytes = 0
        self._chunks = 0
        self._stopped = (400, "request: not HTTP")
        self._timer: asyncio.TimerHandle | None = None
        self._running: RequestResponseCycle | None = None  # the request being answered, or answered last
        self._answered_early = False  # the rest of that request is read and dropped
        self._refusal = b""  # of a request behind the running one; nothing more is parsed

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept a connection, or refuse it at the limit."""
        super().connection_made(LingeringTransport(transport, self.loop, self.limits.linger, self.lingering))
        if len(self.connections) - len(self.lingering) > self.limits.connections:
            self._refuse(503, f"server: {self.limits.connections} connections are open, the limit; try again")
            return
        self._arm(self.limits.head_s, self._late, "request head")

    def connection_lost(self, exc: Exception | None) -> None:
        """Clean up after the client has gone."""
        self._disarm()
        self.transport.lost()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse received bytes, or drop them where nobody waits for them."""
        if self._answered_early or self._refusal or self.transport.is_closing():
            self.transport.drop(len(data))
        if self._refusal or self.transport.is_closing():
            return
        if self._in_head:
            self._head_bytes += len(data)
        self._unset_keepalive_if_required()
        self._parse(data)
        if self._in_head and self._head_bytes > self.limits.head_bytes and not self.transport.is_closing():
            self._refuse(431, f"request head: more than {self.limits.head_bytes} bytes, the limit")

    def _parse(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            try:
                self.parser.feed_data(rest)
                return
            except httptools.HttpParserError:
                self._refuse(*self._stopped)
                return
            except httptools.HttpParserUpgrade as end:  # of a request for another protocol, which is answered in this one
                rest = rest[end.args[0] :]

    def on_message_begin(self) -> None:
        """Begin a request."""
        super().on_message_begin()
        self._begun = True
        self._in_head, self._head_bytes, self._chunks, self._taken_bytes = True, 0, 0, 0
        self._arm(self.limits.head_s, self._late, "request head")

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
        """Stop the parser with a refusal."""
        self._stopped = (status, text)
        raise ValueError(text)

    def on_headers_complete(self) -> None:
        """End the head; the body follows."""
        if absolute := _ABSOLUTE.fullmatch(self.url):
            self.scope["state"][TARGET_AUTHORITY] = absolute[1].decode("latin-1")
            self.url = absolute[2] if absolute[2].startswith(b"/") else b"/" + absolute[2]
        super().on_headers_complete()
        self._in_head = False
        self._arm(self.limits.body_s, self._late, "request body")

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        """Pass a request to the application, or refuse it at the limit."""
        self._running, self._answered_early = cycle, False
        crowded = len(self.tasks) >= self.limits.requests and not cycle.scope["path"].startswith(HEALTH)
        chosen = self._crowded if crowded else app
        super()._start_asgi_task(cycle, _expecting(cycle, chosen) if cycle.waiting_for_100_continue else chosen)

    async def _crowded(self, scope: Any, receive: Any, send: Any) -> None:
        text = f"server: {self.limits.requests} requests are being answered, the limit; try again"
        await error_response(503, text)(scope, receive, send)

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
        self._in_head, self._begun, self._head_bytes = True, False, 0
        if self._answered_early:
            self._answered_early, self.transport.dropped_bytes = False, 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Go on to the next request, or to the rest of an answered one; at last say why the connection closes, where it does."""
        answered = self._running
        super().on_response_complete()
        if self.transport.is_closing() or self._running is not answered or answered is None:
            return
        if self._refusal:
            self._close_with(self._refusal)
        elif answered.more_body:
            self._answered_early = True
            self._arm(self.limits.linger.seconds, self.transport.cut)

    def shutdown(self) -> None:
        """Close the connection when its last request is answered; one whose head is on its way is refused."""
        if self._in_head and self._begun:
            self._refuse(503, "server: it is shutting down; try again")
        else:
            super().shutdown()

    def _arm(self, seconds: float, act: Callable[..., None], *arguments: object) -> None:
        self._disarm()
        self._timer = self.loop.call_later(seconds, act, *arguments)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _late(self, what: str) -> None:
        if self.transport.is_closing():
            return
        if self._begun:
            limit_s = self.limits.head_s if self._in_head else self.limits.body_s
            self._refuse(408, f"{what}: incomplete after {limit_s:g} s, the limit")
        else:
            self.transport.close()  # nothing was asked

    def _refuse(self, status: int, text: str) -> None:
        """Reply to the request being received without the application, and close.

        Requests before it are answered first. If the application's reply to it has begun, the connection only closes.
        """
        self._disarm()
        refusal = _reply(status, text)
        refused = None if self._in_head else self.cycle
        self.pipeline = deque(waiting for waiting in self.pipeline if waiting[0] is not refused)
        running = self._running
        if running is None or (running.response_complete and running is not refused):
            self._close_with(refusal)
        elif running is not refused:
            self._refusal = refusal
        else:
            begun = running.response_started
            running.disconnected = True
            running.message_event.set()
            self._close_with(b"" if begun else refusal)

    def _close_with(self, reply: bytes) -> None:
        self.transport.write(reply)
        self.transport.close()


def _reply(status: int, text: str) -> bytes:
    """Return an error's reply as bytes of HTTP, equal to what `error_response` makes."""
    response = error_response(status, text, {"Connection": "close"})
    head = b"".join(b"%b: %b\r\n" % header for header in response.raw_headers)
    return STATUS_LINE[status] + head + b"\r\n" + bytes(response.body)


def _expecting(cycle: RequestResponseCycle, app: ASGI3Application) -> ASGI3Application:
    """Return the application for a request that asks with "Expect: 100-continue" whether to send its body.

    After an answer that did not ask for the body, only the client knows whether the body follows, so the connection closes.
    """

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        async def told(message: Any) -> None:
            if message["type"] == "http.response.start" and cycle.waiting_for_100_continue:
                cycle.keep_alive = False
            await send(message)

        await app(scope, receive, told)

    return answer


def bounded(limits: ConnectionLimits) -> type[Connection]:
    """Return the protocol class for uvicorn with these limits."""
    return type("BoundedConnection", (Connection,), {"limits": limits, "lingering": set()})
