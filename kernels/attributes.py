"""Attributes that several ops share, declared once. The attributes of an op are the keywords of its `infer`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])


def takes(group: Callable[..., Any], *names: str) -> Callable[[Function], Function]:
    """Declare the keywords of `group` as attributes of a function that receives them as `**attrs`.

    Args:    group: a function or a dataclass whose keywords have types and defaults. names: which to declare; all if none.
    Returns: a decorator. The function's signature then names each attribute, required ones first, the others by name.
    """
    keywords = [p for p in inspect.signature(group).parameters.values() if p.kind is p.KEYWORD_ONLY]
    shared = [p for p in keywords if not names or p.name in names]

    def declare(function: Function) -> Function:
        signature = inspect.signature(function)
        own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        attributes = sorted(
            (*(p for p in own if p.kind is p.KEYWORD_ONLY), *shared), key=lambda p: (p.default is not p.empty, p.name)
        )
        inputs = [p for p in own if p.kind is not p.KEYWORD_ONLY]
        vars(function)["__signature__"] = signature.replace(parameters=[*inputs, *attributes])
        return function

    return declare


def lacks(*names: str) -> Callable[[Function], Function]:
    """Remove inputs from the signature of a function, for an op that has fewer than the others which share the function."""

    def declare(function: Function) -> Function:
        signature = inspect.signature(function)
        kept = [p for p in signature.parameters.values() if p.name not in names]
        vars(function)["__signature__"] = signature.replace(parameters=kept)
        return function

    return declare
