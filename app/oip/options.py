"""Trace and logging settings, and the shared memory routes, which are refused: no path is ever taken over the network."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from app.access.audit import caller_of
from app.access.auth import Scope, needs
from app.errors import RequestError
from app.logs import SETTINGS
from app.oip import calls
from app.oip.management import json_object
from app.service import Serving

router = APIRouter()


@router.get("/v2/trace/setting")
@router.get("/v2/models/{name}/trace/setting")
@needs(Scope.READ)
async def get_trace(service: Serving, name: str | None = None) -> dict[str, Any]:
    """Return the trace settings of the server, or those that apply to one model."""
    return calls.trace_settings(service, name)


@router.post("/v2/trace/setting")
@router.post("/v2/models/{name}/trace/setting")
@needs(Scope.ADMIN)
async def set_trace(request: Request, service: Serving, name: str | None = None) -> dict[str, Any]:
    """Change the given trace settings. null resets a model's setting to the server's, and the server's to its default."""
    return calls.set_trace_settings(service, caller_of(request), name, await json_object(request, service.engine))


@router.get("/v2/logging")
@needs(Scope.READ)
async def get_logging() -> dict[str, Any]:
    """Return the logging settings."""
    return SETTINGS.shown()


@router.post("/v2/logging")
@needs(Scope.ADMIN)
async def set_logging(request: Request, service: Serving) -> dict[str, Any]:
    """Change the given logging settings; null leaves a setting unchanged."""
    return calls.set_log_settings(service, caller_of(request), await json_object(request, service.engine))


@router.get("/v2/{kind}sharedmemory/status")
@router.get("/v2/{kind}sharedmemory/region/{region}/status")
@needs(Scope.INFER, Scope.READ)
async def shared_memory_status(kind: str, region: str | None = None) -> None:
    """Refuse with 501: shared memory is not supported."""
    raise _unsupported(kind)


@router.post("/v2/{kind}sharedmemory/region/{region}/register")
@router.post("/v2/{kind}sharedmemory/unregister")
@router.post("/v2/{kind}sharedmemory/region/{region}/unregister")
@needs(Scope.INFER, Scope.ADMIN)
async def shared_memory_change(kind: str, region: str | None = None) -> None:
    """Refuse with 501: shared memory is not supported."""
    raise _unsupported(kind)


def _unsupported(kind: str) -> RequestError:
    if kind not in ("system", "cuda"):
        return RequestError(404, "shared memory: need system or cuda")
    return calls.refuse_shared_memory(kind)
