"""Sequences of tensors: SequenceEmpty, Construct, Insert, Erase, At, Length, and the way from a tensor and back.

A sequence's tensors are copies of their own, which sequences made of it share: inserting one copies one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from kernels.containers import contained, fill, item_spec, items, require_sequence, sequence_of
from kernels.cost import Cost, moves
from kernels.errors import AttributeValueError, DTypeError, IndexRangeError, ShapeError
from kernels.operands import INDICES, axis_of, element_type, known_scalar, one_dtype, one_of
from kernels.registry import Case, Kernel, Op, require_dtype
from kernels.scratch import FIXED_BYTES, fixed
from kernels.size import is_symbolic
from kernels.spec import Array, Spec

MOST_ITEMS = 1 << 20
_INT64 = np.dtype(np.int64)


def infer_empty(*, dtype: int = 1) -> Spec:
    """A sequence without tensors."""
    return Spec((0,), sequence_of(element_type("SequenceEmpty: attribute dtype", dtype)))


def run_empty(out: tuple[Array, ...], *, dtype: int = 1) -> None:
    """Nothing to write."""


def infer_construct(*tensors: Spec | None) -> Spec:
    """A sequence of all inputs, which have one element type."""
    present = [tensor for tensor in tensors if tensor is not None]
    if len(present) < len(tensors) or not present:
        raise ShapeError(f"SequenceConstruct: {len(present)} of {len(tensors)} inputs are given, need at least one, and all")
    dtype = one_dtype("SequenceConstruct", *present)
    if dtype.names is not None:
        raise DTypeError(f"SequenceConstruct: input 0 is {present[0]}, need tensors")
    return Spec((len(present),), sequence_of(dtype))


def run_construct(out: tuple[Array, ...], *tensors: Array) -> None:
    """Copy every tensor."""
    fill(out[0], (tensor.copy() for tensor in tensors))


def _position(name: str, position: Spec | None, length: int, default: int) -> int:
    """Return a position counted from the front: one of `length`. Raises IndexRangeError outside of them."""
    found = default
    if position is not None:
        require_dtype(f"{name}: position", position, INDICES)
        found = known_scalar(f"{name}: position", position)
    if not -length <= found < length:
        raise IndexRangeError(f"{name}: position {found} lies outside a sequence of {length}, need [{-length}, {length - 1}]")
    return found % length


def infer_insert(sequence: Spec, tensor: Spec, position: Spec | None = None) -> Spec:
    """One tensor more, before the one at `position`, which may be the sequence's length; by default at the end."""
    if require_sequence("SequenceInsert: sequence", sequence) != tensor.dtype:
        raise DTypeError(f"SequenceInsert: sequence is {sequence}, tensor is {tensor}, need one element type")
    if sequence.elements >= MOST_ITEMS:
        raise ShapeError(f"SequenceInsert: sequence is {sequence}, the limit is {MOST_ITEMS} tensors")
    if position is not None:
        require_dtype("SequenceInsert: position", position, INDICES)
        if position.value is not None:
            _insertion(position, sequence.elements)
    return Spec((sequence.elements + 1,), sequence.dtype)


def _insertion(position: Spec | None, length: int) -> int:
    """Return the place of a tensor to insert: an index from the back counts the tensors that are there."""
    if position is None:
        return length
    found: int = known_scalar("SequenceInsert: position", position)
    if not -length <= found <= length:
        raise IndexRangeError(f"SequenceInsert: position {found} of a sequence of {length}, need [{-length}, {length}]")
    return found + length if found < 0 else found


def run_insert(out: tuple[Array, ...], sequence: Array, tensor: Array, position: Array | None = None) -> None:
    """Copy the tensor; the others are shared."""
    held = items(sequence)
    held.insert(_insertion(None if position is None else Spec.of(position), len(held)), tensor.copy())
    fill(out[0], held)


def infer_erase(sequence: Spec, position: Spec | None = None) -> Spec:
    """One tensor less, by default the last."""
    require_sequence("SequenceErase: sequence", sequence)
    if position is None or position.value is not None or not sequence.elements:
        _position("SequenceErase", position, sequence.elements, -1)
    return Spec((sequence.elements - 1,), sequence.dtype)


