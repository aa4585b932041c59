"""The pages of what is served: the overview, and one model with its runs. Figures come from the API, see `app/shell.py`."""

from __future__ import annotations

import contextlib

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse

from app.auth import Scope, needs
from app.control import describe
from app.errors import RequestError
from app.shell import shell
from app.state import Serving
from graph.ir import Port
from scheduler.errors import StoreError
from scheduler.session import Session

router = APIRouter()


@router.get("/")
@needs(Scope.READ)
async def overview(request: Request, service: Serving) -> HTMLResponse:
    """The served models, devices, traffic and health."""
    return shell(request, "overview.html", models=[describe(served) for served in service.repository.models])


@router.get("/models/{name}")
@needs(Scope.READ)
async def model(request: Request, service: Serving, name: str, version: str | None = None) -> HTMLResponse:
    """One model: its runs, and the views of the one that is looked at."""
    served, session = service.repository.ready(name, version)
    with contextlib.suppress(RequestError, StoreError):  # the page says itself what it cannot read
        await service.desk.call(service.remember, served.name, session.model)  # else nothing can be asked of its runs
    return shell(request, "model.html", model=describe(served))


def smallest_shapes(session: Session) -> dict[str, tuple[int, ...]]:
    """Every input's declared shape with 1 for what is open; inputs without a rank are left out."""
    return {port.name: _smallest(port) for port in session.inputs if port.dims is not None}


def _smallest(port: Port) -> tuple[int, ...]:
    return tuple(dim if isinstance(dim, int) else 1 for dim in port.dims or ())
