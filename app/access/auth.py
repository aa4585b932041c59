"""API keys, the scopes that every route declares, and the session cookie of the pages.

Access is checked in two steps, and each refuses by default. `Authenticate` (middleware) requires a key for everything but health,
the login page and its style sheet; on loopback, local callers need none until a key is made. `authorise` (a
dependency of every route) compares the caller's scopes with those that the route declares by `needs`. A route that declares
nothing refuses every caller.

A key is `ewk_<prefix>.<secret>`: the prefix tells keys apart, the secret is 256 random bits, of which only the SHA-256 is stored.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from enum import StrEnum
from http.cookies import CookieError, SimpleCookie
from typing import Any, Final, TypeVar

from fastapi import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Send
from starlette.types import Scope as Connected

from app.errors import RequestError
from kernels.record import record
from scheduler.store import StoredKey

E = TypeVar("E", bound=Callable[..., Any])


class Scope(StrEnum):
    """What a key permits. admin permits everything."""

    INFER = "infer"
    READ = "read"
    ADMIN = "admin"


@record
class Principal:
    """An authenticated caller. key: None for a local caller. from_cookie: a page's session, whose writes need a token."""

    name: str
    scopes: frozenset[Scope]
    key: StoredKey | None = None
    from_cookie: bool = False

    @property
    def account(self) -> str:
        """What its requests and jobs are counted under: its key's prefix, or "local" for all local callers together."""
        return self.name if self.key is None else self.key.prefix


LOCAL: Final = Principal("local", frozenset(Scope))
UNKNOWN_KEYS: Final = Principal(
    "local", frozenset({Scope.INFER, Scope.READ})
)  # while the database does not answer whether keys exist

_DECLARED: Final = "edgewise_scopes"


def needs(*scopes: Scope) -> Callable[[E], E]:
    """Declare that a route needs a key with one of these scopes, or admin; without arguments, that it needs no key.

    Stands below the route's own decorator. A route without this decorator refuses every caller.
    """

    def mark(endpoint: E) -> E:
        setattr(endpoint, _DECLARED, frozenset(scopes))
        return endpoint

    return mark


def declared(endpoint: Callable[..., Any] | None) -> frozenset[Scope] | None:
    """Return the scopes that an endpoint declares; None if it declares nothing."""
    return getattr(endpoint, _DECLARED, None)


async def authorise(request: Request) -> None:
    """Dependency of every route: check the caller's scopes. Raises RequestError 401, 403 or 503."""
    wanted = declared(getattr(request.scope.get("route"), "endpoint", None))
    if wanted is None:
        raise RequestError(403, "this route is closed: it declares no scope")
    if not wanted:
        return
    check_scopes(getattr(request.state, "principal", None), wanted)


def check_scopes(principal: Principal | None, wanted: frozenset[Scope]) -> None:
    """Raise RequestError 401, 403 or 503 unless a caller has one of these scopes, or admin. principal: None = it sent no key."""
    if principal is None:
        raise RequestError(401, "API key: none was sent, this route needs one", {"WWW-Authenticate": "Bearer"})
    if Scope.ADMIN in principal.scopes or wanted & principal.scopes:
        return
    if principal is UNKNOWN_KEYS:
        raise RequestError(503, "API keys: the database does not answer, only inference and reading go on", {"Retry-After": "5"})
    raise RequestError(403, f"API key: it has scope {_spelt(principal.scopes)}, this route needs {_spelt(wanted)}")


def sent_key(headers: Mapping[str, str]) -> str:
    """Return the key in a request's headers, whose names are in lower case; "" without one."""
    kind, _, text = headers.get("authorization", "").partition(" ")
    return text.strip() if kind.lower() == "bearer" else headers.get("x-api-key", "").strip()


class DirectRoute(Route):
    """A route for frequent requests: its endpoint takes the request and returns the reply, without FastAPI in between.

    It checks scopes as all routes do. FastAPI's own routes take 0.7 ms longer on a core that also runs the model.
    """

    def __init__(self, path: str, endpoint: Callable[[Request], Awaitable[Response]], methods: Collection[str]) -> None:
        super().__init__(path, endpoint, methods=methods)
        self.app = self._answer

    async def _answer(self, scope: Connected, receive: Receive, send: Send) -> None:
        scope["route"] = self
        request = Request(scope, receive, send)
        await authorise(request)
        reply = await self.endpoint(request)
        await reply(scope, receive, send)


def _spelt(scopes: frozenset[Scope]) -> str:
    return " or ".join(sorted(scopes)) or "none"


def new_key() -> tuple[str, str, str]:
    """Make a key. Returns its text, its prefix, and the SHA-256 to store."""
    prefix, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
    return f"ewk_{prefix}.{secret}", prefix, digest_of(secret)


def digest_of(secret: str) -> str:
    """Return the SHA-256 of a secret. A secret of 256 random bits needs no slow hash."""
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


def split_key(text: str) -> tuple[str, str]:
    """Split a key into prefix and secret; both are empty, and match no key, if the text is malformed."""
    prefix, dot, secret = text.removeprefix("ewk_").partition(".")
    return (prefix, secret) if text.startswith("ewk_") and dot and len(text) <= 128 else ("", "")


COOKIE: Final = "edgewise_session"
SESSION_S: Final = 8 * 3600


class Sessions:
    """Sessions of the pages: cookies signed with the server's secret and the key's hash, so that a session ends with its key.

    secret: servers with the same database and secret accept each other's sessions; "" = random, sessions end with the process.
    """

    def __init__(self, secret: str = "") -> None:
        self._secret = secret.encode() or secrets.token_bytes(32)

    def make(self, key: StoredKey) -> str:
        """Return the value of a new session cookie."""
        ends_s = int(time.time()) + SESSION_S
        return f"{key.prefix}.{ends_s}.{self._sign(key, f'session.{ends_s}')}"

    @staticmethod
    def prefix(value: str) -> str:
        """Return the prefix of the key that a cookie claims to belong to."""
        return value.partition(".")[0]

    def check(self, value: str, key: StoredKey) -> bool:
        """Whether the cookie was signed for that key and has not expired."""
        parts = value.split(".")
        if len(parts) != 3 or not parts[1].isdecimal() or len(parts[1]) > 12 or int(parts[1]) < time.time():
            return False
        return hmac.compare_digest(parts[2].encode(), self._sign(key, f"session.{parts[1]}").encode())

    def form_token(self, value: str, key: StoredKey) -> str:
        """Return the token that forms and writes of that session must carry, against cross-site request forgery."""
        return self._sign(key, f"form.{value}")

    def _sign(self, key: StoredKey, text: str) -> str:
        message = f"{key.prefix}.{key.secret_sha256}.{text}"
        return hmac.new(self._secret, message.encode(), hashlib.sha256).hexdigest()


def read_cookie(header: str, name: str) -> str:
    """Return a cookie from a Cookie header; "" if it is not there."""
    try:
        found = SimpleCookie(header[:8192]).get(name)
    except CookieError:
        return ""
    return found.value if found else ""
