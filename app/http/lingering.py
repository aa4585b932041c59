"""Closing a connection so that the client can read the last reply, though it may still be sending.

A socket that is closed while received bytes wait in it, or that receives more of them, answers with a reset. A client that writes
its whole request before it reads then fails in its write and never sees why. So the service first shuts down only its sending
side, and drops what still arrives (RFC 9112, section 9.6).
"""

from __future__ import annotations

import asyncio
from typing import Any

from kernels.record import record

QUIET_S = 2.0  # without a byte from the client: what it was sending when it got the reply has arrived long before
CONNECTIONS = 256  # that are read only to be dropped; one more is closed at once, since each holds a file descriptor


@record
class LingerLimits:
    """How much is read of a client that has its answer. seconds: at most, while it sends. nbytes: at most."""

    seconds: float = 10.0
    nbytes: int = 64 * 2**20


class LingeringTransport(asyncio.Transport):
    """A connection whose `close` waits, within limits, until the client has closed its side too.

    Args: transport: the connection. lingering: the connections of this server that wait so, at most CONNECTIONS.
    dropped_bytes: received since the last answer and dropped.
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        loop: asyncio.AbstractEventLoop,
        limits: LingerLimits,
        lingering: set[LingeringTransport],
    ) -> None:
        super().__init__()
        self._transport, self._loop, self._limits, self._lingering = transport, loop, limits, lingering
        self.dropped_bytes = 0
        self._heard_s = self._ends_s = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def close(self) -> None:
        """End the reply, and close the connection when the client closes its side, is quiet for QUIET_S, or meets a limit."""
        if self.is_closing():
            return
        if len(self._lingering) >= CONNECTIONS or not self._transport.can_write_eof():
            self._transport.close()
            return
        self._lingering.add(self)
        self._heard_s = self._loop.time()
        self._ends_s = self._heard_s + self._limits.seconds
        try:
            self._transport.write_eof()
        except OSError:  # the client has reset the connection, so nothing can be lost any more
            self._transport.abort()
            return
        self.resume_reading()
        self._look()

    def is_closing(self) -> bool:
        """Whether `close` was called, or the client has left: there is nobody to write to."""
        return self in self._lingering or self._transport.is_closing()

    def drop(self, nbytes: int) -> None:
        """Take note of bytes that arrived for nobody, and cut the connection at the limit."""
        self.dropped_bytes += nbytes
        self._heard_s = self._loop.time()
        if self.dropped_bytes > self._limits.nbytes:
            self.cut()

    def cut(self) -> None:
        """Close at once. What was written is still sent; what the client sends from now on is answered with a reset."""
        self._transport.close()

    def lost(self) -> None:
        """Clean up after the connection has closed."""
        self._lingering.discard(self)
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        """Cut the connection if it was quiet or time is over, else look again then."""
        looks_s = min(self._ends_s, self._heard_s + QUIET_S)
        if looks_s <= self._loop.time():
            self.cut()
        else:
            self._timer = self._loop.call_at(looks_s, self._look)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Write, unless the connection is closing: then the application's last words come too late."""
        if not self.is_closing():
            self._transport.write(data)

    def pause_reading(self) -> None:
        """Stop reading."""
        if not self._transport.is_closing() and self._transport.is_reading():
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Read on."""
        if not self._transport.is_closing() and not self._transport.is_reading():
            self._transport.resume_reading()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return what the connection knows of itself, such as its addresses."""
        return self._transport.get_extra_info(name, default)
