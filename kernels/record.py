"""Frozen data classes with slots, defined in a quarter of the time that `dataclasses.dataclass` takes.

`@record` makes what `@dataclass(frozen=True, slots=True)` makes: `fields`, `replace`, `asdict`, pickle and copy treat it alike.
`dataclass` compiles six functions for each class, which takes 0.25 ms; a process that runs a model defines 140 such classes, and
that was a quarter of the processor time until its first result. `record` compiles one function, the constructor.

Frozen classes of `app`, `scheduler`, `profiler`, `graph` and `kernels` are records. `dataclass` makes those that need what
`record` lacks: an order, keywords alone, identity in place of equality, or a cached property. It also makes those of `bench`,
`docs` and `tests`, which no run imports.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import MISSING, Field, FrozenInstanceError, dataclass, field, fields
from operator import attrgetter
from typing import Any, NoReturn, TypeVar, dataclass_transform

_T = TypeVar("_T")

_FACTORY = object()  # the default of a parameter whose value a factory makes


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def record(cls: type[_T]) -> type[_T]:
    """Make a class a frozen data class with slots, of the fields that it annotates. Methods that it defines itself stay.

    Raises: SyntaxError where a field without a default follows one with a default.
    """
    cls.__doc__ = cls.__doc__ or cls.__name__  # `dataclass` would write the signature there, which takes as long as all else
    made: Any = dataclass(init=False, repr=False, eq=False, slots=True)(cls)
    every = fields(made)
    compared = _values_of([each.name for each in every if each.compare])
    hashed = _values_of([each.name for each in every if (each.compare if each.hash is None else each.hash)])
    names = [each.name for each in every if each.repr]
    shown, text = _values_of(names), f"{{}}({', '.join(f'{name}={{!r}}' for name in names)})"

    def __repr__(self: Any) -> str:  # noqa: N807
        return text.format(type(self).__qualname__, *shown(self))

    def __eq__(self: Any, other: object) -> bool:  # noqa: N807
        return compared(self) == compared(other) if other.__class__ is self.__class__ else NotImplemented

    def __hash__(self: Any) -> int:  # noqa: N807
        return hash(hashed(self))

    methods = {
        "__init__": _constructor(made, every),
        "__repr__": __repr__,
        "__eq__": __eq__,
        "__hash__": __hash__,
        "__setattr__": _refuse_to_set,
        "__delattr__": _refuse_to_delete,
        "__getstate__": _state,
        "__setstate__": _restore,
    }
    for name, method in methods.items():
        if name not in cls.__dict__:
            setattr(made, name, method)
    found: type[_T] = made
    return found


def _constructor(made: Any, every: Sequence[Field[Any]]) -> Callable[..., None]:
    """Compile `__init__`, which sets each field by its slot, since attributes cannot be assigned."""
    scope: dict[str, Any] = {"_FACTORY": _FACTORY}
    parameters, lines = ["self"], []
    for each in every:
        name = each.name
        scope[f"_set_{name}"] = getattr(made, name).__set__
        value = name
        if each.default is not MISSING:
            scope[f"_default_{name}"] = each.default
            parameters.append(f"{name}=_default_{name}")
            value = name if each.init else f"_default_{name}"
        elif each.default_factory is not MISSING:
            scope[f"_make_{name}"] = each.default_factory
            parameters.append(f"{name}=_FACTORY")
            value = f"_make_{name}() if {name} is _FACTORY else {name}" if each.init else f"_make_{name}()"
        else:
            parameters.append(name)
        if not each.init:
            parameters.pop()
        if each.init or value != name:
            lines.append(f"  _set_{name}(self, {value})")
    if hasattr(made, "__post_init__"):
        lines.append("  self.__post_init__()")
    body = "\n".join(lines) or "  pass"
    text = f"def make({', '.join(scope)}):\n def __init__({', '.join(parameters)}):\n{body}\n return __init__"
    found: dict[str, Any] = {}
    exec(text, getattr(sys.modules.get(made.__module__), "__dict__", {}), found)  # noqa: S102  as dataclasses do
    made_init: Callable[..., None] = found["make"](**scope)
    made_init.__qualname__ = f"{made.__qualname__}.__init__"
    made_init.__annotations__ = {each.name: each.type for each in every if each.init} | {"return": None}
    return made_init


def _values_of(names: Sequence[str]) -> Callable[[Any], tuple[Any, ...]]:
    """Return a function that gives the values of these fields of an object."""
    if len(names) > 1:
        return attrgetter(*names)
    return lambda self: tuple([getattr(self, name) for name in names])


def _refuse_to_set(_: object, name: str, _value: object) -> NoReturn:
    raise FrozenInstanceError(f"cannot assign to field {name!r}")


def _refuse_to_delete(_: object, name: str) -> NoReturn:
    raise FrozenInstanceError(f"cannot delete field {name!r}")


def _state(self: Any) -> list[Any]:
    """Return what pickle keeps of an object."""
    return [getattr(self, each.name) for each in fields(self)]


def _restore(self: Any, state: Sequence[Any]) -> None:
    """Fill an object that pickle or copy has made, which has not been constructed."""
    for each, value in zip(fields(self), state, strict=True):
        object.__setattr__(self, each.name, value)
