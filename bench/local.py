"""Run the service in this process on a free port, for tests, benchmarks and screenshots."""

import contextlib
import signal
import socket
import threading
from collections.abc import Iterator, Mapping

import httpx
from fastapi import FastAPI

from app.http.server import Server, configure
from app.main import create_app
from app.settings import Settings
from bench.waiting import until
from scheduler.jobs import KINDS, Kind


def free_port() -> int:
    """Return a port on which no process listens at the moment."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def answers(client: httpx.Client, path: str) -> bool:
    """Return whether the path answers with 200. The answer is False while the service does not listen yet."""
    try:
        return client.get(path).status_code == 200
    except httpx.TransportError:
        return False


@contextlib.contextmanager
def serving(
    settings: Settings, app: FastAPI | None = None, *, kinds: Mapping[str, Kind] = KINDS, port: int = 0, wait: bool = True
) -> Iterator[httpx.Client]:
    """Run uvicorn in a thread until the block ends. port: 0 = a free one. wait: for readiness; otherwise only for liveness."""
    port = port or free_port()
    served = app or create_app(settings, kinds=kinds)
    config = configure(served, settings.model_copy(update={"port": port, "host": "127.0.0.1"}))
    server = Server(config, served.state.service)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            until(lambda: answers(client, f"/v2/health/{'ready' if wait else 'live'}"))
            yield client
    finally:
        server.handle_exit(signal.SIGINT, None)
        thread.join()
