"""Activations of two inputs: PRelu and SwiGLU."""

from __future__ import annotations

import numpy as np

from kernels.cost import Cost, per_element
from kernels.errors import DTypeError, ShapeError
from kernels.expression import applied
from kernels.half import in_single
from kernels.operands import NUMBERS, broadcast, one_dtype
from kernels.ops.activations import swish
from kernels.registry import Case, Kernel, Op, require_dtype
from kernels.spec import FLOATS, Array, Spec


def infer_prelu(x: Spec, slope: Spec) -> Spec:
    """Same shape and dtype as x, to which the slope broadcasts."""
    require_dtype("PRelu: x", x, NUMBERS)
    if broadcast("PRelu", x.shape, slope.shape) != x.shape:
        raise ShapeError(f"PRelu: slope is {slope}, need a shape that broadcasts to x {x}")
    return Spec(x.shape, one_dtype("PRelu", x, slope))


def run_prelu(out: tuple[Array, ...], x: Array, slope: Array) -> None:
    """x where x ≥ 0, else slope·x."""
    np.copyto(out[0], np.where(x < 0, x * slope, x))


def infer_swiglu(gate: Spec, x: Spec, *, alpha: float = 1.0) -> Spec:
    """Same shape and dtype; the inputs do not broadcast."""
    require_dtype("SwiGLU: gate", gate, FLOATS)
    if gate.shape != x.shape:
        raise ShapeError(f"SwiGLU: gate is {gate} and x is {x}, need one shape")
    return Spec(x.shape, one_dtype("SwiGLU", gate, x))


@in_single
def run_swiglu(out: tuple[Array, ...], gate: Array, x: Array, *, alpha: float = 1.0) -> None:
    """gate · sigmoid(alpha·gate) · x."""
    opened = np.empty(gate.shape, gate.dtype)
    swish(opened, gate, alpha)
    np.multiply(opened, x, out=out[0])


_PRELU = (
    Case("channels", inputs=((2, 3, 4), (3, 1)), cost=Cost(other_flops=48)),
    Case("scalar_slope", inputs=((5,), ())),
    Case("same_shape", inputs=((5,), (5,))),
    Case("ints", inputs=(np.array([-3, 4], np.int32), np.array([2], np.int32))),
    Case("empty", inputs=((0, 3), (3,)), cost=Cost()),
    Case("slope_larger", inputs=((3,), (2, 3)), raises=ShapeError),
    Case("dtypes_differ", inputs=((3,), np.ones(3, np.float64)), raises=DTypeError),
)
_SWIGLU = (
    Case("default", inputs=((2, 3), (2, 3)), cost=Cost(other_flops=42)),
    Case("alpha", inputs=((5,), (5,)), attrs={"alpha": 1.5}),
    Case("half", inputs=(np.linspace(-3, 3, 9, dtype=np.float16), np.linspace(2, 4, 9, dtype=np.float16))),
    Case("empty", inputs=((0, 3), (0, 3)), cost=Cost()),
    Case("shapes_differ", inputs=((2, 3), (3,)), raises=ShapeError),
    Case("ints", inputs=(np.ones(2, np.int32), np.ones(2, np.int32)), raises=DTypeError),
)

OPS = (
    Op(
        "PRelu",
        infer_prelu,
        per_element(2, "compare, multiply"),
        (Kernel("where", run_prelu),),
        elementwise=True,
        expression=applied("prelu"),
        cases=_PRELU,
    ),
    Op(
        "SwiGLU",
        infer_swiglu,
        per_element(7, "multiply, sigmoid (4), two multiplies"),
        (Kernel("ufunc", run_swiglu),),
        elementwise=True,
        cases=_SWIGLU,
    ),
)
