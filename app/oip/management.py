"""The model repository extension: index, load and unload. Bodies may be empty, and of any content type."""

from __future__ import annotations

import base64
import binascii
from typing import Any

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from app.access.audit import caller_of
from app.access.auth import Scope, needs
from app.engine.port import Engine
from app.errors import refuse
from app.oip import calls
from app.oip.codec import check_depth
from app.service import Serving

MAX_DEPTH = 100
SMALL_BYTES = 16 * 1024  # of JSON; larger bodies are decoded off the event loop

router = APIRouter()


async def json_object(request: Request, engine: Engine) -> dict[str, Any]:
    """Return the body as a JSON object; an empty body is an empty object. Raises RequestError 400."""
    body = await request.body()
    return _object(body) if len(body) <= SMALL_BYTES else await engine.call(_object, body)


def _object(body: bytes) -> dict[str, Any]:
    if not body.strip():
        return {}
    check_depth(body, MAX_DEPTH)
    try:
        found = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError) as error:
        raise refuse(f"request: not JSON, {str(error)[:200]}") from None
    if not isinstance(found, dict):
        raise refuse(f"request: it is a JSON {type(found).__name__}, need an object")
    return found


@router.post("/v2/repository/index")
@needs(Scope.READ)
async def index(request: Request, service: Serving) -> Response:
    """List every model version with its state. With `"ready": true` in the body, only those that are ready."""
    asked = await json_object(request, service.engine)
    only_ready = asked.get("ready", False)
    if not isinstance(only_ready, bool):
        raise refuse("request: ready needs to be true or false")
    return JSONResponse(await calls.index(service, only_ready=only_ready))


@router.post("/v2/repository/models/{name:path}/load")
@needs(Scope.ADMIN)
async def load(request: Request, service: Serving, name: str) -> Response:
    """Load or reload a model. The reply is sent when the model is ready.

    Parameters in the body: `config`, a model configuration as JSON text that overrides the file beside the model, and
    `file:<version>/<path>`, files in base64 to load instead of the repository's.
    """
    parameters = _parameters(await json_object(request, service.engine))
    await calls.load(service, caller_of(request), name, parameters, _decoded)
    return Response()


@router.post("/v2/repository/models/{name:path}/unload")
@needs(Scope.ADMIN)
async def unload(request: Request, service: Serving, name: str) -> Response:
    """Unload a model. Running requests have EDGEWISE_DRAIN_S to finish; then they are answered 503, and their runs stopped."""
    await calls.unload(service, caller_of(request), name, _parameters(await json_object(request, service.engine)))
    return Response()


def _parameters(asked: dict[str, Any]) -> dict[str, Any]:
    parameters = asked.get("parameters", {})
    if not isinstance(parameters, dict):
        raise refuse("request: parameters needs to be an object")
    return parameters


def _decoded(value: object) -> bytes:
    if not isinstance(value, str):
        raise refuse("load: a file needs to be a string in base64")
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise refuse("load: a file is not base64") from None
