"""Writing by index into a copy: ScatterElements, ScatterND, the older Scatter, and TensorScatter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from kernels.cost import Cost, moves
from kernels.errors import AttributeValueError, DTypeError, IndexRangeError, ShapeError
from kernels.operands import INDICES, axis_of, check_indices, one_dtype, one_of
from kernels.registry import Case, Kernel, Op, require_dtype
from kernels.spec import Array, Spec

# how an update combines with its element; `at` handles several updates of one element
_REDUCTIONS: dict[str, Callable[[Array, Any, Array], None]] = {
    "none": lambda y, index, updates: y.__setitem__(index, updates),
    "add": np.add.at,
    "mul": np.multiply.at,
    "max": np.maximum.at,
    "min": np.minimum.at,
}


def infer_elements(x: Spec, indices: Spec, updates: Spec, *, axis: int = 0, reduction: str = "none") -> Spec:
    """Same shape and dtype as x."""
    require_dtype("ScatterElements: indices", indices, INDICES)
    one_of("ScatterElements: attribute reduction", reduction, _REDUCTIONS)
    one_dtype("ScatterElements: x and updates", x, updates)
    along = axis_of("ScatterElements", axis, x.rank)
    if indices.shape != updates.shape or indices.rank != x.rank:
        raise ShapeError(f"ScatterElements: indices are {indices}, updates {updates}, need one shape of rank {x.rank} as x {x}")
    if any(i > n for k, (i, n) in enumerate(zip(indices.shape, x.shape, strict=True)) if k != along):
        raise ShapeError(f"ScatterElements: indices {indices} are larger than x {x}, need sizes within it but for axis {along}")
    if indices.value is not None:
        check_indices("ScatterElements: indices", indices.value, x.shape[along])
    return Spec(x.shape, x.dtype)


def cost_updates(out: tuple[Spec, ...], x: Spec, indices: Spec, updates: Spec, *, reduction: str = "none", **attrs: int) -> Cost:
    """One per update where there is a reduction, else 0."""
    return Cost(other_flops=updates.elements if reduction != "none" else 0)


def run_elements(
    out: tuple[Array, ...], x: Array, indices: Array, updates: Array, *, axis: int = 0, reduction: str = "none"
) -> None:
    """A copy, then one indexed write; where several go to one place, the last one stays."""
    (y,) = out
    np.copyto(y, x)
    if not indices.size:
        return
    size = x.shape[axis]
    check_indices("ScatterElements: indices", indices, size)
    place = list(np.ix_(*map(np.arange, indices.shape)))
    place[axis] = indices % size
    _REDUCTIONS[reduction](y, tuple(place), updates)


def infer_nd(x: Spec, indices: Spec, updates: Spec, *, reduction: str = "none") -> Spec:
    """Same shape and dtype as x; `indices` hold tuples, `updates` what each tuple names."""
    require_dtype("ScatterND: indices", indices, INDICES)
    one_of("ScatterND: attribute reduction", reduction, _REDUCTIONS)
    one_dtype("ScatterND: x and updates", x, updates)
    if indices.rank < 1 or x.rank < 1 or not 1 <= indices.shape[-1] <= x.rank:
        raise ShapeError(f"ScatterND: indices are {indices}, need tuples of 1 to {x.rank} in their last axis for x {x}")
    wanted = (*indices.shape[:-1], *x.shape[indices.shape[-1] :])
    if updates.shape != wanted:
        raise ShapeError(f"ScatterND: updates are {updates}, need shape {wanted} for x {x} and indices {indices}")
    return Spec(x.shape, x.dtype)


def run_nd(out: tuple[Array, ...], x: Array, indices: Array, updates: Array, *, reduction: str = "none") -> None:
    """A copy, then one indexed write."""
    (y,) = out
    np.copyto(y, x)
    if not updates.size:
        return
    columns = tuple(np.moveaxis(indices, -1, 0))
    for i, column in enumerate(columns):
        check_indices(f"ScatterND: indices[..., {i}]", column, x.shape[i])
    _REDUCTIONS[reduction](y, columns, updates)


def infer_tensor(x: Spec, update: Spec, write_indices: Spec | None = None, *, axis: int = -2, mode: str = "linear") -> Spec:
    """Same shape and dtype as the cache x; the update is as long or shorter along `axis`."""
    one_of("TensorScatter: attribute mode", mode, ("linear", "circular"))
    one_dtype("TensorScatter: cache and update", x, update)
    along = axis_of("TensorScatter", axis, x.rank)
    if along == 0:
        raise ShapeError(f"TensorScatter: axis is {axis}, the batch of x {x}, need another")
    if x.rank != update.rank or any(a != b for k, (a, b) in enumerate(zip(x.shape, update.shape, strict=True)) if k != along):
        raise ShapeError(f"TensorScatter: update is {update}, need x's {x} except along axis {along}")
    if update.shape[along] > x.shape[along]:
        raise ShapeError(f"TensorScatter: update is {update}, longer than x {x} along axis {along}")
    if write_indices is not None and (write_indices.dtype not in INDICES or write_indices.shape != x.shape[:1]):
        raise ShapeError(f"TensorScatter: write_indices are {write_indices}, need {x.shape[0]} int64, one a batch row")
    return Spec(x.shape, x.dtype)


def run_tensor(
    out: tuple[Array, ...], x: Array, update: Array, write_indices: Array | None = None, *, axis: int = -2, mode: str = "linear"
) -> None:
    """A copy, then the update written from each batch row's own position on, around the end when circular."""
    (y,) = out
    np.copyto(y, x)
    if not update.size:
        return
    length, size = update.shape[axis], x.shape[axis]
    starts = np.zeros(x.shape[0], np.int64) if write_indices is None else write_indices
    places = starts[:, None] + np.arange(length)
    if mode == "circular":
        places %= size
    elif places.min() < 0 or places.max() >= size:
        raise IndexRangeError(
            f"TensorScatter: rows {places.min()} to {places.max()} are written, the cache holds 0 to {size - 1}"
        )
    target, source = np.moveaxis(y, axis, 1), np.moveaxis(update, axis, 1)
    target[np.arange(len(places))[:, None], places] = source


