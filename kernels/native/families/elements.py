"""Elements picked or written one by one along an axis, by indices known only at run time: GatherElements, ScatterElements.

    for each chunk = (piece of each axis of the indices):    for each index, at (i, j, …):
        picked:  other[i, j, …] = table[index, j, …]                                            where the axis is the first
        written:  table[index, j, …] = table[index, j, …] combined with other[i, j, …]

The axis is never cut where elements are written: several updates of one element are made in order, by one thread, so that the
last one stays and sums are rounded as in numpy. Negative indices count from the end; all are checked as in `gather`.

The code is decided by the types, whether columns lie side by side, and what is done; sizes and strides are numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from kernels.expression import FLOAT, Apply
from kernels.native.emit.builder import Function, Value
from kernels.native.emit.expression import apply, memory_type
from kernels.native.emit.kernel import Bounds, NativeKernel, emitted, kernel_name
from kernels.native.emit.names import name_dtype
from kernels.native.emit.nest import Axis, Nest, chunk_count, cut, make_nest, piece_numbers, piece_ranges
from kernels.native.emit.types import I64
from kernels.native.errors import EmitError
from kernels.native.families.elementwise import DEPTH
from kernels.native.families.gather import INT64, checked, index_type, load_index
from kernels.native.memory.view import View
from kernels.native.target.isa import Isa
from kernels.record import record
from kernels.size import hint
from kernels.spec import BOOL, DType

Reduction = Literal["none", "add", "mul", "max", "min"]
CHUNK_ELEMENTS = 4096  # about 5 µs
VIEWS = ("indices", "other", "table")


@record
class Elements:
    """Elements of `table` that indices name along an axis, and `other`, to which they are picked or from which they are written.

    indices: dense, of other's shape, int64 or int32. table: at least as large along the other axes.
    reduction: how elements are written: "none" replaces; None where they are picked.
    """

    table: View
    indices: View
    other: View
    axis: int
    reduction: Reduction | None = None
    dtype: DType = FLOAT
    index_dtype: DType = INT64


@record
class _Code:
    """All that decides the code. axes: of the nest. columns: each view's stride along the last one, where it is 0 or 1."""

    reduction: Reduction | None
    dtype: DType
    index: DType
    axes: int
    columns: tuple[int | None, ...]


def emit_elements(what: Elements, isa: Isa) -> NativeKernel:
    """Emit the kernel, with the arguments "indices", "other", "table" and "fault".

    fault: address of an int64, which the kernel sets to an index that is out of range, and leaves unchanged where none is.
    Raises EmitError for shapes that do not fit, indices that are not dense, a table without rows, and sums of bools.
    """
    _check(what)
    rows = what.table.shape[what.axis]
    nest = _nest(what)
    written = what.reduction is not None
    pieces = list(
        cut(replace(nest, axes=tuple(replace(axis, size=hint(axis.size)) for axis in nest.axes)), (1, 1), CHUNK_ELEMENTS)
    )
    for n, axis in enumerate(nest.axes):
        if written and axis.strides[2] == 0:
            pieces[n] = axis.size
    dtype = what.dtype if written and what.reduction != "none" else np.dtype(f"u{what.dtype.itemsize}")  # moves are of bits
    columns = tuple(stride if stride in (0, 1) else None for stride in nest.columns.strides)
    code = _Code(what.reduction, dtype, what.index_dtype, len(nest.axes), columns)
    numbers = piece_numbers(nest.sizes, pieces) | {"rows": rows, "row": what.table.strides[what.axis]}
    for v, name in enumerate(VIEWS):
        numbers |= {f"{name}_offset": nest.offsets[v]}
        numbers |= {f"{name}_{n}": axis.strides[v] for n, axis in enumerate(nest.axes)}

    def body(k: Function, pointers: Mapping[str, Value], sizes: Mapping[str, Value], chunks: Bounds) -> None:
        _ElementsEmitter(k, code, sizes, pointers).emit(*chunks)

    stem = f"b{dtype.itemsize}_pick" if what.reduction is None else f"{name_dtype(dtype)}_write"
    words = (name_dtype(what.index_dtype), *((what.reduction,) if what.reduction else ()))
    return emitted(
        isa,
        kernel_name(stem, code, isa, words),
        (*VIEWS, "fault"),
        chunk_count(nest.sizes, pieces) if what.other.size else 0,
        body,
        numbers,
    )


