"""Ops whose output length depends on values: NonZero, Compress, Unique, TopK."""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels.batch_axis import works_along_axis
from kernels.cost import Cost, moves
from kernels.errors import DTypeError, ShapeError
from kernels.operands import NUMBERS, SCALARS, axis_of, known_scalar
from kernels.registry import Case, Kernel, Op, require_dtype
from kernels.scratch import for_each
from kernels.spec import BOOL, STRING, Array, Spec
from kernels.upgrades import attribute_inputs

_INT64 = np.dtype(np.int64)


def infer_nonzero(x: Spec) -> Spec:
    """(rank, how many are not zero) int64; a scalar counts as a vector of one."""
    require_dtype("NonZero: x", x, SCALARS - {STRING})
    return Spec((max(x.rank, 1), int(np.count_nonzero(x.known("NonZero: x")))), _INT64)


def cost_each(out: tuple[Spec, ...], x: Spec, *inputs: Spec | None, **attrs: Any) -> Cost:
    """1 per input element: compare."""
    return Cost(other_flops=x.elements)


def run_nonzero(out: tuple[Array, ...], x: Array) -> None:
    """One row of coordinates per axis, in row-major order."""
    for row, coordinates in zip(out[0], np.nonzero(np.atleast_1d(x)), strict=True):
        row[:] = coordinates


def infer_compress(x: Spec, condition: Spec, *, axis: int | None = None) -> Spec:
    """As many slices along the axis as the condition has true; of the flattened x without an axis."""
    if condition.dtype != BOOL or condition.rank != 1:
        raise DTypeError(f"Compress: condition is {condition}, need a vector of bool")
    length = x.elements if axis is None else x.shape[axis_of("Compress", axis, x.rank)]
    if condition.elements > length:
        raise ShapeError(f"Compress: condition is {condition}, longer than the {length} it selects from")
    chosen = int(np.count_nonzero(condition.known("Compress: condition")))
    if axis is None:
        return Spec((chosen,), x.dtype)
    along = axis % x.rank
    return Spec((*x.shape[:along], chosen, *x.shape[along + 1 :]), x.dtype)


def run_compress(out: tuple[Array, ...], x: Array, condition: Array, *, axis: int | None = None) -> None:
    """Copy the selected slices. Slices behind the end of a shorter condition are left out."""
    np.copyto(out[0], np.compress(condition, x, axis))


def _unique(x: Array, axis: int | None, ascending: bool) -> tuple[Array, Array, Array, Array]:
    """Values, where each is first, which value each element is, how often each is."""
    if x.dtype == STRING:  # sorted by number: numpy's own strings would all take as much memory as the longest one
        texts = np.array(sorted(set(x.flat)), STRING)
        number = {text: i for i, text in enumerate(texts)}
        numbers = np.fromiter((number[text] for text in x.flat), np.int64, x.size).reshape(x.shape)
        values, first, inverse, counts = _unique(numbers, axis, ascending)
        return texts[values], first, inverse, counts
    if x.dtype.kind == "V":  # bfloat16
        values, first, inverse, counts = _unique(x.astype(np.float32), axis, ascending)
        return values.astype(x.dtype), first, inverse, counts
    values, first, inverse, counts = np.unique(
        x, return_index=True, return_inverse=True, return_counts=True, axis=axis, equal_nan=False
    )
    inverse = inverse.reshape(-1)
    if not ascending:
        order = np.argsort(first)
        place = np.empty_like(order)
        place[order] = np.arange(order.size)
        values = np.take(values, order, 0 if axis is None else axis)
        first, inverse, counts = first[order], place[inverse], counts[order]
    return values, first, inverse, counts


def infer_unique(x: Spec, *, axis: int | None = None, sorted: int = 1) -> tuple[Spec, ...]:
    """The unique values (or slices along the axis), then three int64 vectors: first index, inverse, count."""
    require_dtype("Unique: x", x, SCALARS)
    along = None if axis is None else axis_of("Unique", axis, x.rank)
    values, first, inverse, counts = _unique(x.known("Unique: x"), along, bool(sorted))
    return Spec(values.shape, x.dtype), *(Spec(vector.shape, _INT64) for vector in (first, inverse, counts))


def run_unique(out: tuple[Array | None, ...], x: Array, *, axis: int | None = None, sorted: int = 1) -> None:
    """By sorting."""
    made = _unique(x, None if axis is None else axis % x.ndim, bool(sorted))
    for y, values in zip(out, made, strict=False):
        if y is not None:
            np.copyto(y, values, casting="unsafe")


def infer_topk(x: Spec, k: Spec, *, axis: int = -1, largest: int = 1, sorted: int = 1) -> tuple[Spec, Spec]:
    """Values and their int64 indices, k of them along the axis."""
    require_dtype("TopK: x", x, NUMBERS)
    along = axis_of("TopK", axis, x.rank)
    require_dtype("TopK: k", k, frozenset({_INT64}))
    count = known_scalar("TopK: k", k)
    if not 0 <= count <= x.shape[along]:
        raise ShapeError(f"TopK: k is {count}, need 0 to {x.shape[along]}, axis {along} of x {x}")
    shape = (*x.shape[:along], count, *x.shape[along + 1 :])
    return Spec(shape, x.dtype), Spec(shape, _INT64)


