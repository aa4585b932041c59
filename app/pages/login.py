"""The pages' login: a key becomes a cookie that scripts cannot read and other sites cannot send."""

from __future__ import annotations

import hmac
import secrets
from urllib.parse import parse_qs

from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse, Response

from app.access import auth
from app.access.audit import caller_of
from app.access.auth import Scope, needs
from app.errors import RequestError
from app.pages.shell import page
from app.service import Serving

router = APIRouter()

FORM_COOKIE = "edgewise_form"
MAX_FORM_BYTES = 8192


@router.get("/login")
@needs()
async def form(request: Request) -> Response:
    """Show the form that asks for an API key."""
    return _form(request)


@router.post("/login")
@needs()
async def login(request: Request, service: Serving) -> Response:
    """Check the key and set the session cookie."""
    fields = await _fields(request)
    expected = auth.read_cookie(request.headers.get("cookie", ""), FORM_COOKIE)
    if not expected or not hmac.compare_digest(expected.encode(), fields.get("csrf", "").encode()):
        raise RequestError(403, "login: the form did not come from this server, open /login again")
    try:
        principal = await service.directory.by_key(fields.get("key", "").strip())
    except RequestError as error:
        if error.status != 401:
            raise
        return _form(request, "This key is unknown, expired or revoked.")
    if principal.key is None or not principal.scopes & {Scope.READ, Scope.ADMIN}:
        return _form(request, "This key has no scope that may read: the pages need scope read.")
    reply = RedirectResponse("/", 303)
    _set_cookie(request, reply, auth.COOKIE, service.directory.sessions.make(principal.key), auth.SESSION_S)
    reply.delete_cookie(FORM_COOKIE, path="/login")
    service.audit.record(caller_of(request), "login", principal.name)
    return reply


@router.post("/logout")
@needs(Scope.INFER, Scope.READ)
async def logout(request: Request, service: Serving) -> Response:
    """End the session by deleting its cookie."""
    fields = await _fields(request)
    principal: auth.Principal = request.state.principal
    value = auth.read_cookie(request.headers.get("cookie", ""), auth.COOKIE)
    if principal.from_cookie and principal.key is not None:
        expected = service.directory.sessions.form_token(value, principal.key)
        if not hmac.compare_digest(expected.encode(), fields.get("csrf", "").encode()):
            raise RequestError(403, "logout: the form belongs to another session")
    reply = RedirectResponse("/login", 303)
    reply.delete_cookie(auth.COOKIE, path="/")
    return reply


def _form(request: Request, problem: str = "") -> Response:
    token = secrets.token_urlsafe(32)
    reply = page("login.html", csrf=token, problem=problem, status=401 if problem else 200)
    _set_cookie(request, reply, FORM_COOKIE, token, 3600, "/login")
    return reply


def _set_cookie(request: Request, reply: Response, name: str, value: str, max_age_s: int, path: str = "/") -> None:
    secure = request.url.scheme == "https"
    reply.set_cookie(name, value, max_age=max_age_s, path=path, secure=secure, httponly=True, samesite="strict")


async def _fields(request: Request) -> dict[str, str]:
    """Read the fields of a urlencoded form. Raises RequestError 400, 413."""
    body = await request.body()
    if len(body) > MAX_FORM_BYTES:
        raise RequestError(413, f"form: {len(body)} bytes, the limit is {MAX_FORM_BYTES}")
    try:
        found = parse_qs(body.decode("ascii"), max_num_fields=16, errors="strict")
    except ValueError:
        raise RequestError(400, "form: the body is not application/x-www-form-urlencoded") from None
    return {name: values[0] for name, values in found.items()}
