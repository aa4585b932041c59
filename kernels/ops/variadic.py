"""Max, Min, Sum and Mean of any number of tensors, all broadcast."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from kernels.cost import Cost
from kernels.errors import DTypeError, ShapeError
from kernels.expression import Draft, Term, folded
from kernels.operands import NUMBERS, broadcast, one_dtype
from kernels.registry import Case, Kernel, Op, require_dtype
from kernels.scratch import fixed
from kernels.spec import FLOATS, Array, DType, Spec


def _infer(name: str, dtypes: frozenset[DType]) -> Callable[..., Spec]:
    def infer(*inputs: Spec | None) -> Spec:
        specs = [spec for spec in inputs if spec is not None]
        if not specs or len(specs) != len(inputs):
            raise ShapeError(f"{name}: has {len(specs)} of {len(inputs)} inputs, need one or more and none absent")
        require_dtype(f"{name}: input 0", specs[0], dtypes)
        return Spec(broadcast(name, *(spec.shape for spec in specs)), one_dtype(name, *specs))

    return infer


def cost_fold(out: tuple[Spec, ...], *inputs: Spec) -> Cost:
    """One per element for each input after the first."""
    return Cost(other_flops=(len(inputs) - 1) * out[0].elements)


def cost_mean(out: tuple[Spec, ...], *inputs: Spec) -> Cost:
    """One addition per element for each input after the first, and one division."""
    return Cost(other_flops=len(inputs) * out[0].elements)


def _run(ufunc: Callable[..., Any]) -> Callable[..., None]:
    def run(out: tuple[Array, ...], *inputs: Array) -> None:
        _fold(ufunc, out[0], inputs)

    return run


def _fold(ufunc: Callable[..., Any], y: Array, inputs: tuple[Array, ...]) -> None:
    """Fold from the left. A later input that shares the memory of the output is copied before it is overwritten."""
    if len(inputs) == 1:
        np.copyto(y, inputs[0])
        return
    later = [x.copy() if np.may_share_memory(x, y) else x for x in inputs[2:]]
    ufunc(inputs[0], inputs[1], out=y)
    for x in later:
        ufunc(y, x, out=y)


def run_mean(out: tuple[Array, ...], *inputs: Array) -> None:
    """Sum over count."""
    _fold(np.add, out[0], inputs)
    out[0][...] /= len(inputs)


def express_mean(draft: Draft, *inputs: Term) -> Term:
    """The sum, divided by how many there are."""
    total = folded("add")(draft, *inputs)
    return draft("div", total, draft.constant(len(inputs), total.dtype))


_TWICE = np.array([3, -7], np.int32)
_CASES = (
    Case("one", inputs=((2, 3),)),
    Case("broadcast_three", inputs=((2, 1, 3), (4, 1), (3,)), cost=Cost(other_flops=48)),
    Case("same_shape", inputs=((5,), (5,), (5,), (5,))),
    Case("half", inputs=(np.linspace(-2, 2, 7, dtype=np.float16), np.linspace(3, 0.5, 7, dtype=np.float16))),
    Case("nan", inputs=(np.array([np.nan, 1], np.float32), np.array([1, np.nan], np.float32))),
    Case("empty", inputs=((0, 3), (1, 3)), cost=Cost()),
    Case("shapes_differ", inputs=((2,), (3,)), raises=ShapeError),
    Case("dtypes_differ", inputs=((2,), _TWICE), raises=DTypeError),
    Case("none", inputs=(), raises=ShapeError),
    Case("absent", inputs=((2,), None), raises=ShapeError),
)
_INTS = Case("ints", inputs=(_TWICE, _TWICE[::-1].copy()), cost=Cost(other_flops=2))
_MEAN_CASES = (
    *(case for case in _CASES if case.id != "broadcast_three"),
    Case("broadcast_three", inputs=((2, 1, 3), (4, 1), (3,)), cost=Cost(other_flops=72)),
    Case("ints", inputs=(_TWICE,), raises=DTypeError),
)


def _op(name: str, ufunc: Callable[..., Any], operation: str, dtypes: frozenset[DType], cases: tuple[Case, ...]) -> Op:
    kernels = (Kernel("fold", _run(ufunc), scratch_bytes=fixed),)
    return Op(name, _infer(name, dtypes), cost_fold, kernels, elementwise=True, expression=folded(operation), cases=cases)


OPS = (
    _op("Max", np.maximum, "max", NUMBERS, (*_CASES, _INTS)),
    _op("Min", np.minimum, "min", NUMBERS, (*_CASES, _INTS)),
    _op("Sum", np.add, "add", FLOATS, _CASES),
    Op(
        "Mean",
        _infer("Mean", FLOATS),
        cost_mean,
        (Kernel("fold", run_mean),),
        elementwise=True,
        expression=express_mean,
        cases=_MEAN_CASES,
    ),
)
