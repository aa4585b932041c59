"""Running the service: an HTTP server with limits that shuts down in two phases.

On SIGTERM readiness fails at once; for the grace period requests are still served, while load balancers send new ones elsewhere,
and each reply asks to close its connection. Then the server stops accepting, lets running requests end, and unloads its models.
SIGINT skips the grace period, and a second SIGTERM ends it.
"""

from __future__ import annotations

import asyncio
import signal
import socket
from types import FrameType

import structlog
import uvicorn
from fastapi import FastAPI

from app.engine.memory import settle
from app.http.connection import ConnectionLimits, bounded
from app.http.lingering import LingerLimits
from app.service import Service
from app.settings import Settings

log = structlog.get_logger("edgewise.service")


class Server(uvicorn.Server):
    """uvicorn's server, with a grace period before it stops accepting."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service
        self._signals = 0
        self._interrupted = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Note a signal to shut down."""
        self._signals += 1
        self._interrupted |= sig == signal.SIGINT
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Fail readiness, wait for the grace period, then stop accepting and let requests end."""
        grace_s = 0.0 if self._interrupted else self._service.settings.grace_s
        self._service.health.begin_drain()
        self._service.repository.stop("the server is stopping")
        log.info("draining", grace_s=grace_s, running=self._service.engine.pending)
        ends = asyncio.get_running_loop().time() + grace_s
        while asyncio.get_running_loop().time() < ends and self._signals < 2 and not self.force_exit:
            await asyncio.sleep(0.05)
        await super().shutdown(sockets)
        ends = asyncio.get_running_loop().time() + self._service.settings.linger_s
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
    Server(configure(app, settings), service).run()
