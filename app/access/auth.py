"""Who may do what: API keys, the scopes that every route declares, and the cookie of the pages.

Two steps, each refusing by default. `Authenticate` (middleware) lets nobody past without a key, but for health, the login page
and its style sheet; on loopback, local callers are let in while the database never held a key. `authorise` (a dependency of every
route) compares what the caller holds with what the route declares by `needs`; one that declares nothing is refused to everybody.

A key is `ewk_<prefix>.<secret>`: the prefix tells keys apart, the secret is 256 random bits, of which only the SHA-256 is stored.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from enum import StrEnum
from http.cookies import CookieError, SimpleCookie
from typing import Any, Final, TypeVar

from fastapi import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Send
from starlette.types import Scope as Connected

from app.errors import RequestError
from scheduler.store import StoredKey

E = TypeVar("E", bound=Callable[..., Any])


class Scope(StrEnum):
    """What a key is for. admin may do everything."""

    INFER = "infer"
    READ = "read"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Principal:
    """A caller. key: None for a local caller without one. from_cookie: a page's session, which must prove its forms."""

    name: str
    scopes: frozenset[Scope]
    key: StoredKey | None = None
    from_cookie: bool = False


LOCAL: Final = Principal("local", frozenset(Scope))
UNKNOWN_KEYS: Final = Principal("local", frozenset({Scope.INFER, Scope.READ}))  # while the database cannot say whether keys exist

_DECLARED: Final = "edgewise_scopes"


def needs(*scopes: Scope) -> Callable[[E], E]:
    """Declare what a route asks for: a key with any of these scopes, or admin; without arguments nothing at all.

    Stands below the route's own decorator. A route that declares nothing is refused to everybody.
    """

    def mark(endpoint: E) -> E:
        setattr(endpoint, _DECLARED, frozenset(scopes))
        return endpoint

    return mark


def declared(endpoint: Callable[..., Any] | None) -> frozenset[Scope] | None:
    """What an endpoint declares; None where it says nothing."""
    return getattr(endpoint, _DECLARED, None)


async def authorise(request: Request) -> None:
    """Dependency of every route: the caller holds what it declares. Raises RequestError 403."""
    wanted = declared(getattr(request.scope.get("route"), "endpoint", None))
    if wanted is None:
        raise RequestError(403, "this route is closed: it declares no scope")
    if not wanted:
        return
    principal: Principal | None = getattr(request.state, "principal", None)
    if principal is None:
        raise RequestError(401, "API key: none was sent, this route needs one", {"WWW-Authenticate": "Bearer"})
    if Scope.ADMIN in principal.scopes or wanted & principal.scopes:
        return
    if principal is UNKNOWN_KEYS:
        raise RequestError(503, "API keys: the database does not answer, only inference and reading go on", {"Retry-After": "5"})
    raise RequestError(403, f"API key: it has scope {_spelt(principal.scopes)}, this route needs {_spelt(wanted)}")


class DirectRoute(Route):
    """A route for requests by the thousand: its endpoint takes the request and gives the reply, with no framework between.

    It asks for the same scopes as all others do. FastAPI's own routes cost 0.7 ms more on a core that also runs the model.
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
    """A key: its text, its prefix, and the SHA-256 to store."""
    prefix, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
    return f"ewk_{prefix}.{secret}", prefix, digest_of(secret)


def digest_of(secret: str) -> str:
    """The SHA-256 of a secret. Its 256 random bits need no slow hash."""
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


def split_key(text: str) -> tuple[str, str]:
    """Prefix and secret, which fit no key where the text is none."""
    prefix, dot, secret = text.removeprefix("ewk_").partition(".")
    return (prefix, secret) if text.startswith("ewk_") and dot and len(text) <= 128 else ("", "")


COOKIE: Final = "edgewise_session"
SESSION_S: Final = 8 * 3600


class Sessions:
    """The pages' sessions: cookies signed with the server's secret and the key's hash, so that they end with the key.

    Servers that share a database and this secret accept each other's; without one, sessions end with the process.
    """

    def __init__(self, secret: str = "") -> None:
        self._secret = secret.encode() or secrets.token_bytes(32)

    def make(self, key: StoredKey) -> str:
        """The value of a new cookie."""
        ends_s = int(time.time()) + SESSION_S
        return f"{key.prefix}.{ends_s}.{self._sign(key, f'session.{ends_s}')}"

    @staticmethod
    def prefix(value: str) -> str:
        """Which key a cookie says it is of."""
        return value.partition(".")[0]

    def check(self, value: str, key: StoredKey) -> bool:
        """Whether the cookie was made here for that key, and has not ended."""
        parts = value.split(".")
        if len(parts) != 3 or not parts[1].isdecimal() or len(parts[1]) > 12 or int(parts[1]) < time.time():
            return False
        return hmac.compare_digest(parts[2].encode(), self._sign(key, f"session.{parts[1]}").encode())

    def form_token(self, value: str, key: StoredKey) -> str:
        """What the forms and writes of that session have to carry."""
        return self._sign(key, f"form.{value}")

    def _sign(self, key: StoredKey, text: str) -> str:
        message = f"{key.prefix}.{key.secret_sha256}.{text}"
        return hmac.new(self._secret, message.encode(), hashlib.sha256).hexdigest()


def read_cookie(header: str, name: str) -> str:
    """A cookie of a Cookie header, "" where there is none."""
    try:
        found = SimpleCookie(header[:8192]).get(name)
    except CookieError:
        return ""
    return found.value if found else ""
