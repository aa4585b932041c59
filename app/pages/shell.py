"""What every page has: templates, headers that keep foreign scripts out, navigation, and what its forms must carry.

A page is a frame rendered here, which is there at once; modules of `static/js/` fill it with the API's figures.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from fastapi import Request
from jinja2 import Environment, FileSystemLoader, select_autoescape
from starlette.responses import HTMLResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from kernels.version import VERSION
from profiler.units import quantity

STATIC: Final = Path(__file__).parent / "static"

_CSP = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "worker-src 'self'",
        "style-src 'self'",
        "img-src 'self' data: blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    )
)
_HEADERS: Final = {
    "Content-Security-Policy": _CSP,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",  # no-referrer makes browsers send forms with "Origin: null", which are refused
    "Cache-Control": "no-store",
}
NAVIGATION: Final = (
    ("/", "Overview"),
    ("/plans", "Plans"),
    ("/compare", "Compare"),
    ("/devices", "Devices"),
    ("/jobs", "Jobs"),
    ("/regressions", "Regressions"),
)


_templates = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=select_autoescape(default=True), trim_blocks=True
)
_templates.filters["quantity"] = quantity
_templates.globals["version"] = VERSION


def render(template: str, **values: Any) -> str:
    """A template as text."""
    return _templates.get_template(template).render(**values)


def page(name: str, status: int = 200, **values: Any) -> HTMLResponse:
    """A page with the headers that every page has, for anybody."""
    return HTMLResponse(render(name, **values), status, headers=_HEADERS)


def shell(request: Request, name: str, status: int = 200, **values: Any) -> HTMLResponse:
    """A page for who asks: with navigation, what the key may do, and what the forms of its session carry."""
    principal = getattr(request.state, "principal", None)
    return page(
        name,
        status,
        nav=NAVIGATION,
        current="/" + request.url.path.split("/")[1],
        scopes=sorted(principal.scopes) if principal else [],
        form_token=getattr(request.state, "form_token", ""),  # "" for callers without a session
        **values,
    )


class StaticPages(StaticFiles):
    """Scripts and styles, which browsers keep and ask about by ETag: what runs is always of this build."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        """A file, or 304 where the browser's is the same."""
        reply = await super().get_response(path, scope)
        reply.headers["Cache-Control"] = "no-cache"
        reply.headers["X-Content-Type-Options"] = "nosniff"
        return reply