def run_topk(
    out: tuple[Array | None, ...],
    x: Array,
    k: Array,
    *,
    axis: int = -1,
    largest: int = 1,
    sorted: int = 1,
) -> None:
    """A stable sort, so that the first of equal elements comes first; for the largest, backwards over the flipped axis."""
    count, size = k.item(), x.shape[axis]
    if largest:
        order = size - 1 - np.flip(np.argsort(np.flip(x, axis), axis, kind="stable"), axis)
    else:
        order = np.argsort(x, axis, kind="stable")
    chosen = np.moveaxis(np.moveaxis(order, axis, 0)[:count], 0, axis)
    if out[0] is not None:
        np.copyto(out[0], np.take_along_axis(x, chosen, axis))
    if len(out) > 1 and out[1] is not None:
        np.copyto(out[1], chosen)


def _ints(*values: int) -> Array:
    return np.array(values, np.int64)


_SPARSE = np.array([[1, 0, 0], [0, -2, 3]], np.float32)
_NONZERO = (
    Case("matrix", inputs=(_SPARSE,), cost=Cost(other_flops=6)),
    Case("bools", inputs=(np.array([True, False, True]),)),
    Case("none", inputs=(np.zeros((2, 2), np.int32),)),
    Case("scalar", inputs=(np.array(3, np.float32),)),
    Case("strings", inputs=(np.array(["a"], object),), raises=DTypeError),
)
_COMPRESS = (
    Case("rows", inputs=((3, 2), np.array([False, True, True])), attrs={"axis": 0}, cost=Cost()),
    Case("negative_axis_short", inputs=((2, 4), np.array([True, False])), attrs={"axis": -1}),
    Case("flat", inputs=((3, 2), np.array([False, True, False, True, True]))),
    Case("condition_long", inputs=((2,), np.ones(3, bool)), raises=ShapeError),
    Case("axis_out_of_range", inputs=((2,), np.ones(2, bool)), attrs={"axis": 1}, raises=ShapeError),
    Case("float_condition", inputs=((2,), (2,)), raises=DTypeError),
)
_REPEATED = np.array([2, 1, 1, 3, 4, 3], np.float32)
_UNIQUE = (
    Case("sorted", inputs=(_REPEATED,), outputs=4, cost=Cost(other_flops=6)),
    Case("by_first_place", inputs=(_REPEATED,), attrs={"sorted": 0}, outputs=4),
    Case("rows", inputs=(np.array([[1, 0], [0, 5], [1, 0]], np.float32),), attrs={"axis": 0}, outputs=4),
    Case("columns_unsorted", inputs=(np.array([[3, 1, 3], [0, 2, 0]], np.int64),), attrs={"axis": -1, "sorted": 0}, outputs=4),
    Case("strings", inputs=(np.array(["b", "a", "b"], object),), outputs=4),
    Case("axis_out_of_range", inputs=((2,),), attrs={"axis": 1}, raises=ShapeError),
)
_TIES = np.array([[1, 3, 3, 2], [5, 5, 5, 0]], np.float32)
_TOPK = (
    Case("largest", inputs=((3, 6), _ints(2)), outputs=2, cost=Cost(other_flops=18)),
    Case("smallest_first_axis", inputs=((5, 3), _ints(3)), attrs={"axis": 0, "largest": 0}, outputs=2),
    Case("ties", inputs=(_TIES, _ints(3)), outputs=2),
    Case("ties_smallest", inputs=(_TIES, _ints(3)), attrs={"largest": 0}, outputs=2),
    Case("ints", inputs=(np.array([-128, 5, 127], np.int8), _ints(1)), outputs=2),
    Case("k_zero", inputs=((3,), _ints(0)), outputs=2),
    Case("k_too_large", inputs=((3,), _ints(4)), raises=ShapeError, outputs=2),
    Case("k_vector", inputs=((3,), _ints(1, 1)), raises=ShapeError, outputs=2),
    Case("float_k", inputs=((3,), (1,)), raises=DTypeError, outputs=2),
)

OPS = (
    Op("NonZero", infer_nonzero, cost_each, (Kernel("scan", run_nonzero),), cases=_NONZERO),
    Op("Compress", infer_compress, moves, (Kernel("copy", run_compress, scratch_bytes=for_each(16)),), cases=_COMPRESS),
    Op("Unique", infer_unique, cost_each, (Kernel("sort", run_unique, scratch_bytes=for_each(40)),), cases=_UNIQUE),
    Op(
        "TopK",
        infer_topk,
        cost_each,
        (Kernel("sort", run_topk, scratch_bytes=for_each(24)),),
        upgrade=attribute_inputs(10, "k"),
        mixes_rows=works_along_axis,
        cases=_TOPK,
    ),
)
