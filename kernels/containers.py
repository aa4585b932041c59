"""Sequences and optionals: values that hold tensors, as ONNX's types `seq(…)` and `optional(…)`.

A sequence is a vector of a dtype that says what it holds, and each of its elements an `Item` around an array. An optional is a
sequence of one item or of none. Shapes say how many items there are; those of the items differ, and only a run knows them.
Items are never written to once they are in a container, so that containers share them.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from kernels.errors import DTypeError
from kernels.record import record
from kernels.spec import ELEMENT_TYPES, Array, DType, Spec, dtype_name


@record
class Item:
    """What one element of a container holds: a tensor, or the sequence in an optional."""

    value: Array


@functools.cache
def sequence_of(element: DType) -> DType:
    """Return the dtype of sequences of tensors of that element type."""
    return np.dtype([(f"seq({dtype_name(element)})", object)])


@functools.cache
def optional_of(held: DType) -> DType:
    """Return the dtype of optionals that hold a tensor of that element type, or such a sequence."""
    return np.dtype([(f"optional({dtype_name(held)})", object)])


@functools.cache
def _held() -> Mapping[str, DType]:
    """Return what containers hold, by the name of their dtype."""
    found = {}
    for element in ELEMENT_TYPES.values():
        sequence = sequence_of(element)
        for outer, inner in ((sequence, element), (optional_of(element), element), (optional_of(sequence), sequence)):
            found[dtype_name(outer)] = inner
    return found


def is_container(dtype: DType) -> bool:
    """Whether values of that dtype are sequences or optionals."""
    return dtype.names is not None


def is_sequence(dtype: DType) -> bool:
    """Whether values of that dtype are sequences."""
    return is_container(dtype) and dtype_name(dtype).startswith("seq(")


def is_optional(dtype: DType) -> bool:
    """Whether values of that dtype are optionals."""
    return is_container(dtype) and not is_sequence(dtype)


def held_by(dtype: DType) -> DType:
    """Return the element type of what a container of that dtype holds."""
    return _held()[dtype_name(dtype)]


def items(container: Array) -> list[Array]:
    """Return what a container holds, in order."""
    return [item.value for item in container[dtype_name(container.dtype)]]


def fill(container: Array, values: Iterable[Array]) -> None:
    """Put values into a container, as many as it has elements. They become the container's own."""
    slots = container[dtype_name(container.dtype)]
    for index, value in enumerate(values):
        slots[index] = Item(value)


def contained(dtype: DType, values: Sequence[Array]) -> Array:
    """Return a new container of values, which become its own."""
    made = np.empty(len(values), dtype)
    fill(made, values)
    return made


def held_bytes(container: Array) -> int:
    """Return the bytes of all tensors that a container holds, at any depth."""
    return sum(held_bytes(value) if is_container(value.dtype) else value.nbytes for value in items(container))


def item_spec(container: Spec, index: int, subject: str) -> Spec:
    """Return the spec of one item. Raises DataDependentError where only a run knows it."""
    return Spec.of(items(container.known(subject))[index])


def require_sequence(subject: str, spec: Spec) -> DType:
    """Return the element type of a sequence's tensors. Raises DTypeError for anything else."""
    if not is_sequence(spec.dtype) or spec.rank != 1:
        raise DTypeError(f"{subject}: is {spec}, need a sequence")
    return held_by(spec.dtype)


def as_lists(value: Array) -> Any:
    """Return a value as callers get it: an array, a list of copies of a sequence's tensors, or None for an empty optional."""
    if not is_container(value.dtype):
        return value
    held = [as_lists(each) if is_container(each.dtype) else each.copy() for each in items(value)]
    return held if is_sequence(value.dtype) else next(iter(held), None)
