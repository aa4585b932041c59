"""The frame of every page: templates, security headers, navigation, and the token that its forms send back.

The frame is rendered here and shown at once; modules of `static/js/` fill it with figures from the API.
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
    """Render a template as text."""
    return _templates.get_template(template).render(**values)


def page(name: str, status: int = 200, **values: Any) -> HTMLResponse:
    """Render a page that any caller may see, with the headers that every page has."""
    return HTMLResponse(render(name, **values), status, headers=_HEADERS)


def shell(request: Request, name: str, status: int = 200, **values: Any) -> HTMLResponse:
    """Render a page for the caller of the request: with navigation, the scopes of its key, and the token for its forms."""
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
    """Scripts and styles. Browsers cache them and revalidate by ETag, so that what runs always belongs to this build."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        """Return a file, or 304 where the browser has it already."""
        reply = await super().get_response(path, scope)
        reply.headers["Cache-Control"] = "no-cache"
        reply.headers["X-Content-Type-Options"] = "nosniff"
        return reply