def run_erase(out: tuple[Array, ...], sequence: Array, position: Array | None = None) -> None:
    """The others are shared."""
    held = items(sequence)
    del held[_position("SequenceErase", None if position is None else Spec.of(position), len(held), -1)]
    fill(out[0], held)


def infer_at(sequence: Spec, position: Spec) -> Spec:
    """One tensor of a sequence."""
    require_sequence("SequenceAt: sequence", sequence)
    found = item_spec(sequence, _position("SequenceAt", position, sequence.elements, 0), "SequenceAt: sequence")
    return found.with_value(None)


def run_at(out: tuple[Array, ...], sequence: Array, position: Array) -> None:
    """A copy."""
    np.copyto(out[0], items(sequence)[_position("SequenceAt", Spec.of(position), len(sequence), 0)])


def infer_length(sequence: Spec) -> Spec:
    """The number of tensors, a scalar of int64."""
    require_sequence("SequenceLength: sequence", sequence)
    return Spec((), _INT64, None if is_symbolic(sequence.shape[0]) else np.array(sequence.shape[0], _INT64))


def run_length(out: tuple[Array, ...], sequence: Array) -> None:
    """One number."""
    out[0][...] = len(sequence)


def infer_split(x: Spec, split: Spec | None = None, *, axis: int = 0, keepdims: int = 1) -> Spec:
    """A sequence of the parts of x along an axis: of the given sizes, of one size, or of 1, whose axis may be dropped."""
    if x.dtype.names is not None:
        raise DTypeError(f"SplitToSequence: x is {x}, need a tensor")
    size = x.shape[axis_of("SplitToSequence", axis, x.rank)]
    if split is not None:
        require_dtype("SplitToSequence: split", split, INDICES)
    count = _count(size, split)
    if count > MOST_ITEMS:
        raise ShapeError(f"SplitToSequence: an axis of {size} makes {count} parts, the limit is {MOST_ITEMS}")
    return Spec((count,), sequence_of(x.dtype))


