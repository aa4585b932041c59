"""The routes of the pages. Each returns a frame that a JavaScript module fills with figures from `/v1` (`shell.py`)."""

from __future__ import annotations

import contextlib

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse

from app.access.auth import Scope, needs
from app.errors import RequestError
from app.pages.shell import shell
from app.service import Serving
from app.v1.jobs import Number
from app.v1.models import describe
from app.v1.uploads import refusal
from scheduler.errors import StoreError

router = APIRouter()


@router.get("/")
@needs(Scope.READ)
async def overview(request: Request, service: Serving) -> HTMLResponse:
    """Show the served models, devices, traffic and health."""
    return shell(request, "overview.html", models=[describe(served) for served in service.repository.models])


@router.get("/models/{name}")
@needs(Scope.READ)
async def model(request: Request, service: Serving, name: str, version: str | None = None) -> HTMLResponse:
    """Show one model: its runs, and views of the selected run."""
    served, session = service.repository.ready(name, version)
    with contextlib.suppress(RequestError, StoreError):  # the page itself shows what it cannot read
        await service.quick_calls.call(service.storage.remember, served.name, session.model)  # runs are found by its digest
    return shell(request, "model.html", model=describe(served))


@router.get("/plans")
@needs(Scope.READ)
async def plans(request: Request) -> HTMLResponse:
    """List the stored plans."""
    return shell(request, "plans.html")


@router.get("/plans/{plan_id}")
@needs(Scope.READ)
async def plan(request: Request, plan_id: str) -> HTMLResponse:
    """Show one plan: the strategy of every step, the candidates it beat, and estimates of other choices."""
    return shell(request, "plan.html", plan_id=plan_id)


@router.get("/compare")
@needs(Scope.READ)
async def compare(request: Request) -> HTMLResponse:
    """Compare runs side by side."""
    return shell(request, "compare.html")


@router.get("/devices")
@needs(Scope.READ)
async def devices(request: Request) -> HTMLResponse:
    """List the known devices."""
    return shell(request, "devices.html")


@router.get("/devices/{fingerprint}")
@needs(Scope.READ)
async def device(request: Request, fingerprint: str) -> HTMLResponse:
    """Show the measured profile of one device."""
    return shell(request, "device.html", fingerprint=fingerprint)


@router.get("/jobs")
@needs(Scope.READ)
async def jobs(request: Request) -> HTMLResponse:
    """List jobs: queued, running and finished."""
    return shell(request, "jobs.html")


@router.get("/jobs/{number}")
@needs(Scope.READ)
async def job(request: Request, number: Number) -> HTMLResponse:
    """Show one job, with its progress while it runs."""
    return shell(request, "job.html", number=number)


@router.get("/regressions")
@needs(Scope.READ)
async def regressions(request: Request, service: Serving) -> HTMLResponse:
    """Show a model's measured runs over time, and which became slower."""
    return shell(request, "regressions.html", models=_names(service))


@router.get("/pareto")
@needs(Scope.READ)
async def pareto(request: Request, service: Serving) -> HTMLResponse:
    """Show a model's plans by error and latency."""
    return shell(request, "pareto.html", models=_names(service))


@router.get("/upload")
@needs(Scope.READ)
async def upload(request: Request, service: Serving) -> HTMLResponse:
    """Show the form that uploads a model."""
    settings = service.settings
    limit_bytes = min(settings.max_upload_bytes, settings.max_model_bytes)
    return shell(request, "upload.html", limit_bytes=limit_bytes, refusal=refusal(settings))


@router.get("/models/{name}/work")
@needs(Scope.READ)
async def work(request: Request, service: Serving, name: str, version: str | None = None) -> HTMLResponse:
    """Show the forms that count, measure, plan and tune a model, and run it on one input."""
    served = service.repository.find(name, version)
    return shell(request, "work.html", model=describe(served))


def _names(service: Serving) -> list[str]:
    return sorted({served.name for served in service.repository.models})
