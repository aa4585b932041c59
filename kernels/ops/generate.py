"""Tensors made from a few numbers: Range, EyeLike, OneHot."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from kernels.cost import Cost, moves, per_element
from kernels.errors import AttributeValueError, DTypeError, ShapeError
from kernels.operands import NUMBERS, SCALARS, element_type, known_scalar, one_dtype
from kernels.registry import Case, Kernel, Op, require_dtype
from kernels.scratch import fixed
from kernels.spec import INTS, STRING, Array, DType, Spec

_BLOCK_ELEMENTS = 16_384  # that are computed at once


def infer_range(start: Spec, limit: Spec, delta: Spec, *, stash_type: int = 1) -> Spec:
    """max(0, ceil((limit - start) / delta)) numbers. `stash_type` needs no care: half precisions are computed in float64."""
    dtype = one_dtype("Range", start, limit, delta)
    require_dtype("Range: start", start, NUMBERS)
    first, last, step = (known_scalar("Range: " + n, s) for n, s in (("start", start), ("limit", limit), ("delta", delta)))
    if step == 0:
        raise AttributeValueError(f"Range: delta is {step}, need another number than 0")
    if dtype not in INTS and not all(map(math.isfinite, (first, last, step))):
        raise AttributeValueError(f"Range: from {first} to {last} by {step}, need finite numbers")
    # integers divide exactly, however large
    count = -((first - last) // step) if dtype in INTS else math.ceil((last - first) / step)
    return Spec((max(count, 0),), dtype)


def run_range(out: tuple[Array, ...], start: Array, limit: Array, delta: Array, *, stash_type: int = 1) -> None:
    """start + i·delta, in blocks."""
    (y,) = out
    wide = np.dtype(np.int64 if y.dtype.kind in "iu" else np.float64)
    for low in range(0, y.size, _BLOCK_ELEMENTS):
        block = y[low : low + _BLOCK_ELEMENTS]
        values = np.arange(low, low + block.size, dtype=np.int64).astype(wide) * delta.astype(wide)
        values += start.astype(wide)
        np.copyto(block, values, casting="unsafe")


def infer_eye(x: Spec, *, dtype: int | None = None, k: int = 0) -> Spec:
    """The shape of the matrix x; its dtype unless one is given."""
    if x.rank != 2:
        raise ShapeError(f"EyeLike: x is {x}, need a matrix")
    made = x.dtype if dtype is None else element_type("EyeLike: attribute dtype", dtype)
    if made == STRING:
        raise DTypeError(f"EyeLike: dtype is {made.name}, need numbers or bool")
    return Spec(x.shape, made)


def run_eye(out: tuple[Array, ...], x: Array, *, dtype: int | None = None, k: int = 0) -> None:
    """Ones on diagonal k, zeros elsewhere."""
    (y,) = out
    y.fill(0)
    rows, columns = max(-k, 0), max(k, 0)
    part = y[rows:, columns:]
    length = min(part.shape)
    np.einsum("ii->i", part[:length, :length])[:] = 1


def infer_one_hot(indices: Spec, depth: Spec, values: Spec, *, axis: int = -1) -> Spec:
    """A new axis of `depth`; dtype of `values`."""
    require_dtype("OneHot: indices", indices, NUMBERS)
    require_dtype("OneHot: depth", depth, NUMBERS)
    require_dtype("OneHot: values", values, SCALARS)
    if values.shape != (2,):
        raise ShapeError(f"OneHot: values are {values}, need [off_value, on_value]")
    if not -indices.rank - 1 <= axis <= indices.rank:
        raise ShapeError(f"OneHot: axis is {axis}, need one in [{-indices.rank - 1}, {indices.rank}] for indices {indices}")
    count = int(known_scalar("OneHot: depth", depth))
    if count < 1:
        raise ShapeError(f"OneHot: depth is {count}, need 1 or more")
    place = axis % (indices.rank + 1)
    return Spec((*indices.shape[:place], count, *indices.shape[place:]), values.dtype)


def run_one_hot(out: tuple[Array, ...], indices: Array, depth: Array, values: Array, *, axis: int = -1) -> None:
    """Fill, then write at each index, in blocks; an index outside [-depth, depth) writes nothing."""
    (y,) = out
    place = axis % y.ndim
    count, inner = y.shape[place], math.prod(y.shape[place + 1 :])
    np.copyto(y, values[0])
    if not y.size:
        return
    spots, wanted = y.reshape(-1, count, inner), indices.reshape(-1)
    for low in range(0, wanted.size, _BLOCK_ELEMENTS):
        index = wanted[low : low + _BLOCK_ELEMENTS].astype(np.int64)
        index += (index < 0) * count
        inside = np.flatnonzero((index >= 0) & (index < count))
        outer, column = np.divmod(inside + low, inner)
        spots[outer, index[inside], column] = values[1]


def _number(value: float, dtype: Any = np.int64) -> Array:
    return np.array(value, dtype)


_F32: DType = np.dtype(np.float32)
_RANGE = (
    Case("ints", inputs=(_number(3), _number(10), _number(3)), cost=Cost(other_flops=6)),
    Case("backwards", inputs=(_number(10), _number(4), _number(-2))),
    Case("floats", inputs=(_number(0.5, _F32), _number(2, _F32), _number(0.4, _F32))),
    Case("none", inputs=(_number(5), _number(1), _number(1)), cost=Cost()),
    Case("delta_zero", inputs=(_number(5), _number(1), _number(0)), raises=AttributeValueError),
    Case("infinite", inputs=(_number(5, _F32), _number(np.inf, _F32), _number(1, _F32)), raises=AttributeValueError),
    Case("dtypes_differ", inputs=(_number(5), _number(1, _F32), _number(1)), raises=DTypeError),
    Case("vector", inputs=(np.zeros(2, np.int64), _number(1), _number(1)), raises=ShapeError),
)
_EYE = (
    Case("square", inputs=((3, 3),), cost=Cost()),
    Case("upper_int64", inputs=((3, 5),), attrs={"k": 2, "dtype": 7}),
    Case("lower", inputs=((4, 2),), attrs={"k": -1}),
    Case("beyond", inputs=((2, 2),), attrs={"k": 5}),
    Case("empty", inputs=((0, 3),)),
    Case("vector", inputs=((3,),), raises=ShapeError),
)
_ON_OFF = np.array([-1, 5], np.float32)
_ONE_HOT = (
    Case("last_axis", inputs=(np.array([[0, 2], [1, -1]], np.int64), _number(3), _ON_OFF), cost=Cost()),
    Case("first_axis", inputs=(np.array([0, 7, -9], np.int64), _number(3), _ON_OFF), attrs={"axis": 0}),
    Case("float_indices", inputs=(np.array([0.0, 2.0], np.float32), _number(3, _F32), np.array([0, 1], np.int32))),
    Case("scalar", inputs=(_number(1), _number(3), _ON_OFF)),
    Case("depth_zero", inputs=(_number(1), _number(0), _ON_OFF), raises=ShapeError),
    Case("three_values", inputs=(_number(1), _number(3), (3,)), raises=ShapeError),
    Case("axis_out_of_range", inputs=(_number(1), _number(3), _ON_OFF), attrs={"axis": 1}, raises=ShapeError),
)

OPS = (
    Op("Range", infer_range, per_element(2, "multiply, add"), (Kernel("arange", run_range, scratch_bytes=fixed),), cases=_RANGE),
    Op("EyeLike", infer_eye, moves, (Kernel("fill", run_eye, scratch_bytes=fixed),), cases=_EYE),
    Op("OneHot", infer_one_hot, moves, (Kernel("compare", run_one_hot, scratch_bytes=fixed),), cases=_ONE_HOT),
)
