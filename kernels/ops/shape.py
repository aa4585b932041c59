"""Shapes as tensors, and tensors from shapes: Shape, Size, ConstantOfShape."""

from __future__ import annotations

import numpy as np

from kernels.cost import Cost, moves
from kernels.errors import AttributeValueError, ShapeError
from kernels.operands import known_ints
from kernels.registry import Case, Kernel, Op
from kernels.scratch import fixed
from kernels.spec import Array, Spec, size_array


def _sizes(shape: tuple[int, ...], start: int, end: int | None) -> Array:
    return size_array(shape[start:end])


def infer_shape(x: Spec, *, start: int = 0, end: int | None = None) -> Spec:
    """x's sizes from axis `start` to before `end`, clamped. The value is known without x's elements."""
    return Spec.of(_sizes(x.shape, start, end))


def run_shape(out: tuple[Array, ...], x: Array, *, start: int = 0, end: int | None = None) -> None:
    """Reads no element."""
    np.copyto(out[0], _sizes(x.shape, start, end))


def infer_size(x: Spec) -> Spec:
    """The number of elements, which is known without them."""
    return Spec.of(size_array(x.elements))


def run_size(out: tuple[Array, ...], x: Array) -> None:
    """Reads no element."""
    out[0][...] = x.size


def infer_constant_of_shape(shape: Spec, *, value: Array | None = None) -> Spec:
    """The shape given by the input; dtype of `value`, float32 without one."""
    sizes = known_ints("ConstantOfShape: shape", shape)
    if any(size < 0 for size in sizes):
        raise ShapeError(f"ConstantOfShape: shape is {sizes}, need sizes ≥ 0")
    if value is not None and value.size != 1:
        raise AttributeValueError(f"ConstantOfShape: attribute value has shape {value.shape}, need one element")
    return Spec(sizes, np.dtype(np.float32) if value is None else value.dtype)


def run_constant_of_shape(out: tuple[Array, ...], shape: Array, *, value: Array | None = None) -> None:
    """Fill with the value, 0 without one."""
    out[0].fill(0 if value is None else value.reshape(())[()])


_INTS = np.array([2, 3], np.int64)
_SHAPE = (
    Case("all", inputs=((2, 3, 4),), cost=Cost()),
    Case("from_one", inputs=((2, 3, 4),), attrs={"start": 1}),
    Case("up_to_last", inputs=((2, 3, 4),), attrs={"start": -2, "end": -1}),
    Case("clamped", inputs=((2, 3),), attrs={"start": -9, "end": 9}),
    Case("scalar", inputs=((),)),
)
_SIZE = (
    Case("matrix", inputs=((2, 3),), cost=Cost()),
    Case("scalar", inputs=((),)),
    Case("empty", inputs=((0, 3),)),
)
_CONSTANT = (
    Case("zeros", inputs=(_INTS,), cost=Cost()),
    Case("int64", inputs=(_INTS,), attrs={"value": np.array([7], np.int64)}),
    Case("scalar", inputs=(np.array([], np.int64),), attrs={"value": np.array([1.5], np.float32)}),
    Case("empty", inputs=(np.array([0, 3], np.int64),)),
    Case("negative", inputs=(np.array([-1], np.int64),), raises=ShapeError),
    Case("two_values", inputs=(_INTS,), attrs={"value": np.ones(2, np.float32)}, raises=AttributeValueError),
)

OPS = (
    Op("Shape", infer_shape, moves, (Kernel("shape", run_shape, scratch_bytes=fixed),), cases=_SHAPE),
    Op("Size", infer_size, moves, (Kernel("size", run_size, scratch_bytes=fixed),), cases=_SIZE),
    Op(
        "ConstantOfShape",
        infer_constant_of_shape,
        moves,
        (Kernel("fill", run_constant_of_shape, scratch_bytes=fixed),),
        cases=_CONSTANT,
    ),
)
