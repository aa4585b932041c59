"""The application: `create_app(settings)` assembles the service, its routes and its middleware."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import structlog
from fastapi import Depends, FastAPI, Request
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.responses import JSONResponse, Response

from app.access.auth import Scope, authorise, needs
from app.errors import RequestError
from app.http import authority, handlers
from app.http.middleware import Authenticate, BodyLimits, Guard, RequestLog
from app.oip import inference
from app.oip import routes as oip
from app.pages import login
from app.pages import routes as pages
from app.pages.shell import STATIC, StaticPages
from app.service import Service, Serving, Transport
from app.settings import Settings
from app.v1 import devices, exchange, jobs, live, models, plans, profiles, queries, strategies, uploads
from app.watch.spans import Telemetry, over_http
from kernels.version import VERSION
from scheduler.jobs import KINDS, Kind

log = structlog.get_logger("edgewise.service")

START_S = 0.5  # for models that still load when the service stops


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Start and stop the service. Models load in the background, so that /v2/health/live answers at once."""
    service: Service = app.state.service
    service.engine.bind()
    for transport in service.transports:
        await transport.start()
    starting = asyncio.get_running_loop().run_in_executor(None, service.start)
    starting.add_done_callback(_report)
    lasting = (service.keep_journal(), service.directory.keep(), service.plan_follower.keep(service.settings.plan_refresh_s))
    keeping = [asyncio.ensure_future(work) for work in lasting]
    for task in keeping:
        task.add_done_callback(_report)
    yield
    for task in keeping:
        task.cancel()
    await asyncio.wait([starting], timeout=START_S)
    await service.stop_transports(service.settings.drain_s)
    service.engine.stop()
    await asyncio.to_thread(service.close)


def _grpc(service: Service) -> Transport:
    """Return the server of gRPC. Raises RequestError 500 without the `grpc` extra."""
    try:
        from app.rpc.server import RpcServer  # noqa: PLC0415  a service without gRPC does without the extra
    except ImportError as error:
        raise RequestError(500, f"EDGEWISE_GRPC_PORT: gRPC needs {error.name}, install edgewise[grpc]") from None
    return RpcServer(service)


def _report(started: asyncio.Future[None]) -> None:
    """Log a failure of background work at once, not only when the service stops."""
    if not started.cancelled() and (error := started.exception()) is not None:
        log.error("background work failed", exc_info=error)


def create_app(
    settings: Settings | None = None, telemetry: Telemetry | None = None, kinds: Mapping[str, Kind] = KINDS
) -> FastAPI:
    """Build the application. Nothing is loaded before it starts.

    settings: from the environment if None. telemetry: replaces the one that the settings define. kinds: of jobs that can be run.
    """
    settings = settings or Settings()
    telemetry = telemetry or over_http(settings.otlp_endpoint)
    app = FastAPI(
        title="Edgewise",
        version=VERSION,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,  # served below, by a route that declares its scope
        lifespan=_lifespan,
        dependencies=[Depends(authorise)],
        telemetry=telemetry.config,
    )
    app.state.service = service = Service(settings, telemetry, kinds)
    if settings.grpc_port is not None:
        service.transports.append(_grpc(service))
    handlers.install(app)
    app.router.routes += inference.ROUTES  # first, since most requests are for them
    app.include_router(oip.router, tags=["Open Inference Protocol"])
    for part in (models, devices, plans, strategies):
        app.include_router(part.router, prefix="/v1", tags=["Control"])
    app.include_router(uploads.router, prefix="/v1", tags=["Control"])
    app.include_router(
        queries.router, prefix="/v1", tags=["Profiles"]
    )  # before "profiles/{number}", which would match "profiles/query"
    app.include_router(profiles.router, prefix="/v1", tags=["Profiles"])
    app.include_router(exchange.router, prefix="/v1", tags=["Exchange"])
    app.include_router(live.router, prefix="/v1", tags=["Control"])
    app.include_router(jobs.router, prefix="/v1/jobs", tags=["Jobs"])
    app.include_router(pages.router, include_in_schema=False)
    app.include_router(login.router, include_in_schema=False)
    app.add_api_route("/metrics", _metrics, include_in_schema=False)
    app.add_api_route("/openapi.json", _openapi, include_in_schema=False)
    app.mount("/static", StaticPages(directory=STATIC), "static")
    bodies = BodyLimits(settings.max_body_bytes, settings.max_upload_bytes, settings.max_control_bytes)
    app.add_middleware(Authenticate, directory=service.directory, rates=service.rates)
    hosts = None if settings.host_names is None else frozenset(map(authority.allowed, settings.host_names))
    app.add_middleware(Guard, allowed_hosts=hosts, limits=bodies, together=service.held)
    app.add_middleware(RequestLog, service=service)
    return app


@needs(Scope.READ)
async def _metrics(service: Serving) -> Response:
    return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)


@needs(Scope.INFER, Scope.READ)
async def _openapi(request: Request) -> Response:
    return JSONResponse(request.app.openapi())
