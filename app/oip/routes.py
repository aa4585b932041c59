"""The protocol's read-only routes (health, metadata, configuration, statistics), and the router of all but inference."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from app.access.auth import Scope, needs
from app.errors import RequestError
from app.models.config import PLATFORM, model_config
from app.models.datatypes import datatype_of
from app.oip import management, options
from app.service import HealthPart, RepositoryPart, Serving
from graph.ir import Port

EXTENSIONS = (
    "classification",
    "model_repository",
    "model_repository(unload_dependents)",
    "schedule_policy",
    "model_configuration",
    "binary_tensor_data",
    "parameters",
    "statistics",
    "trace",
    "logging",
)

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
async def server_metadata(request: Request) -> dict[str, Any]:
    """Return the server's name, its version, and the protocol extensions that it implements."""
    return {"name": "edgewise", "version": request.app.version, "extensions": list(EXTENSIONS)}


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
    repository = service.repository
    try:
        found = (
            repository.models
            if name is None
            else repository.versions(name)
            if version is None
            else [repository.find(name, version)]
        )
    except RequestError as error:
        raise RequestError(400, str(error)) from None  # the status that the statistics extension defines
    rows = []
    for served in found:
        memory_bytes = 0 if served.session is None else service.engine.memory_bytes(served.session)
        row = service.statistics.of(served.name, served.version).shown(served.name, served.version, memory_bytes)
        row["batch_curves"] = [] if served.session is None else service.engine.batch_curves(served.session)
        rows.append(row)
    return {"model_stats": rows}


@router.get("/v2/models/{name}/ready")
@router.get("/v2/models/{name}/versions/{version}/ready")
@needs(Scope.INFER, Scope.READ)
async def model_ready(repository: RepositoryPart, health: HealthPart, name: str, version: str | None = None) -> dict[str, Any]:
    """Tell whether a model can run. Otherwise the reply is 404 or 503 with the reason."""
    served, _ = repository.ready(name, version)
    health.require_model_ready(served.name)
    return {"name": served.name, "ready": True}


@router.get("/v2/models/{name}/config")
@router.get("/v2/models/{name}/versions/{version}/config")
@needs(Scope.INFER, Scope.READ)
async def configuration(repository: RepositoryPart, name: str, version: str | None = None) -> dict[str, Any]:
    """Return how a model is served, as the protocol's model configuration."""
    served, session = repository.ready(name, version)
    versions = [other.version for other in repository.versions(name)]
    return model_config(served.name, versions, served.override, served.rules, session)


@router.get("/v2/models/{name}")
@router.get("/v2/models/{name}/versions/{version}")
@needs(Scope.INFER, Scope.READ)
async def model_metadata(repository: RepositoryPart, name: str, version: str | None = None) -> dict[str, Any]:
    """Return a model's versions, inputs and outputs."""
    served, session = repository.ready(name, version)
    return {
        "name": served.name,
        "versions": [other.version for other in repository.versions(name)],
        "platform": PLATFORM,
        "inputs": [_tensor(port) for port in session.inputs],
        "outputs": [_tensor(port) for port in session.outputs],
    }


def _tensor(port: Port) -> dict[str, Any]:
    shape = [dim if isinstance(dim, int) else -1 for dim in port.dims or ()]
    return {"name": port.name, "datatype": datatype_of(port.dtype), "shape": shape}


router.include_router(management.router)
router.include_router(options.router)