def _ints(values: object) -> Array:
    return np.array(values, np.int64)


_COLUMNS = _ints([[1, -3, 2], [0, 2, 1]])
_TWICE = _ints([[1, 1], [1, 0]])
_ELEMENTS = (
    Case("columns", inputs=((3, 4), _COLUMNS, (2, 3)), cost=Cost()),
    Case("axis", inputs=((3, 5), _COLUMNS, (2, 3)), attrs={"axis": 1}),
    Case("add_twice", inputs=((2, 3), _TWICE, (2, 2)), attrs={"axis": 1, "reduction": "add"}, cost=Cost(other_flops=4)),
    Case("max_of_nan", inputs=((3,), np.array([1, 1], np.int64), np.array([np.nan, 9], np.float32)), attrs={"reduction": "max"}),
    Case("mul", inputs=((2, 3), _TWICE, (2, 2)), attrs={"axis": 1, "reduction": "mul"}),
    Case("max", inputs=((2, 3), _TWICE, (2, 2)), attrs={"axis": -1, "reduction": "max"}),
    Case("min", inputs=((2, 3), _TWICE, (2, 2)), attrs={"axis": 1, "reduction": "min"}),
    Case("no_update", inputs=((2, 3), np.zeros((0, 3), np.int64), (0, 3))),
    Case("index_out_of_range", inputs=((2, 3), _ints([[2]]), (1, 1)), raises=IndexRangeError),
    Case("shapes_differ", inputs=((2, 3), _ints([[1]]), (1, 2)), raises=ShapeError),
    Case("larger_than_x", inputs=((2, 3), np.zeros((1, 4), np.int64), (1, 4)), raises=ShapeError),
    Case("unknown_reduction", inputs=((2,), _ints([1]), (1,)), attrs={"reduction": "sub"}, raises=AttributeValueError),
    Case("dtypes_differ", inputs=((2,), _ints([1]), _ints([1])), raises=DTypeError),
)
_ND = (
    Case("elements", inputs=((2, 3), _ints([[0, 1], [-1, 2]]), (2,)), cost=Cost()),
    Case("rows", inputs=((4, 2, 3), _ints([[[1]], [[3]]]), (2, 1, 2, 3))),
    Case("add_twice", inputs=((4, 2), _ints([[1], [1]]), (2, 2)), attrs={"reduction": "add"}, cost=Cost(other_flops=4)),
    Case("min", inputs=((4,), _ints([[1], [0]]), (2,)), attrs={"reduction": "min"}),
    Case("no_update", inputs=((4,), np.zeros((0, 1), np.int64), (0,))),
    Case("updates_shape", inputs=((4, 2), _ints([[1]]), (2,)), raises=ShapeError),
    Case("tuples_too_long", inputs=((4,), _ints([[1, 1]]), (1,)), raises=ShapeError),
    Case("float_indices", inputs=((4,), (1, 1), (1,)), raises=DTypeError),
)
_TENSOR = (
    Case("prefill", inputs=((2, 3, 5, 4), (2, 3, 2, 4)), cost=Cost()),
    Case("decode", inputs=((2, 3, 5, 4), (2, 3, 1, 4), _ints([1, 4]))),
    Case("circular", inputs=((2, 5, 4), (2, 3, 4), _ints([4, 1])), attrs={"mode": "circular"}),
    Case("axis", inputs=((2, 3, 5), (2, 3, 2), _ints([1, 0])), attrs={"axis": -1}),
    Case("batch_axis", inputs=((2, 3), (1, 3)), attrs={"axis": 0}, raises=ShapeError),
    Case("update_longer", inputs=((2, 3, 4), (2, 4, 4)), raises=ShapeError),
    Case("unknown_mode", inputs=((2, 3, 4), (2, 1, 4)), attrs={"mode": "ring"}, raises=AttributeValueError),
)

_WRITE = (Kernel("write", run_elements),)
OPS = (
    Op("ScatterElements", infer_elements, cost_updates, _WRITE, cases=_ELEMENTS),
    Op("Scatter", infer_elements, cost_updates, _WRITE, cases=_ELEMENTS[:2]),  # its name before opset 11
    Op("ScatterND", infer_nd, cost_updates, (Kernel("write", run_nd),), cases=_ND),
    Op("TensorScatter", infer_tensor, moves, (Kernel("write", run_tensor),), cases=_TENSOR),
)
