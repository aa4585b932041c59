"""The server's copy of the API keys: a few seconds old at most, and valid for a while when the database does not answer."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import structlog

from app.access import auth
from app.access.auth import LOCAL, UNKNOWN_KEYS, Principal, Scope, Sessions
from app.access.journal import Journal
from app.errors import RequestError
from scheduler.errors import StoreError
from scheduler.store import KeyRing, StoredKey

log = structlog.get_logger("edgewise.auth")

_CHALLENGE: Final = {"WWW-Authenticate": "Bearer"}
_LOST: Final = (
    "keys were made for this server, and its database holds none now: restore the database, make a key with"
    " `edgewise keys create`, or let local callers in with EDGEWISE_KEYLESS=true"
)


class Directory:
    """Finds callers by key or session cookie. Event loop only.

    Args: read: reads the keys from the database. sessions: checks the cookies of the pages. local: while no key was ever made,
          callers without a key are local ones. made_before: returns the file which says that keys were made before, or None.
          refresh_s: how often the keys are read. stale_s: how old the copy may become while the database does not answer.
    """

    def __init__(
        self,
        read: Callable[[], Awaitable[KeyRing]],
        journal: Journal,
        sessions: Sessions,
        local: bool,
        made_before: Callable[[], Path | None],
        refresh_s: float,
        stale_s: float,
    ) -> None:
        self.sessions = sessions
        self._read = read
        self._journal = journal
        self._local = local
        self._made_before = made_before
        self._refresh_s = refresh_s
        self._stale_s = stale_s
        self._keys: dict[str, StoredKey] | None = None
        self._made = self._lost = False  # lost: keys were made, and the database holds none that was ever made
        self._read_at = float("-inf")
        self._tried = asyncio.Event()

    async def local(self) -> Principal:
        """Return the principal of a caller without a key: local if the server is on loopback and no key was ever made.

        Raises: RequestError 401 for any other caller.
        """
        await self._tried.wait()
        if not self._local or self._made:
            lost = f"; {_LOST}" if self._lost else ""
            raise RequestError(401, f"API key: none was sent, need one as Authorization: Bearer or X-API-Key{lost}", _CHALLENGE)
        return LOCAL if self._keys is not None else UNKNOWN_KEYS

    async def by_key(self, text: str) -> Principal:
        """Return the holder of a key. Raises RequestError 401 for an unknown key, 503 while no keys could be read."""
        prefix, secret = auth.split_key(text)
        key = await self._find(prefix)
        if key is None or not hmac.compare_digest(auth.digest_of(secret), key.secret_sha256):
            raise _refusal()
        return self._principal(key, from_cookie=False)

    async def by_cookie(self, value: str) -> Principal | None:
        """Return the holder of a session cookie; None if it is invalid or has expired."""
        key = await self._find(Sessions.prefix(value))
        return self._principal(key, from_cookie=True) if key is not None and self.sessions.check(value, key) else None

    def _principal(self, key: StoredKey, *, from_cookie: bool) -> Principal:
        self._journal.touch(key.prefix)
        return Principal(f"{key.prefix} {key.name}"[:256], frozenset(map(Scope, key.scopes)), key, from_cookie)

    async def _find(self, prefix: str) -> StoredKey | None:
        await self._tried.wait()
        if self._keys is None or time.monotonic() - self._read_at > self._stale_s:
            raise RequestError(503, "API keys: the database does not answer, try again", {"Retry-After": "5"})
        key = self._keys.get(prefix)
        return key if key is not None and key.active(time.time_ns() // 1000) else None

    async def keep(self) -> None:
        """Read the keys every `refresh_s`, for as long as the service runs. Only requests before the first read wait."""
        try:
            mark = self._made_before()
            self._made = mark is not None
        except StoreError as error:  # the URL names no database, as `_read` is about to say, too
            log.warning("API keys could not be read", reason=str(error))
            mark = None
        while True:
            try:
                ring = await self._read()
                self._keys = {key.prefix: key for key in ring.usable}
                if self._made and not ring.made and not self._lost:
                    log.error("API keys are lost", fact=_LOST, mark=str(mark))
                self._lost = self._made and not ring.made
                self._made |= ring.made
                self._read_at = time.monotonic()
            except (StoreError, RequestError) as error:
                log.warning("API keys could not be read", reason=str(error))
            self._tried.set()
            await asyncio.sleep(self._refresh_s)


def _refusal() -> RequestError:
    return RequestError(401, "API key: unknown, expired or revoked", _CHALLENGE)
