"""The two products of ai.onnx.preview's FlexAttention, between which its graphs change the scores and the probabilities.

    scores = q · kᵀ · scale        y = probabilities · v

A head of k and v serves as many consecutive heads of q as q has more. The reader puts the graphs between the products
(`graph.formats.onnx.flex_attention`).
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from kernels.composite import Parts, Value, written
from kernels.cost import Cost
from kernels.errors import AttributeValueError, DTypeError, ShapeError
from kernels.half import in_single
from kernels.operands import element_type, one_dtype
from kernels.registry import Case, Kernel, Op, require_dtype
from kernels.scratch import times
from kernels.spec import FLOATS, Array, DType, Spec

_F32, _F64 = np.dtype(np.float32), np.dtype(np.float64)


def _check(subject: str, a: Spec, b: Spec, *, depth: int) -> None:
    """Raise ShapeError unless a and b are (batch, heads, rows, columns) and fit. depth: the axis of b that is summed over."""
    if a.rank != 4 or b.rank != 4 or a.shape[0] != b.shape[0] or a.shape[3] != b.shape[depth]:
        raise ShapeError(f"{subject}, need (batch, heads, length, size) each, one batch and equal sizes to sum over")
    if not b.shape[1] or a.shape[1] % b.shape[1]:
        raise ShapeError(f"{subject}, need a multiple of the {b.shape[1]} heads of keys and values")


def infer_scores(q: Spec, k: Spec, *, scale: float | None = None, softmax_precision: int | None = None) -> Spec:
    """(batch, q's heads, q's length, k's length) in the precision of the softmax: float32 by default, float64 for float64."""
    require_dtype("edgewise.FlexScores: q", q, FLOATS)
    one_dtype("edgewise.FlexScores", q, k)
    _check(f"edgewise.FlexScores: q is {q}, k is {k}", q, k, depth=3)
    if scale is not None and not 0 <= scale < math.inf:
        raise AttributeValueError(f"edgewise.FlexScores: scale is {scale}, need a finite number of at least 0")
    return Spec((*q.shape[:3], k.shape[2]), _precision(q.dtype, softmax_precision))


def _precision(dtype: DType, asked: int | None) -> DType:
    if asked is None:
        return _F64 if dtype == _F64 else _F32
    made = element_type("edgewise.FlexScores: attribute softmax_precision", asked)
    require_dtype("edgewise.FlexScores: attribute softmax_precision", Spec((), made), FLOATS)
    return made


def cost_scores(out: tuple[Spec, ...], q: Spec, k: Spec, **attrs: Any) -> Cost:
    """MACs: scores · head size. Others: 1 per element of q and of k, for the scale."""
    return Cost(macs=out[0].elements * q.shape[3], other_flops=q.elements + k.elements)


@in_single
def run_scores(out: tuple[Array, ...], q: Array, k: Array, *, scale: float | None, softmax_precision: int | None) -> None:
    """One product for each head of k, all heads of q that it serves stacked."""
    factor = q.dtype.type(math.sqrt(1 / math.sqrt(max(q.shape[3], 1)) if scale is None else scale))
    np.copyto(out[0], _grouped(q * factor, (k * factor).swapaxes(2, 3)), casting="unsafe")


def _grouped(a: Array, b: Array) -> Array:
    """Multiply, the heads of a that share one of b stacked."""
    batch, heads, rows, depth = a.shape
    stacked = np.matmul(a.reshape(batch, b.shape[1], heads // b.shape[1] * rows, depth), b)
    product: Array = stacked.reshape(batch, heads, rows, b.shape[3])
    return product


def infer_values(probabilities: Spec, v: Spec) -> Spec:
    """(batch, heads of the probabilities, rows, v's head size) in v's dtype."""
    for name, spec in (("probabilities", probabilities), ("v", v)):
        require_dtype(f"edgewise.FlexValues: {name}", spec, FLOATS)
    _check(f"edgewise.FlexValues: probabilities are {probabilities}, v is {v}", probabilities, v, depth=2)
    return Spec((*probabilities.shape[:3], v.shape[3]), v.dtype)


def cost_values(out: tuple[Spec, ...], probabilities: Spec, v: Spec) -> Cost:
    """MACs: probabilities · v's head size."""
    return Cost(macs=probabilities.elements * v.shape[3])


def run_values(out: tuple[Array, ...], probabilities: Array, v: Array) -> None:
    """One product for each head of v, in the precision of the probabilities, which is at least float32."""
    computed = np.result_type(probabilities.astype(_F32, copy=False) if probabilities.dtype.itemsize < 4 else probabilities)
    np.copyto(out[0], _grouped(probabilities.astype(computed, copy=False), v.astype(computed, copy=False)), casting="unsafe")


def write_scores(parts: Parts, q: Value, k: Value, *, scale: float | None, softmax_precision: int | None) -> Value:
    """As products of matrices, for native kernels."""
    factor = math.sqrt(1 / math.sqrt(max(q.shape[3], 1)) if scale is None else scale)
    left, right = (parts("Mul", each, parts.number(factor, each)) for each in (q, k))
    scores = _write_grouped(parts, left, parts("Transpose", right, perm=(0, 1, 3, 2)))
    return scores if softmax_precision is None else parts("Cast", scores, to=softmax_precision)


def write_values(parts: Parts, probabilities: Value, v: Value) -> Value:
    """As products of matrices, for native kernels."""
    if probabilities.dtype == v.dtype:
        return _write_grouped(parts, probabilities, v)
    return parts("CastLike", _write_grouped(parts, probabilities, parts("CastLike", v, probabilities)), v)


def _write_grouped(parts: Parts, a: Value, b: Value) -> Value:
    """As `_grouped`."""
    _, heads, rows, depth = a.shape
    if heads == b.shape[1]:
        return parts("MatMul", a, b)
    stacked = parts("MatMul", parts("Reshape", a, parts.numbers(0, b.shape[1], heads // b.shape[1] * rows, depth)), b)
    return parts("Reshape", stacked, parts.numbers(0, heads, rows, b.shape[3]))


_WIDE = np.linspace(-1, 1, 24).reshape(1, 2, 3, 4)
_GROUPED = ((2, 4, 3, 8), (2, 2, 5, 8))
OPS = (
    Op(
        "edgewise.FlexScores",
        infer_scores,
        cost_scores,
        (Kernel("matmul", run_scores, scratch_bytes=times(4)),),
        parts=functools.partial(written, "edgewise.FlexScores", write_scores),
        tolerance_eps=32,
        cases=(
            Case("heads", inputs=((2, 3, 4, 8), (2, 3, 5, 8)), cost=Cost(macs=2 * 3 * 4 * 5 * 8, other_flops=192 + 240)),
            Case("grouped", inputs=_GROUPED, attrs={"scale": 0.5}),
            Case("half", inputs=(np.ones((1, 1, 2, 4), np.float16), np.ones((1, 1, 3, 4), np.float16))),
            Case("double_in_single", inputs=(_WIDE, _WIDE), attrs={"softmax_precision": 1}),
            Case("empty", inputs=((0, 4, 3, 8), (0, 2, 5, 8)), cost=Cost()),
            Case("three_axes", inputs=((4, 3, 8), (4, 5, 8)), raises=ShapeError),
            Case("heads_do_not_divide", inputs=((2, 3, 3, 8), (2, 2, 5, 8)), raises=ShapeError),
            Case("types_differ", inputs=((2, 2, 3, 8), np.ones((2, 2, 5, 8))), raises=DTypeError),
            Case("scale", inputs=_GROUPED, attrs={"scale": -1.0}, raises=AttributeValueError),
        ),
    ),
    Op(
        "edgewise.FlexValues",
        infer_values,
        cost_values,
        (Kernel("matmul", run_values, scratch_bytes=times(4)),),
        parts=functools.partial(written, "edgewise.FlexValues", write_values),
        tolerance_eps=32,
        cases=(
            Case("heads", inputs=((2, 3, 4, 5), (2, 3, 5, 8)), cost=Cost(macs=2 * 3 * 4 * 5 * 8)),
            Case("grouped", inputs=((2, 4, 3, 5), (2, 2, 5, 6))),
            Case("half", inputs=((1, 1, 2, 3), np.ones((1, 1, 3, 4), np.float16))),
            Case("lengths_differ", inputs=((2, 3, 4, 5), (2, 3, 6, 8)), raises=ShapeError),
            Case("ints", inputs=((2, 3, 4, 5), np.ones((2, 3, 5, 8), np.int32)), raises=DTypeError),
        ),
    ),
)
