"""Checks of operands and attributes that many operators share: dtypes, broadcasting, axes, known integers, indices."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from kernels.errors import AttributeValueError, DTypeError, IndexRangeError, ShapeError
from kernels.spec import BOOL, ELEMENT_TYPES, FLOATS, INTS, STRING, Array, DType, Spec

SIGNED = frozenset(dtype for dtype in INTS if dtype.kind == "i")
INDICES = frozenset(map(np.dtype, ("int32", "int64")))
NUMBERS = FLOATS | INTS
REALS = FLOATS - {np.dtype(np.float64)}  # what quantised numbers stand for, and what scales them
SCALARS = NUMBERS | {BOOL, STRING}


def broadcast(subject: str, *shapes: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape that all shapes broadcast to. Raises ShapeError naming the first axis whose sizes differ."""
    rank = max(map(len, shapes))
    result = [1] * rank
    for shape in shapes:
        for i, size in enumerate(shape, rank - len(shape)):
            if size not in (1, result[i]) and result[i] != 1:
                raise ShapeError(f"{subject}: shapes {' and '.join(map(str, shapes))} differ in axis {i}, need equal sizes or 1")
            if size != 1:
                result[i] = size
    return tuple(result)


def one_dtype(subject: str, *specs: Spec) -> DType:
    """Return the dtype that all specs have. Raises DTypeError naming the first input of another one."""
    for i, spec in enumerate(specs):
        if spec.dtype != specs[0].dtype:
            raise DTypeError(f"{subject}: input {i} is {spec}, need {specs[0].dtype.name} as input 0")
    return specs[0].dtype


def axis_of(subject: str, axis: int, rank: int) -> int:
    """Return `axis` counted from the front. Raises ShapeError where it is outside [-rank, rank)."""
    if not -rank <= axis < rank:
        raise ShapeError(f"{subject}: axis is {axis}, need one of the {rank} axes in [{-rank}, {rank - 1}]")
    return axis % rank


def axes_of(subject: str, axes: Iterable[int], rank: int) -> tuple[int, ...]:
    """Return axes counted from the front, in the given order. Raises ShapeError on an axis out of range or named twice."""
    found = tuple(axis_of(subject, int(axis), rank) for axis in axes)
    if len(set(found)) != len(found):
        raise ShapeError(f"{subject}: axes {found} name one axis twice, need each once")
    return found


def known_ints(subject: str, spec: Spec, length: int | None = None) -> tuple[int, ...]:
    """Return the value of a scalar or 1-D int32 or int64 input, of that length if given. Raises DataDependentError if unknown."""
    if spec.dtype not in INDICES or spec.rank > 1:
        raise DTypeError(f"{subject}: is {spec}, need a 1-D tensor of int64 or int32")
    if length is not None and spec.elements != length:
        raise ShapeError(f"{subject}: has {spec.elements} values, need {length}")
    return tuple(np.ravel(spec.known(subject)).tolist())


def known_scalar(subject: str, spec: Spec) -> Any:
    """Return the value of a one-element input as a Python scalar. Raises DataDependentError if it is unknown."""
    if spec.elements != 1:
        raise ShapeError(f"{subject}: is {spec}, need one element")
    return spec.known(subject).item()


class Taken(NamedTuple):
    """The elements that a slice takes of an axis: `number` of them, from `first` on, `step` apart."""

    first: int
    number: int
    step: int


def taken_by_slice(size: int, start: int, stop: int, step: int) -> Taken:
    """Return what a slice takes of an axis, as ONNX and numpy count: negative bounds from the end, others clamped."""
    if size == 0:
        return Taken(0, 0, step)
    lowest, highest = (0, size) if step > 0 else (-1, size - 1)  # the range of a stop; a start is 0 or more
    first = max(min(start + size if start < 0 else start, highest), 0)
    last = max(min(stop + size if stop < 0 else stop, highest), lowest)
    return Taken(first, max(0, -((first - last) // step)), step)


def element_type(subject: str, code: int) -> DType:
    """Return the dtype of an ONNX element type number. Raises AttributeValueError on an unknown number."""
    if code not in ELEMENT_TYPES:
        raise AttributeValueError(f"{subject}: element type is {code}, need one of {sorted(ELEMENT_TYPES)}")
    return ELEMENT_TYPES[code]


def one_of(subject: str, value: Any, allowed: Iterable[Any]) -> None:
    """Raise AttributeValueError unless the attribute's value is allowed."""
    choices = tuple(allowed)
    if value not in choices:
        raise AttributeValueError(f"{subject} is {value!r}, need one of {choices}")


def check_indices(subject: str, indices: Array, size: int) -> None:
    """Raise IndexRangeError unless every index is in [-size, size), so that a hostile index reads no other memory."""
    if indices.size and not (-size <= indices.min() and indices.max() < size):
        bad = indices[(indices < -size) | (indices >= size)].flat[0]
        raise IndexRangeError(f"{subject}: index {bad} points outside an axis of {size}, need [{-size}, {size - 1}]")
