"""The pages: what is served, and what each op of a model costs. Rendered here, no script, nothing from elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from jinja2 import Environment, FileSystemLoader, select_autoescape
from starlette.responses import HTMLResponse

import edgewise
from app.auth import Scope, needs
from app.control import describe
from app.state import Serving
from graph.errors import FeedError
from graph.ir import Port
from profiler.counts import Profile, profile
from scheduler.session import Session

router = APIRouter()
MAX_ROWS = 500  # of a page; the CLI and the API give all

_CSP = "default-src 'none'; style-src 'self'; img-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
_HEADERS = {
    "Content-Security-Policy": _CSP,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


def quantity(value: float, unit: str) -> str:
    """A number people can read: 300774272 MACs → 300.8 MMACs."""
    for prefix, scale in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= scale:
            return f"{value / scale:.1f} {prefix}{unit}"
    return f"{value:.0f} {unit}"


_templates = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=select_autoescape(default=True), trim_blocks=True
)
_templates.filters["quantity"] = quantity


def page(name: str, status: int = 200, **values: Any) -> HTMLResponse:
    """A page with the headers that every page has."""
    return HTMLResponse(_templates.get_template(name).render(**values), status, headers=_HEADERS)


@router.get("/")
@needs(Scope.READ)
async def overview(request: Request, service: Serving) -> HTMLResponse:
    """The served models."""
    return page(
        "overview.html",
        form_token=_form_token(request),
        models=[describe(served) for served in service.repository.models],
        version=edgewise.__version__,
    )


@router.get("/models/{name}")
@needs(Scope.READ)
async def model(request: Request, service: Serving, name: str, version: str | None = None) -> HTMLResponse:
    """One model: what it takes, and its profile with every open dimension at 1."""
    served, session = service.repository.ready(name, version)
    counted: Profile | None = None
    problem = ""
    try:
        counted = await service.engine.call(profile, session.model, smallest_shapes(session))
    except FeedError as error:
        problem = str(error)
    largest = max((op.flops for op in counted.ops), default=0) if counted else 0
    return page(
        "model.html",
        form_token=_form_token(request),
        model=describe(served),
        profile=counted,
        problem=problem,
        largest_flops=largest,
        max_rows=MAX_ROWS,
    )


def _form_token(request: Request) -> str:
    """What the forms of a page's session carry, "" for callers without one."""
    return getattr(request.state, "form_token", "")


def smallest_shapes(session: Session) -> dict[str, tuple[int, ...]]:
    """Every input's declared shape with 1 for what is open; inputs without a rank are left out."""
    return {port.name: _smallest(port) for port in session.inputs if port.dims is not None}


def _smallest(port: Port) -> tuple[int, ...]:
    return tuple(dim if isinstance(dim, int) else 1 for dim in port.dims or ())
