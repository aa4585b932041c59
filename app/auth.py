"""Who may do what: scopes that every route declares."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Any, Final, TypeVar

E = TypeVar("E", bound=Callable[..., Any])


class Scope(StrEnum):
    """What a key is for. admin may do everything."""

    INFER = "infer"
    READ = "read"
    ADMIN = "admin"


_DECLARED: Final = "edgewise_scopes"
PUBLIC: Final[frozenset[Scope]] = frozenset()


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
