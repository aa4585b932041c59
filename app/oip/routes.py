"""The protocol's read-only routes (health, metadata, configuration, statistics), and the router of all but inference."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.responses import JSONResponse, Response

from app.access.auth import Scope, needs
from app.oip import calls, management, options
from app.service import HealthPart, RepositoryPart, Serving

router = APIRouter()


@router.get("/v2/health/live")
@needs()
async def live() -> dict[str, bool]:
    """Tell that the process is alive."""
    return {"live": True}


@router.get("/v2/health/ready")
@needs()
async def ready(health: HealthPart) -> Response:
    """Tell whether requests should be sent to this server. Otherwise the reply is 503 with the reason."""
    health.require_ready()
    return JSONResponse({"ready": True, **health.detail()})


@router.get("/v2")
@router.get("/v2/", include_in_schema=False)
@needs(Scope.INFER, Scope.READ)
async def server_metadata() -> dict[str, Any]:
    """Return the server's name, its version, and the protocol extensions that it implements."""
    return calls.server_metadata()


@router.get("/v2/models")
@needs(Scope.INFER, Scope.READ)
async def models(repository: RepositoryPart) -> dict[str, list[str]]:
    """List the names of the served models."""
    return {"models": sorted({served.name for served in repository.models})}


@router.get("/v2/models/stats")
@router.get("/v2/models/{name}/stats")
@router.get("/v2/models/{name}/versions/{version}/stats")
@needs(Scope.INFER, Scope.READ)
async def statistics(service: Serving, name: str | None = None, version: str | None = None) -> dict[str, Any]:
    """Return counts and durations of requests, of every model or of one, since the start."""
    return calls.statistics(service, name, version)


@router.get("/v2/models/{name}/ready")
@router.get("/v2/models/{name}/versions/{version}/ready")
@needs(Scope.INFER, Scope.READ)
async def model_ready(service: Serving, name: str, version: str | None = None) -> dict[str, Any]:
    """Tell whether a model can run. Otherwise the reply is 404 or 503 with the reason."""
    return {"name": calls.check_model_ready(service, name, version), "ready": True}


@router.get("/v2/models/{name}/config")
@router.get("/v2/models/{name}/versions/{version}/config")
@needs(Scope.INFER, Scope.READ)
async def configuration(service: Serving, name: str, version: str | None = None) -> dict[str, Any]:
    """Return how a model is served, as the protocol's model configuration."""
    return calls.configuration(service, name, version)


@router.get("/v2/models/{name}")
@router.get("/v2/models/{name}/versions/{version}")
@needs(Scope.INFER, Scope.READ)
async def model_metadata(service: Serving, name: str, version: str | None = None) -> dict[str, Any]:
    """Return a model's versions, inputs and outputs."""
    return calls.model_metadata(service, name, version)


router.include_router(management.router)
router.include_router(options.router)
