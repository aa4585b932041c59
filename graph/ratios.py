"""Sizes that are computed as floats: exporters scale a size as a float and round it back to a whole number.

They are quotients of whole numbers that may depend on symbols, for as long as a float holds them exactly.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np

from graph.shape_arithmetic import Attrs, Rule, each, rule_of
from kernels.record import record
from kernels.spec import Array, SizeArray, Spec

EXACT = 1 << 24  # whole numbers below it are exact in fp32, and so are their quotients by powers of two
FLOATS = frozenset(map(np.dtype, ("float32", "float64")))


class InexactError(Exception):
    """A quotient is not known to be exact as a float."""


@record
class Ratio:
    """The quotient of two whole numbers, over / under, where `under` is above 0 and no symbol.

    Arithmetic raises InexactError where a float might round. A quotient by anything but a power of two has been rounded once,
    which moves it across no whole number: it may be rounded down or up, and no more.
    """

    over: int
    under: int = 1

    def __post_init__(self) -> None:
        if not -EXACT < self.over < EXACT or self.under >= EXACT:
            raise InexactError

    def __add__(self, other: Ratio) -> Ratio:
        return Ratio(self.exact.over * other.exact.under + other.over * self.under, self.under * other.under)

    def __sub__(self, other: Ratio) -> Ratio:
        return self + -other

    def __neg__(self) -> Ratio:
        return Ratio(-self.over, self.under)

    def __mul__(self, other: Ratio) -> Ratio:
        return Ratio(self.exact.over * other.exact.over, self.under * other.under)

    def __truediv__(self, other: Ratio) -> Ratio:
        if not isinstance(other.over, int) or other.over <= 0:
            raise InexactError
        return Ratio(self.exact.over * other.exact.under, self.under * other.over)

    @property
    def exact(self) -> Ratio:
        """This quotient, which no float has rounded yet. Raises InexactError."""
        if self.under & (self.under - 1):
            raise InexactError
        return self

    def floor(self) -> int:
        """Return the largest whole number that is not above."""
        return self.over // self.under

    def ceil(self) -> int:
        """Return the smallest whole number that is not below."""
        return -(-self.over // self.under)

    def whole(self) -> int:
        """Return the whole number that is left without what is behind the point."""
        return self.floor() if self.over >= 0 else self.ceil()


def compute_ratios(op: str, inputs: Sequence[Array | None], attrs: Attrs, made: Sequence[Spec]) -> Array | None:
    """Return the output of an op on sizes and ratios, as an array of objects: ratios, or sizes where it is int64.

    None where the op has no rule here, and where a float might round. inputs: arrays of ratios, of sizes, or of plain numbers.
    made: specs of the outputs, whose shapes are plain numbers.
    """
    rule = _RULES.get(op)
    if rule is None or len(made) != 1:
        return None
    try:
        found = rule([_objects(array) for array in inputs], attrs, made[0])
    except InexactError:
        return None
    return None if found is None else np.broadcast_to(np.asarray(found, object), made[0].shape)


def _objects(array: Array | None) -> Array | None:
    """Return an array of objects: floats as ratios, all else as it is."""
    if array is None or array.dtype.kind != "f":
        return array
    if not np.isfinite(array).all():
        raise InexactError
    return np.array([Ratio(*float(number).as_integer_ratio()) for number in array.flat], object).reshape(array.shape)


def _cast(inputs: Sequence[Any], _: Attrs, made: Spec) -> Any:
    """Make ratios of sizes, or sizes of ratios."""
    (array,) = inputs
    if made.dtype in FLOATS:
        return _every(lambda size: size if isinstance(size, Ratio) else Ratio(size))(array)
    return _every(Ratio.whole)(array) if made.dtype == np.int64 else None


def _every(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return cast("Callable[[Any], Any]", np.frompyfunc(function, 1, 1))


_SHARED = (
    "Reshape",
    "Flatten",
    "Squeeze",
    "Unsqueeze",
    "Identity",
    "Expand",
    "Gather",
    "Slice",
    "Concat",
    "Add",
    "Sub",
    "Mul",
    "Neg",
)
_RULES: Mapping[str, Rule] = {
    **{op: rule_of(op) for op in _SHARED},
    "Cast": _cast,
    "Div": each(operator.truediv),
    "Floor": lambda inputs, _, __: _every(lambda ratio: Ratio(ratio.floor()))(inputs[0]),
    "Ceil": lambda inputs, _, __: _every(lambda ratio: Ratio(ratio.ceil()))(inputs[0]),
}


def is_scaled(op: str, inputs: Sequence[Array | None], made: Sequence[Spec], *, ratios: bool) -> bool:
    """Whether `compute_ratios` is to compute a node. ratios: whether it reads some."""
    sizes = any(isinstance(array, SizeArray) for array in inputs)
    return ratios or (op == "Cast" and sizes and made[0].dtype in FLOATS)
