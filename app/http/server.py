"""Running the service: an HTTP server with limits that shuts down in two phases.

On SIGTERM readiness fails at once; for the grace period requests are still served, while load balancers send new ones elsewhere,
and each reply asks to close its connection. Then the server stops accepting, lets running requests end, and unloads its models.
SIGINT skips the grace period, and a second SIGTERM ends it. What still runs after the drain is stopped, and a process that
does not end then is ended by force.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import os
import signal
import socket
import sys
import threading
from types import FrameType

import psutil
import structlog
import uvicorn
from fastapi import FastAPI

from app.engine.memory import settle
from app.engine.threads import share_interpreter
from app.http.connection import ConnectionLimits, bounded
from app.http.lingering import LingerLimits
from app.service import Service
from app.settings import Settings

log = structlog.get_logger("edgewise.service")

LAST_READ_S = 1.0  # for clients to read why their requests were cancelled, once all work has ended
EXIT_S = 4.0  # after the grace period and the drain: the process is ended
EXIT_CODE = 70  # of a process that is ended so: "internal software error" in sysexits.h
GIL_S = 0.5  # later still, for a process whose threads do not let go of the interpreter


class ExitGuard:
    """Ends this process at a set time, also while a thread of it computes in native code. It cannot be called off."""

    def arm(self, seconds: float) -> None:
        """End the process that many seconds from now, with EXIT_CODE; with code 1 where a thread does not let go of the GIL."""
        faulthandler.dump_traceback_later(seconds + GIL_S, exit=True)  # on a thread that needs no GIL
        timer = threading.Timer(seconds, self._end)
        timer.daemon = True
        timer.start()

    def _end(self) -> None:
        log.error("process ended by force", reason="work did not stop in time", threads=[t.name for t in threading.enumerate()])
        sys.stderr.flush()
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        os._exit(EXIT_CODE)


class Server(uvicorn.Server):
    """uvicorn's server, with a grace period before it stops accepting. guard: ends the process if it does not end by itself."""

    def __init__(self, config: uvicorn.Config, service: Service, guard: ExitGuard | None = None) -> None:
        super().__init__(config)
        self._service, self._guard = service, guard
        self._signals = 0
        self._interrupted = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Note a signal to shut down."""
        self._signals += 1
        self._interrupted |= sig == signal.SIGINT
        if self._guard is not None and self._signals == 1:
            self._guard.arm(self._grace_s + self._service.settings.drain_s + EXIT_S)
        super().handle_exit(sig, frame)

    @property
    def _grace_s(self) -> float:
        return 0.0 if self._interrupted else self._service.settings.grace_s

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Fail readiness, wait for the grace period, then stop accepting and let requests end."""
        grace_s = self._grace_s
        self._service.begin_drain(grace_s + self._service.settings.drain_s)
        log.info("draining", grace_s=grace_s, running=self._service.engine.pending)
        ends = asyncio.get_running_loop().time() + grace_s
        while asyncio.get_running_loop().time() < ends and self._signals < 2 and not self.force_exit:
            await asyncio.sleep(0.05)
        others = asyncio.ensure_future(self._service.stop_transports(self._service.settings.drain_s))
        await super().shutdown(sockets)
        await others
        ends = asyncio.get_running_loop().time() + min(self._service.settings.linger_s, LAST_READ_S)
        while self.server_state.connections and asyncio.get_running_loop().time() < ends and not self.force_exit:
            await asyncio.sleep(0.05)  # clients read why their requests were cancelled
        log.info("stopped")


def configure(app: FastAPI, settings: Settings) -> uvicorn.Config:
    """Return uvicorn's configuration."""
    limits = ConnectionLimits(
        settings.max_connections,
        settings.max_requests,
        settings.max_head_bytes,
        head_s=settings.head_timeout_s,
        body_s=settings.body_timeout_s,
        linger=LingerLimits(settings.linger_s, settings.linger_bytes),
    )
    return uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=bounded(limits),
        ws="none",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=settings.keep_alive_s,
        timeout_graceful_shutdown=settings.drain_s,
    )


def run(app: FastAPI, settings: Settings) -> None:
    """Serve until a signal ends the process."""
    service: Service = app.state.service
    settle()
    share_interpreter()
    Server(configure(app, settings), service, ExitGuard()).run()
