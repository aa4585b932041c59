"""Clip: y = min(max(x, low), high); where low > high, high wins."""

from __future__ import annotations

import math

import numpy as np

from kernels.cost import Cost
from kernels.errors import DTypeError, ShapeError
from kernels.expression import Draft, Term
from kernels.operands import NUMBERS
from kernels.registry import Case, Kernel, Op, require_dtype
from kernels.scratch import fixed
from kernels.spec import FLOATS, Array, Spec
from kernels.upgrades import attribute_inputs


def infer(x: Spec, low: Spec | None = None, high: Spec | None = None) -> Spec:
    """Same shape and dtype. A float x takes bounds of any float dtype: older opsets held them as float32 attributes."""
    require_dtype("Clip: x", x, NUMBERS)
    for name, bound in (("min", low), ("max", high)):
        if bound is None:
            continue
        require_dtype(f"Clip: {name}", bound, FLOATS if x.dtype in FLOATS else frozenset({x.dtype}))
        if bound.elements != 1:
            raise ShapeError(f"Clip: {name} is {bound}, need a scalar")
    return Spec(x.shape, x.dtype)


def cost(out: tuple[Spec, ...], x: Spec, low: Spec | None = None, high: Spec | None = None) -> Cost:
    """One comparison per element and bound."""
    return Cost(other_flops=((low is not None) + (high is not None)) * x.elements)


def run(out: tuple[Array, ...], x: Array, low: Array | None = None, high: Array | None = None) -> None:
    """NaN stays NaN."""
    (y,) = out
    lowest, highest = (None if bound is None else bound.reshape(()).astype(x.dtype) for bound in (low, high))
    if lowest is not None and highest is not None:
        np.minimum(np.maximum(x, lowest, out=y), highest, out=y)
    elif lowest is not None:
        np.maximum(x, lowest, out=y)
    elif highest is not None:
        np.minimum(x, highest, out=y)
    else:
        np.copyto(y, x)


def express(draft: Draft, x: Term, low: Term | None = None, high: Term | None = None) -> Term:
    """One operation on floats whose bounds are known numbers, else a maximum and a minimum with what the bounds will be."""
    bounds = tuple(
        missing if bound is None else math.nan if bound.known is None else float(bound.known.reshape(()))
        for bound, missing in ((low, -math.inf), (high, math.inf))
    )
    if x.dtype.kind == "f" and not any(map(math.isnan, bounds)):
        return draft("clip", x, parameters=bounds)
    made = x if low is None else draft("max", x, low)
    made = made if high is None else draft("min", made, high)
    return draft("max", x, x) if made is x else made


_ZERO, _SIX = np.array(0, np.float32), np.array(6, np.float32)
CASES = (
    Case("relu6", inputs=((2, 3, 5), _ZERO, _SIX), domain=(-9, 9), cost=Cost(other_flops=60)),
    Case("low_only", inputs=((4,), _ZERO), cost=Cost(other_flops=4)),
    Case("high_only", inputs=((4,), None, _ZERO), cost=Cost(other_flops=4)),
    Case("no_bound", inputs=((4,),), cost=Cost()),
    Case("low_above_high", inputs=((4,), _SIX, _ZERO)),
    Case("infinite", inputs=(np.array([np.inf, -np.inf], np.float32), _ZERO)),
    Case("ints", inputs=(np.array([-7, 3, 9], np.int8), np.array(-1, np.int8), np.array(5, np.int8))),
    Case("nan", inputs=(np.array([np.nan, np.inf], np.float32), _ZERO, _SIX)),
    Case("empty", inputs=((0, 2), _ZERO, _SIX), cost=Cost()),
    Case("bound_vector", inputs=((4,), np.zeros(4, np.float32)), raises=ShapeError),
    Case("bound_dtype", inputs=((4,), np.array(0, np.int64)), raises=DTypeError),
)

_UPGRADE = attribute_inputs(11, "min", "max", dtype="float32")
CLIP = Op(
    "Clip",
    infer,
    cost,
    (Kernel("ufunc", run, scratch_bytes=fixed),),
    elementwise=True,
    expression=express,
    upgrade=_UPGRADE,
    cases=CASES,
)
