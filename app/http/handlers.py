"""Error replies: the same JSON body `{"error": "<text>"}` for every route, or a page for browsers."""

from __future__ import annotations

from collections.abc import Mapping

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response

from app.errors import CLIENT_GONE, RequestError, status_of, told
from app.pages.shell import shell
from kernels.errors import EdgewiseError, exhausted
from scheduler.errors import StoreError

log = structlog.get_logger("edgewise.http")

_NO_PAGES = ("/v1/", "/v2/", "/static/")
_TITLES = {403: "Not allowed", 404: "Not found", 503: "Not available now"}


def error_response(status: int, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """Return the JSON reply of an error."""
    return JSONResponse({"error": message}, status, _complete(status, headers))


def _complete(status: int, headers: Mapping[str, str] | None) -> dict[str, str]:
    """Return the headers of an error's reply. A 503 says when to try again: after a second where nothing else is known."""
    return ({"Retry-After": "1"} if status == 503 else {}) | dict(headers or {})


def _reply(request: Request, status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    """Return an error as a page if the client accepts HTML and asked for a page, else as JSON."""
    page = "text/html" in request.headers.get("accept", "") and not request.url.path.startswith(_NO_PAGES)
    if not page:
        return error_response(status, message, headers)
    reply = shell(request, "error.html", status, title=_TITLES.get(status, "That did not work"), message=message)
    reply.headers.update(_complete(status, headers))
    return reply


async def _edgewise(request: Request, error: Exception) -> Response:
    if not isinstance(error, EdgewiseError):
        raise error
    if isinstance(error, StoreError):
        log.error("database", path=request.url.path, reason=str(error))
    return _reply(request, status_of(error), told(error), error.headers if isinstance(error, RequestError) else None)


async def _no_memory(request: Request, error: Exception) -> Response:
    """Reply to a request that needed more memory than the system had left, wherever that was; the process goes on."""
    if not isinstance(error, MemoryError):
        raise error
    log.error("out of memory", path=request.url.path, exc_info=error)
    return await _edgewise(request, exhausted(f"{request.method} {request.url.path}", error))


async def _http(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    cause = error.__cause__  # FastAPI answers 400 to whatever happens while it reads a body, and keeps what that was
    if isinstance(cause, EdgewiseError):
        return await _edgewise(request, cause)
    if isinstance(cause, MemoryError):
        return await _no_memory(request, cause)
    if isinstance(cause, ClientDisconnect):
        return await _gone(request, cause)
    return _reply(request, error.status_code, f"{request.method} {request.url.path}: {error.detail}", error.headers)


async def _validation(request: Request, error: Exception) -> Response:
    if not isinstance(error, RequestValidationError):
        raise error
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    return _reply(request, 400, f"{place}: {first['msg']}")


async def _gone(request: Request, error: Exception) -> Response:
    """Return a reply for the log alone: the client has closed the connection."""
    return error_response(CLIENT_GONE, f"{request.method} {request.url.path}: the client closed the connection")


async def _unexpected(request: Request, error: Exception) -> Response:
    log.error("unexpected", path=request.url.path, exc_info=error)
    close = {"Connection": "close"}  # which uvicorn does after an exception: a client may not send its next request into that
    return _reply(request, 500, "internal error, the server's log has the details", close)


def install(app: FastAPI) -> None:
    """Register the handlers with the application."""
    app.add_exception_handler(EdgewiseError, _edgewise)
    app.add_exception_handler(MemoryError, _no_memory)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(RequestValidationError, _validation)
    app.add_exception_handler(ClientDisconnect, _gone)
    app.add_exception_handler(Exception, _unexpected)
