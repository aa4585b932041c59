"""The HTTP client of an agent: it bounds and checks every answer, and repeats requests that got none.

A refusal raises an error of its own kind. A request that could not be delivered (no connection, a server that is overloaded or
restarting) raises DeskError, and `insist` tries again after a pause that doubles each time and is random, so that agents do not
try in step.
"""

from __future__ import annotations

import hashlib
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

import httpx
import structlog
from pydantic import BaseModel, ValidationError

from app.jobs.execution import DeskError
from kernels.errors import EdgewiseError, InvalidError
from kernels.private import private_opener
from scheduler.errors import LeaseLostError, NotFoundError

log = structlog.get_logger("edgewise.agent")

FIRST_PAUSE_S: Final = 0.5
LAST_PAUSE_S: Final = 60.0
ANSWER_S: Final = 30.0
MAX_ANSWER_BYTES: Final = 16 << 20
MAX_MODEL_BYTES: Final = 4 << 30
_AGAIN: Final = frozenset({408, 425, 429, 502, 503, 504})

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)


class RefusedError(EdgewiseError):
    """The service understood the request and refused it; repeating it would not help."""


class ServiceClient:
    """A client of one service. server: its http(s):// address. key: sent as a bearer token. closing: ends every retry."""

    def __init__(self, server: str, key: str | None, closing: threading.Event) -> None:
        parts = urlsplit(server)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InvalidError(f"agent: server is {server[:200]!r}, need an address like http://host:port")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._client = httpx.Client(base_url=server, headers=headers, timeout=ANSWER_S, follow_redirects=False)
        self._closing = closing

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def ask(self, answer: type[M], method: str, path: str, *, wait_s: float = 0.0, **content: Any) -> M:
        """Send one request and parse its answer as the model `answer`.

        wait_s: how long the service may take beyond the usual time. content: `json` or `content`, as httpx takes them.
        Raises: DeskError; NotFoundError, LeaseLostError or RefusedError for a refusal.
        """
        timeout = httpx.Timeout(ANSWER_S, read=ANSWER_S + wait_s)
        try:
            with self._client.stream(method, path, timeout=timeout, **content) as reply:
                body = _bounded_body(reply)
        except httpx.TransportError as error:
            raise DeskError(f"agent: {method} {path}: {error or type(error).__name__}") from None
        _check(reply.status_code, body, f"{method} {path}")
        try:
            return answer.model_validate_json(body)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            raise RefusedError(f"agent: {method} {path}: {first['msg']} in the answer, is this an Edgewise service?") from None

    def download(self, path: str, target: Path) -> str:
        """Download a file to `target` and return its SHA-256. Raises DeskError; NotFoundError or RefusedError for a refusal."""
        digest, received = hashlib.sha256(), 0
        try:
            with self._client.stream("GET", path) as reply, open(target, "wb", opener=private_opener) as file:
                if reply.status_code != 200:
                    _check(reply.status_code, _bounded_body(reply), f"GET {path}")
                    raise RefusedError(f"agent: GET {path}: status is {reply.status_code}, need 200")
                for chunk in reply.iter_bytes(1 << 20):
                    received += len(chunk)
                    if received > MAX_MODEL_BYTES:
                        raise RefusedError(f"agent: GET {path}: more than {MAX_MODEL_BYTES} bytes, the limit")
                    digest.update(chunk)
                    file.write(chunk)
        except httpx.TransportError as error:
            raise DeskError(f"agent: GET {path}: {error or type(error).__name__}") from None
        return digest.hexdigest()

    def insist(self, send: Callable[[], T]) -> T:
        """Repeat a request until it is answered. Raises DeskError when the agent is closed first, and every refusal."""
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                return send()
            except DeskError as error:
                if self._closing.is_set():
                    raise
                waited_s = random.uniform(pause_s / 2, pause_s)  # noqa: S311  spreads the agents, guards nothing
                log.warning("service not reached", reason=str(error), again_in_s=round(waited_s, 2))
                if self._closing.wait(waited_s):
                    raise
                pause_s = min(2 * pause_s, LAST_PAUSE_S)


def _bounded_body(reply: httpx.Response) -> bytes:
    body = bytearray()
    for chunk in reply.iter_bytes():
        body += chunk
        if len(body) > MAX_ANSWER_BYTES:
            raise RefusedError(f"agent: answer of more than {MAX_ANSWER_BYTES} bytes, the limit")
    return bytes(body)


class _ErrorBody(BaseModel):
    error: str


def _check(status: int, body: bytes, what: str) -> None:
    """Raise the error that a status other than success stands for."""
    if 200 <= status < 300:
        return
    try:
        reason = _ErrorBody.model_validate_json(body).error[:1000]
    except ValidationError:
        reason = "no reason given"
    text = f"agent: {what}: {status}, {reason}"
    if status in _AGAIN:
        raise DeskError(text)
    if status == 404:
        raise NotFoundError(text)
    if status == 409:
        raise LeaseLostError(text)
    raise RefusedError(text)