def _check(what: Elements) -> None:
    index_type("elements", what.index_dtype)
    table, shape, axis = what.table.shape, what.other.shape, what.axis
    fits = len(table) == len(shape) and all(a >= b for n, (a, b) in enumerate(zip(table, shape, strict=True)) if n != axis)
    if not fits or what.indices.shape != shape or not what.indices.is_dense or (what.other.size and not table[axis]):
        raise EmitError(
            f"elements: the table is {table}, indices {what.indices} and the others {shape}, need dense indices of their shape, "
            f"and a table as large at least but for axis {axis}, which must not be empty"
        )
    if what.dtype == BOOL and what.reduction not in (None, "none"):
        raise EmitError(f"elements: bools are written by {what.reduction}, need numbers")


def _nest(what: Elements) -> Nest:
    """Return the loops over the indices, with at least DEPTH axes. The table does not move along its axis."""
    if not what.other.size:
        return Nest((Axis(1, (0, 0, 0)),) * DEPTH, (0, 0, 0), frozenset())
    strides = [0 if n == what.axis else stride for n, stride in enumerate(what.table.strides)]
    nest = make_nest([what.indices, what.other, View(what.other.shape, tuple(strides), what.table.offset)])
    return Nest((Axis(1, (0, 0, 0)),) * (DEPTH - len(nest.axes)) + nest.axes, nest.offsets, frozenset())


class _ElementsEmitter:
    """Emits the code; the methods are the loops of the module docstring, outermost first."""

    def __init__(self, k: Function, code: _Code, n: Mapping[str, Value], pointers: Mapping[str, Value]) -> None:
        self.k, self.code, self.n, self.pointers = k, code, n, pointers
        kind = memory_type(code.dtype)
        self.kinds = (index_type("elements", code.index), kind, kind)
        self.last = n["rows"] - 1

    def emit(self, begin: Value, end: Value) -> None:
        """Emit the loop over the chunks of a call."""
        k, n = self.k, self.n
        each = zip(VIEWS, self.kinds, strict=True)
        at = [k.offset(self.pointers[name], n[f"{name}_offset"], kind) for name, kind in each]
        with k.loop("chunk", begin, end) as chunk:
            self._axis(0, at, piece_ranges(k, n, self.code.axes, chunk))

    def _axis(self, axis: int, at: Sequence[Value], ranges: Sequence[Bounds]) -> None:
        if axis == self.code.axes:
            self._element(*at)
            return
        with self.k.loop(f"axis{axis}", *ranges[axis]) as index:
            moved = zip(VIEWS, at, self.kinds, range(len(VIEWS)), strict=True)
            here = [self.k.offset(address, index * self._stride(name, v, axis), kind) for name, address, kind, v in moved]
            self._axis(axis + 1, here, ranges)

    def _stride(self, name: str, view: int, axis: int) -> Value:
        known = self.code.columns[view] if axis == self.code.axes - 1 else None
        return self.n[f"{name}_{axis}"] if known is None else self.k.const(I64, known)

    def _element(self, indices: Value, other: Value, table: Value) -> None:
        k, n, (index, kind, _) = self.k, self.n, self.kinds
        row = checked(k, load_index(k, index, indices), n["rows"], self.last, self.pointers["fault"])
        place = k.offset(table, row * n["row"], kind)
        if self.code.reduction is None:
            k.store(k.load(kind, place), other)
        else:
            store_combined(k, self.code.reduction, self.code.dtype, k.load(kind, other), place)


def store_combined(k: Function, reduction: Reduction, dtype: DType, update: Value, place: Value) -> None:
    """Write a vector or an element, combined with what is there."""
    if reduction != "none":
        old = k.load(update.type, place)
        update = apply(k, Apply(reduction, (0, 1)), [old, update], [dtype, dtype], update.type.lanes)
    k.store(update, place)
