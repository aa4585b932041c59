"""Errors of the service and the HTTP status of every error. `app/http/handlers.py` makes replies of them.

EdgewiseError (kernels.errors)
├── RequestError          the service refuses a request before a model runs; carries its own status
└── UnbuiltError          a run was not started: the code for its shapes has to be built first. Never reaches a client

NotFoundError → 404, ConflictError and StalePlanError → 409, InvalidError and UnsupportedError → 400, CallerQueueFullError → 429,
DeviceLostError, LoadStoppedError, OutOfMemoryError, RunCancelledError, QueueFullError and StoreError → 503,
RunTimeoutError → 504. Messages name models, tensors and values, never paths of this host.
"""

from __future__ import annotations

from collections.abc import Mapping

from graph.errors import LoadStoppedError, RunCancelledError, RunTimeoutError
from kernels.errors import DeviceLostError, EdgewiseError, InvalidError, OutOfMemoryError, UnsupportedError
from scheduler.errors import CallerQueueFullError, ConflictError, NotFoundError, QueueFullError, StalePlanError, StoreError

CLIENT_GONE = 499  # nginx's number for it


class RequestError(EdgewiseError):
    """The service refuses a request. status: of the HTTP reply. headers: further headers of the reply, such as Retry-After."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.headers = dict(headers or {})


def refuse(message: str) -> RequestError:
    """Return a RequestError 400 with that message."""
    return RequestError(400, message)


class UnbuiltError(EdgewiseError):
    """A run was not started, because the code for its shapes has to be built first."""


_STATUS: tuple[tuple[type[EdgewiseError], int], ...] = (
    (NotFoundError, 404),
    (ConflictError, 409),
    (StalePlanError, 409),
    (StoreError, 503),
    (InvalidError, 400),
    (UnsupportedError, 400),
    (DeviceLostError, 503),
    (OutOfMemoryError, 503),
    (CallerQueueFullError, 429),
    (QueueFullError, 503),
    (LoadStoppedError, 503),
    (RunCancelledError, 503),
    (RunTimeoutError, 504),
)


def told(error: EdgewiseError) -> str:
    """Return what a caller of the service is told of an error. The log has `str(error)`, which may name a file of this host."""
    return error.told if isinstance(error, StoreError) else str(error)


def status_of(error: EdgewiseError) -> int:
    """Return the HTTP status of an error by its class; 500 for an internal error."""
    if isinstance(error, RequestError):
        return error.status
    return next((status for kind, status in _STATUS if isinstance(error, kind)), 500)
