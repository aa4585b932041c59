"""LpPool and GlobalLpPool: the p-th root of the sum of |x|^p over windows, or over everything."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from kernels.attributes import takes
from kernels.batch_axis import only_first_input_has_rows
from kernels.cost import Cost
from kernels.errors import AttributeValueError, ShapeError
from kernels.half import in_single
from kernels.ops.pool import geometry
from kernels.registry import Case, Kernel, Op, require_dtype
from kernels.spec import FLOATS, Array, Spec
from kernels.windows import Sliding


def _check_power(name: str, p: int) -> None:
    if p < 1:
        raise AttributeValueError(f"{name}: p is {p}, need 1 or more")


def _powers(x: Array, p: int) -> Array:
    magnitude: Array = np.square(x) if p == 2 else np.abs(x)
    return magnitude if p <= 2 else np.power(magnitude, x.dtype.type(p), out=magnitude)


def _root(y: Array, p: int) -> None:
    if p == 2:
        np.sqrt(y, out=y)
    elif p > 2:
        np.power(y, y.dtype.type(1 / p), out=y)


@takes(Sliding)
def infer(x: Spec, *, kernel_shape: tuple[int, ...], ceil_mode: int = 0, p: int = 2, **sliding: Any) -> Spec:
    """(n, c, *out) of x (n, c, *size)."""
    require_dtype("LpPool: x", x, FLOATS)
    _check_power("LpPool", p)
    view = geometry("LpPool", x, {**sliding, "kernel_shape": kernel_shape, "ceil_mode": ceil_mode})
    return Spec((*x.shape[:2], *view.out), x.dtype)


def cost(out: tuple[Spec, ...], x: Spec, **attrs: Any) -> Cost:
    """Per output: a power and an addition for every tap; the last addition is the root."""
    return Cost(other_flops=2 * out[0].elements * math.prod(attrs["kernel_shape"]))


@in_single
def run(out: tuple[Array, ...], x: Array, **attrs: Any) -> None:
    """Raise once, sum whole planes, one tap at a time, then the root."""
    (y,) = out
    view, powers = geometry("LpPool", x, attrs), _powers(x, attrs["p"])
    y.fill(0)
    for _, into, of in view.slices():
        y[into] += powers[of]
    _root(y, attrs["p"])


def infer_global(x: Spec, *, p: int = 2) -> Spec:
    """(n, c, 1…) of x (n, c, *size)."""
    require_dtype("GlobalLpPool: x", x, FLOATS)
    _check_power("GlobalLpPool", p)
    if x.rank < 3:
        raise ShapeError(f"GlobalLpPool: x is {x}, need (n, c, spatial…)")
    return Spec((*x.shape[:2], *[1] * (x.rank - 2)), x.dtype)


def cost_global(out: tuple[Spec, ...], x: Spec, **attrs: Any) -> Cost:
    """2 per input element: a power and an addition; the last addition is the root."""
    return Cost(other_flops=2 * x.elements)


@in_single
def run_global(out: tuple[Array, ...], x: Array, *, p: int = 2) -> None:
    """Over all spatial axes."""
    np.sum(_powers(x, p), axis=tuple(range(2, x.ndim)), keepdims=True, out=out[0])
    _root(out[0], p)


def upgrade(opset: int, attrs: dict[str, Any], outputs: int) -> tuple[dict[str, Any], dict[int, Array]]:
    """Before opset 2 p was a float."""
    return ({**attrs, "p": int(attrs["p"])} if opset < 2 and isinstance(attrs.get("p"), float) else attrs), {}


_K2 = {"kernel_shape": (2, 2)}
_CASES = (
    Case("2x2", inputs=((1, 3, 4, 6),), attrs={**_K2, "strides": (2, 2)}, cost=Cost(other_flops=18 * 8)),
    Case("p1", inputs=((1, 2, 5, 5),), attrs={**_K2, "p": 1}),
    Case("p3_padded", inputs=((1, 2, 5, 5),), attrs={"kernel_shape": (3, 3), "p": 3, "pads": (1, 1, 1, 1), "strides": (2, 2)}),
    Case("same_upper", inputs=((1, 2, 5, 5),), attrs={**_K2, "auto_pad": "SAME_UPPER"}),
    Case("ceil_wider", inputs=((1, 2, 2, 6),), attrs={"kernel_shape": (3, 3), "strides": (2, 2), "ceil_mode": 1}),
    Case("dilated", inputs=((1, 2, 6),), attrs={"kernel_shape": (3,), "dilations": (2,)}),
    Case("p_zero", inputs=((1, 2, 5, 5),), attrs={**_K2, "p": 0}, raises=AttributeValueError),
    Case("kernel_rank", inputs=((1, 2, 5),), attrs=_K2, raises=AttributeValueError),
)
_GLOBAL = (
    Case("planes", inputs=((2, 3, 4, 5),), cost=Cost(other_flops=240)),
    Case("p3", inputs=((2, 3, 7),), attrs={"p": 3}),
    Case("p_zero", inputs=((1, 2, 5, 5),), attrs={"p": 0}, raises=AttributeValueError),
    Case("matrix", inputs=((2, 3),), raises=ShapeError),
)

OPS = (
    Op(
        "LpPool",
        infer,
        cost,
        (Kernel("taps", run),),
        upgrade=upgrade,
        tolerance_eps=8,
        mixes_rows=only_first_input_has_rows,
        cases=_CASES,
    ),
    Op(
        "GlobalLpPool",
        infer_global,
        cost_global,
        (Kernel("sum", run_global),),
        upgrade=upgrade,
        tolerance_eps=8,
        mixes_rows=only_first_input_has_rows,
        cases=_GLOBAL,
    ),
)