def _count(size: int, split: Spec | None) -> int:
    """Return how many parts an axis makes. split: None for parts of 1, a number for parts of that size, or all sizes."""
    if split is None:
        return size
    given = split.known("SplitToSequence: split")
    if split.rank:
        if given.min(initial=0) < 0 or given.sum() != size:
            raise ShapeError(f"SplitToSequence: split is {given.ravel()[:8].tolist()}, need sizes that make {size}")
        return split.elements
    if int(given) < 1:
        raise ShapeError(f"SplitToSequence: split is {int(given)}, need a size of at least 1")
    return -(-size // int(given))


def run_split(out: tuple[Array, ...], x: Array, split: Array | None = None, *, axis: int, keepdims: int) -> None:
    """Copy every part."""
    if split is not None and split.ndim:
        ends = np.cumsum(split)[:-1]
    else:
        each = 1 if split is None else int(split)
        ends = np.arange(1, len(out[0])) * each
    parts = np.split(x, ends, axis) if len(out[0]) else []
    drops = split is None and not keepdims
    fill(out[0], ((part.squeeze(axis) if drops else part).copy() for part in parts))


def infer_concat(sequence: Spec, *, axis: int, new_axis: int = 0) -> Spec:
    """All tensors one after another along an axis, or stacked along a new one."""
    dtype = require_sequence("ConcatFromSequence: sequence", sequence)
    one_of("ConcatFromSequence: attribute new_axis", new_axis, (0, 1))
    shapes = [item.shape for item in items(sequence.known("ConcatFromSequence: sequence"))]
    if not shapes:
        raise ShapeError(f"ConcatFromSequence: sequence is {sequence}, need at least one tensor")
    along = axis_of("ConcatFromSequence", axis, len(shapes[0]) + new_axis)
    for shape in shapes:
        other = shape if new_axis else (*shape[:along], shapes[0][along], *shape[along + 1 :])
        if other != shapes[0]:
            raise ShapeError(f"ConcatFromSequence: tensors are {shapes[0]} and {shape}, need equal sizes beside axis {along}")
    if new_axis:
        return Spec((*shapes[0][:along], len(shapes), *shapes[0][along:]), dtype)
    return Spec((*shapes[0][:along], sum(shape[along] for shape in shapes), *shapes[0][along + 1 :]), dtype)


def run_concat(out: tuple[Array, ...], sequence: Array, *, axis: int, new_axis: int) -> None:
    """Copy every tensor to its place."""
    (np.stack if new_axis else np.concatenate)(items(sequence), axis, out=out[0])


def copies(out: tuple[Spec, ...], *inputs: Spec | None, **attrs: Any) -> int:
    """The tensors that a new sequence holds: copies of the inputs."""
    return FIXED_BYTES + sum(spec.nbytes for spec in inputs if spec is not None) + 512 * out[0].elements


def _of(*values: Any) -> Array:
    arrays = [np.asarray(value, np.float32) for value in values]
    return contained(sequence_of(np.dtype(np.float32)), arrays)


def _op(name: str, infer: Callable[..., Any], run: Callable[..., None], *cases: Case, scratch: Any = copies) -> Op:
    return Op(name, infer, moves, (Kernel("copy", run, scratch_bytes=scratch),), cases=cases)


_THREE = _of([1, 2], [[3.0]], 4)
_EVEN = _of([1, 2], [3, 4])
_I = np.array
OPS = (
    _op(
        "SequenceEmpty",
        infer_empty,
        run_empty,
        Case("floats", inputs=(), cost=Cost()),
        Case("type", inputs=(), attrs={"dtype": 99}, raises=AttributeValueError),
    ),
    _op(
        "SequenceConstruct",
        infer_construct,
        run_construct,
        Case("two", inputs=((2, 3), (4,)), cost=Cost()),
        Case("types_differ", inputs=((2,), np.ones(2, np.int32)), raises=DTypeError),
    ),
    _op(
        "SequenceInsert",
        infer_insert,
        run_insert,
        Case("at_end", inputs=(_THREE, (2, 2)), cost=Cost()),
        Case("at_front", inputs=(_THREE, (2, 2), _I(0))),
        Case("before_last", inputs=(_THREE, (2, 2), _I(-1, np.int32))),
        Case("outside", inputs=(_THREE, (2, 2), _I(4)), raises=IndexRangeError),
        Case("type", inputs=(_THREE, np.ones(2, np.int32)), raises=DTypeError),
        Case("tensor", inputs=((2,), (2,)), raises=DTypeError),
    ),
    _op(
        "SequenceErase",
        infer_erase,
        run_erase,
        Case("last", inputs=(_THREE,), cost=Cost()),
        Case("first", inputs=(_THREE, _I(-3))),
        Case("outside", inputs=(_THREE, _I(3)), raises=IndexRangeError),
        Case("empty", inputs=(_of(),), raises=IndexRangeError),
    ),
    _op(
        "SequenceAt",
        infer_at,
        run_at,
        Case("scalar", inputs=(_THREE, _I(2)), cost=Cost()),
        Case("from_back", inputs=(_THREE, _I(-2))),
        Case("outside", inputs=(_THREE, _I(3)), raises=IndexRangeError),
        scratch=fixed,
    ),
    _op(
        "SequenceLength",
        infer_length,
        run_length,
        Case("three", inputs=(_THREE,), cost=Cost()),
        Case("tensor", inputs=((2,),), raises=DTypeError),
        scratch=fixed,
    ),
    _op(
        "SplitToSequence",
        infer_split,
        run_split,
        Case("ones", inputs=((3, 2),), attrs={"axis": 1, "keepdims": 0}, cost=Cost()),
        Case("equal", inputs=((5, 2), _I(2)), cost=Cost()),
        Case("sizes", inputs=((5, 2), _I([1, 4])), attrs={"axis": -2}),
        Case("sum", inputs=((5, 2), _I([1, 3])), raises=ShapeError),
        Case("zero", inputs=((5, 2), _I(0)), raises=ShapeError),
    ),
    _op(
        "ConcatFromSequence",
        infer_concat,
        run_concat,
        Case("along", inputs=(_EVEN,), attrs={"axis": 0}, cost=Cost()),
        Case("new", inputs=(_EVEN,), attrs={"axis": -1, "new_axis": 1}),
        Case("uneven", inputs=(_THREE,), attrs={"axis": 0}, raises=ShapeError),
        Case("empty", inputs=(_of(),), attrs={"axis": 0}, raises=ShapeError),
        scratch=fixed,
    ),
)
