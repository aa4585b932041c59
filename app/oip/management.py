"""The model repository extension: index, load and unload. Bodies may be empty, and of any content type."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
from typing import Any

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from app.access.auth import Scope, needs
from app.engine.port import Engine
from app.errors import RequestError, refuse
from app.models.loading import LoadRequest
from app.models.repository import State
from app.oip.codec import check_depth
from app.service import EnginePart, RepositoryPart, Serving
from app.settings import Settings
from app.watch.health import Health

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
async def index(request: Request, engine: EnginePart, repository: RepositoryPart) -> Response:
    """List every model version with its state. With `"ready": true` in the body, only those that are ready."""
    asked = await json_object(request, engine)
    only_ready = asked.get("ready", False)
    if not isinstance(only_ready, bool):
        raise refuse("request: ready needs to be true or false")
    rows = await engine.call(repository.index)
    return JSONResponse([row for row in rows if not only_ready or row.get("state") == State.READY])


@router.post("/v2/repository/models/{name:path}/load")
@needs(Scope.ADMIN)
async def load(request: Request, service: Serving, name: str) -> Response:
    """Load or reload a model. The reply is sent when the model is ready.

    Parameters in the body: `config`, a model configuration as JSON text that overrides the file beside the model, and
    `file:<version>/<path>`, files in base64 to load instead of the repository's.
    """
    require_control(service.settings, service.health)
    parameters = _parameters(await json_object(request, service.engine))
    asked = await service.engine.call(_load_request, name, parameters, service.settings.file_uploads)
    await asyncio.shield(service.loads.join(asked))  # goes on when the client leaves, so that a retry finds it done
    service.audit.record(request, "model.load", name)
    return Response()


@router.post("/v2/repository/models/{name:path}/unload")
@needs(Scope.ADMIN)
async def unload(request: Request, service: Serving, name: str) -> Response:
    """Unload a model. Running requests have EDGEWISE_DRAIN_S to finish; then they are answered 503, and their runs stopped."""
    require_control(service.settings, service.health)
    parameters = _parameters(await json_object(request, service.engine))
    for key, value in parameters.items():
        if key != "unload_dependents" or not isinstance(value, bool):
            raise refuse(f"unload: parameter {key[:40]!r} is not understood, need unload_dependents, true or false")
    service.engine.retire(await service.engine.call(service.repository.unload, name))
    service.audit.record(request, "model.unload", name)
    return Response()


def require_control(settings: Settings, health: Health) -> None:
    """Raise RequestError 503 if models may not be loaded or unloaded over HTTP, or the service is not running."""
    if not settings.repository_control:
        raise RequestError(503, "repository: loading and unloading over HTTP is switched off, see EDGEWISE_REPOSITORY_CONTROL")
    health.require_running()


def _parameters(asked: dict[str, Any]) -> dict[str, Any]:
    parameters = asked.get("parameters", {})
    if not isinstance(parameters, dict):
        raise refuse("request: parameters needs to be an object")
    return parameters


def _load_request(name: str, parameters: dict[str, Any], uploads: bool) -> LoadRequest:
    config = parameters.pop("config", None)
    if config is not None and not isinstance(config, str):
        raise refuse("load: config needs to be a string with the configuration as JSON")
    files = {}
    for key, value in parameters.items():
        if not key.startswith("file:"):
            raise refuse(f"load: parameter {key[:40]!r} is not understood, need config or file:<version>/<path>")
        if not uploads:
            raise refuse("load: files in load requests are switched off, see EDGEWISE_FILE_UPLOADS")
        if config is None:
            raise refuse("load: files need a config in the same request")
        files[key.removeprefix("file:")] = _decoded(value)
    digest = hashlib.sha256(repr((name, config, sorted(files.items()))).encode())
    return LoadRequest(name, config, files, digest.hexdigest())


def _decoded(value: object) -> bytes:
    if not isinstance(value, str):
        raise refuse("load: a file needs to be a string in base64")
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise refuse("load: a file is not base64") from None
