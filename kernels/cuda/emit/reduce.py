"""Reductions of float32: how elements are combined, and where a combination begins."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

from kernels.native.emit.builder import Function, Value
from kernels.record import record

Reduced = Literal["sum", "mean", "max", "min", "sum_square", "l2"]
INFINITY = float("inf")


@record
class Reduction:
    """How elements become one. identity: what changes nothing.  of: what is combined of an element.  ends: what becomes of the
    combination; it gets 1 / the number of elements."""

    identity: float
    combine: Callable[[Function, Value, Value], Value]
    of: Callable[[Value], Value] = lambda x: x
    ends: Callable[[Function, Value, Value], Value] = lambda _, total, __: total


def _add(_: Function, a: Value, b: Value) -> Value:
    return a + b


SUM = Reduction(0.0, _add)
MAX = Reduction(-INFINITY, lambda k, a, b: k.maximum(a, b))
REDUCTIONS: Mapping[Reduced, Reduction] = {
    "sum": SUM,
    "mean": Reduction(0.0, _add, ends=lambda _, total, inverse: total * inverse),
    "max": MAX,
    "min": Reduction(INFINITY, lambda k, a, b: k.minimum(a, b)),
    "sum_square": Reduction(0.0, _add, of=lambda x: x * x),
    "l2": Reduction(0.0, _add, of=lambda x: x * x, ends=lambda k, total, _: k.sqrt(total)),
}
