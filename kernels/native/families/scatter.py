"""Rows written by tuples of indices that are known only when the kernel runs: ScatterND.

    for each chunk = (piece of a row):    for each tuple i:    table[indices[i, 0], …, :] is combined with updates[i, :]

The tuples are never shared out: several updates of one row are made in order, by one thread, so that the last one stays and sums
are rounded as in numpy. Negative indices count from the end; all are checked as in `gather`.

The code is decided by the types, the length of a tuple, whether a row is one element, and the reduction; all else is numbers.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from kernels.expression import FLOAT
from kernels.native.emit.builder import Function, Value
from kernels.native.emit.expression import memory_type
from kernels.native.emit.kernel import Bounds, NativeKernel, emitted, kernel_name
from kernels.native.emit.names import name_dtype
from kernels.native.errors import EmitError
from kernels.native.families.elements import Reduction, store_combined
from kernels.native.families.gather import INT64, checked, copy_row, fault_names, index_type, load_index
from kernels.native.memory.view import View
from kernels.native.target.isa import Isa
from kernels.record import record
from kernels.size import hint
from kernels.spec import BOOL, DType

CHUNK_BYTES = 16 << 10  # written by one, about 2 µs


@record
class Scatter:
    """table: (rows of each index…, elements), elements side by side. How `count` dense rows of updates are written to it.

    indices: a dense (count, rows of the table) tensor of int64 or int32. reduction: "none" replaces.
    """

    table: View
    count: int
    reduction: Reduction = "none"
    dtype: DType = FLOAT
    index_dtype: DType = INT64

    @property
    def rows(self) -> tuple[int, ...]:
        """How many rows each index of a tuple names."""
        return self.table.shape[:-1]

    @property
    def elements(self) -> int:
        """Elements of a row."""
        return self.table.shape[-1]


@record
class _Code:
    """All that decides the code. depth: indices of a tuple. single: a row is one element."""

    reduction: Reduction
    dtype: DType
    index: DType
    depth: int
    single: bool


def emit_scatter(what: Scatter, isa: Isa) -> NativeKernel:
    """Emit the kernel, with the arguments "indices", "updates", "table", and "fault0", "fault1"… for each index of a tuple.

    fault: address of an int64, which the kernel sets to an index that is out of range, and leaves unchanged where none is.
    Raises EmitError for a table without rows, elements that do not lie side by side, other indices, and sums of bools.
    """
    depth, elements, dtype = len(what.rows), what.elements, what.dtype
    if depth < 1 or (0 in what.rows and what.count):
        raise EmitError(f"scatter: the table is {what.table.shape}, need (rows > 0…, elements)")
    if elements > 1 and what.table.strides[-1] != 1:
        raise EmitError(f"scatter: elements are {what.table.strides[-1]} apart, need 1 (of the table)")
    if dtype == BOOL and what.reduction != "none":
        raise EmitError(f"scatter: bools are written by {what.reduction}, need numbers")
    index_type("scatter", what.index_dtype)
    if what.reduction == "none":
        dtype = np.dtype(f"u{dtype.itemsize}")  # moves are of bits
    code = _Code(what.reduction, dtype, what.index_dtype, depth, elements == 1)
    lanes = isa.vector_bits // memory_type(dtype).bits
    piece = max(CHUNK_BYTES // (dtype.itemsize * max(hint(what.count), 1)) // lanes, 1) * lanes
    numbers = {"count": what.count, "elements": elements, "piece": piece, "table_offset": what.table.offset}
    for d, (rows, stride) in enumerate(zip(what.rows, what.table.strides[:-1], strict=True)):
        numbers |= {f"rows{d}": rows, f"row{d}": stride}

    def body(k: Function, pointers: Mapping[str, Value], sizes: Mapping[str, Value], chunks: Bounds) -> None:
        _ScatterEmitter(k, code, sizes, pointers).emit(*chunks)

    words = (name_dtype(what.index_dtype), f"by{depth}", what.reduction, *(("elements",) * code.single))
    return emitted(
        isa,
        kernel_name(f"{name_dtype(dtype)}_scatter", code, isa, words),
        ("indices", "updates", "table", *fault_names(depth)),
        -(-elements // piece) if what.count else 0,
        body,
        numbers,
    )


class _ScatterEmitter:
    """Emits the code; the methods are the loops of the module docstring, outermost first."""

    def __init__(self, k: Function, code: _Code, n: Mapping[str, Value], pointers: Mapping[str, Value]) -> None:
        self.k, self.code, self.n, self.pointers = k, code, n, pointers
        self.kind, self.index = memory_type(code.dtype), index_type("scatter", code.index)
        self.lanes = k.isa.vector_bits // self.kind.bits
        self.last = [n[f"rows{d}"] - 1 for d in range(code.depth)]

    def emit(self, begin: Value, end: Value) -> None:
        """Emit the loop over the chunks of a call."""
        k, n = self.k, self.n
        table = k.offset(self.pointers["table"], n["table_offset"], self.kind)
        with k.loop("chunk", begin, end) as chunk:
            first = chunk * n["piece"]
            inner = first, k.least(first + n["piece"], n["elements"])
            with k.loop("tuple", 0, n["count"]) as i:
                source = k.offset(self.pointers["updates"], i if self.code.single else i * n["elements"], self.kind)
                self._row(source, k.offset(table, self._row_at(i), self.kind), inner)

    def _row_at(self, i: Value) -> Value:
        """Return how many elements from the table's first row the row of a tuple lies."""
        k, n = self.k, self.n
        at = k.const(n["count"].type, 0)
        for d in range(self.code.depth):
            index = load_index(k, self.index, self.pointers["indices"], i * self.code.depth + d)
            at = at + checked(k, index, n[f"rows{d}"], self.last[d], self.pointers[f"fault{d}"]) * n[f"row{d}"]
        return at

    def _row(self, source: Value, target: Value, inner: Bounds) -> None:
        """Emit what is done with the elements of one row."""
        k, code, vector = self.k, self.code, self.kind.by(self.lanes)
        if code.single:
            store_combined(k, code.reduction, code.dtype, k.load(self.kind, source), target)
            return
        if code.reduction == "none":
            copy_row(k, vector, source, target, inner)
            return
        start, last = inner
        stop = start + (last - start) // self.lanes * self.lanes
        with k.loop("element", start, stop, self.lanes) as at:
            place = k.offset(target, at, self.kind)
            store_combined(k, code.reduction, code.dtype, k.load(vector, source, at), place)
        with k.loop("rest", stop, last) as at:
            place = k.offset(target, at, self.kind)
            store_combined(k, code.reduction, code.dtype, k.load(self.kind, source, at), place)
