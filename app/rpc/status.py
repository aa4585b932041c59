"""The status of gRPC that stands for every error, as `app/http/handlers.py` has that of HTTP."""

from __future__ import annotations

from typing import Any, Final

import grpc
import structlog

from app.errors import CLIENT_GONE, RequestError, status_of, told
from kernels.errors import EdgewiseError, exhausted
from kernels.record import record
from scheduler.errors import StoreError

log = structlog.get_logger("edgewise.grpc")

MAX_TEXT: Final = 2000  # characters of an error's text: clients bound the metadata that carries it

_CODES: Final[dict[int, Any]] = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    408: grpc.StatusCode.DEADLINE_EXCEEDED,
    409: grpc.StatusCode.FAILED_PRECONDITION,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    CLIENT_GONE: grpc.StatusCode.CANCELLED,
    501: grpc.StatusCode.UNIMPLEMENTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}


@record
class Refusal:
    """What a client is told of an error. metadata: trailing, such as retry-after."""

    code: Any
    text: str
    metadata: tuple[tuple[str, str], ...] = ()


def refusal_of(error: Exception, path: str) -> Refusal:
    """Return what a client is told of an error, and log those that are the server's own. path: of the method."""
    if isinstance(error, MemoryError):
        log.error("out of memory", path=path, exc_info=error)
        error = exhausted(path, error)
    if not isinstance(error, EdgewiseError):
        log.error("unexpected", path=path, exc_info=error)
        return Refusal(grpc.StatusCode.INTERNAL, "internal error, the server's log has the details")
    if isinstance(error, StoreError):
        log.error("database", path=path, reason=str(error))
    status = status_of(error)
    wait = error.headers.get("Retry-After") if isinstance(error, RequestError) else None
    wait = wait or ("1" if status == 503 else None)
    code = _CODES.get(status, grpc.StatusCode.INTERNAL)
    return Refusal(code, told(error)[:MAX_TEXT], () if wait is None else (("retry-after", wait),))
