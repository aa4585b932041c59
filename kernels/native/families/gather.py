"""Rows picked by indices that are known only when the kernel runs: an embedding, Gather along one axis, or GatherND.

    for each chunk = (piece of outer, of picked rows, of their elements):    y[o, i, :] = x[o, indices[o, i, 0], …, :]

An index from -rows to -1 counts from the end. One that is out of range reads the nearest row, never other memory, and is written
to a "fault", since a kernel cannot raise an error: the caller checks it. 0 is never out of range, so 0 means that all were good.

The code is decided by the size of an element, the type and number of the indices of a row, and whether a row is one element;
sizes and strides are numbers.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from kernels.expression import FLOAT
from kernels.native.emit.builder import Function, Operand, Value
from kernels.native.emit.kernel import Bounds, NativeKernel, emitted, kernel_name
from kernels.native.emit.names import name_dtype
from kernels.native.emit.nest import Axis, Nest, chunk_count, cut, piece_numbers, piece_ranges
from kernels.native.emit.types import I1, I32, I64, Type
from kernels.native.errors import EmitError
from kernels.native.families.elementwise import CHUNK_CYCLES, CYCLE_BYTES, bits_type
from kernels.native.memory.view import View
from kernels.native.target.isa import Isa
from kernels.record import record
from kernels.size import hint
from kernels.spec import DType

VECTORS = 4  # least piece of a row that a chunk copies
LINE_BITS = 512  # copied at a time
INT64 = np.dtype(np.int64)


@record
class Gather:
    """x: (outer, rows of each index, elements), y: (outer, picked, elements), elements side by side.

    indices: (outer, picked, indices of a row), int64 or int32, those of a row side by side.
    """

    x: View
    indices: View
    y: View
    dtype: DType = FLOAT
    index_dtype: DType = INT64

    @staticmethod
    def along(x: View, y: View, dtype: DType = FLOAT, index_dtype: DType = INT64) -> Gather:
        """Return a gather by one index a row, dense and the same for all outer ones. x: (outer, rows, elements)."""
        indices = View((*y.shape[:2], 1), (0, 1, 1), 0)
        return Gather(x, indices, y, dtype, index_dtype)

    @property
    def rows(self) -> tuple[int, ...]:
        """How many rows each index of a tuple picks from."""
        return self.x.shape[1:-1]


@record
class _Code:
    """All that decides the code.

    kind: of an element's bits. depth: indices of a row. single: a row is one element. dense: indices, and rows of one element,
    lie side by side.
    """

    kind: Type
    index: DType
    depth: int
    single: bool
    dense: bool


def index_type(subject: str, dtype: DType) -> Type:
    """Return the type of an index in memory. Raises EmitError unless it is int64 or int32."""
    if dtype not in (INT64, np.dtype(np.int32)):
        raise EmitError(f"{subject}: indices are {dtype.name}, need int64 or int32")
    return I64 if dtype == INT64 else I32


def emit_gather(what: Gather, isa: Isa) -> NativeKernel:
    """Emit the kernel, with the arguments "x", "indices", "y", and "fault0", "fault1"… for each index of a row.

    fault: address of an int64, which the kernel sets to an index that is out of range, and leaves unchanged where none is.
    Raises EmitError for shapes that do not fit, elements that do not lie side by side, and an x without rows.
    """
    x, y, depth = what.x, what.y, len(what.rows)
    (outer, count, elements), indices = y.shape, what.indices
    if (x.shape[0], x.shape[-1]) != (outer, elements) or depth < 1 or (0 in what.rows and y.size):
        raise EmitError(f"gather: x is {x.shape} and y {y.shape}, need (outer, rows > 0, elements) of both")
    if indices.shape != (outer, count, depth) or (depth > 1 and indices.strides[2] != 1):
        raise EmitError(f"gather: indices are {indices}, need {(outer, count, depth)}, those of a row side by side")
    if elements > 1 and (x.strides[-1], y.strides[2]) != (1, 1):
        raise EmitError(f"gather: elements are {x.strides[-1]} and {y.strides[2]} apart, need 1 (of x and y)")
    index_type("gather", what.index_dtype)
    single = elements == 1
    dense = indices.strides[1] == depth and not (single and (x.strides[-2], y.strides[1]) != (1, 1))
    code = _Code(bits_type(what.dtype), what.index_dtype, depth, single, dense)
    lanes = isa.vector_bits // code.kind.bits
    shape = y.shape if y.size else (1, 1, 1)
    nest = Nest(tuple(Axis(hint(size), ()) for size in shape), (), frozenset())
    pieces = cut(nest, (1, VECTORS * lanes), CHUNK_CYCLES[0] * CYCLE_BYTES * 8 / (2 * code.kind.bits))
    strides = {"x_outer": x.strides[0], **{f"x_row{d}": stride for d, stride in enumerate(x.strides[1:-1])}}
    numbers = {
        **piece_numbers(shape, pieces), "x_offset": x.offset, "y_offset": y.offset, "index_offset": indices.offset,
        **strides, **{f"rows{d}": rows for d, rows in enumerate(what.rows)}, "index_outer": indices.strides[0],
        "index_row": indices.strides[1], "y_outer": y.strides[0], "y_row": y.strides[1],
    }  # fmt: skip

    def body(k: Function, pointers: Mapping[str, Value], sizes: Mapping[str, Value], chunks: Bounds) -> None:
        _GatherEmitter(k, code, sizes, pointers).emit(*chunks)

    return emitted(
        isa,
        kernel_name(f"b{what.dtype.itemsize}_gather", code, isa, (name_dtype(what.index_dtype), *(("elements",) * code.single))),
        ("x", "indices", "y", *fault_names(depth)),
        chunk_count(shape, pieces) if y.size else 0,
        body,
        numbers,
    )


def fault_names(depth: int) -> tuple[str, ...]:
    """Return the names of the arguments into which indices out of range are written, one for each index of a row."""
    return tuple(f"fault{d}" for d in range(depth))


def load_index(k: Function, kind: Type, indices: Value, at: Operand = 0) -> Value:
    """Load an index as an int64."""
    return k.convert("sext", k.load(kind, indices, at), I64)


def checked(k: Function, index: Value, rows: Value, last: Value, fault: Value) -> Value:
    """Return the row of an index. One that is out of range is written to `fault`, and picks the nearest row. last: rows - 1."""
    row = k.select(index < 0, index + rows, index)
    outside = k.op(f"icmp uge {row}, {rows.ref}", I1, "outside")  # a negative one is large as an unsigned number
    with k.when(outside, "fault"):
        k.store(index, fault)
    return k.most(k.least(row, last), k.const(I64, 0))


class _GatherEmitter:
    """Emits the code; the methods are the loops of the module docstring, from the outside in."""

    def __init__(self, k: Function, code: _Code, n: Mapping[str, Value], pointers: Mapping[str, Value]) -> None:
        self.k, self.code, self.n, self.pointers = k, code, n, pointers
        self.index = index_type("gather", code.index)
        self.x, self.y = (k.offset(pointers[name], n[f"{name}_offset"], code.kind) for name in "xy")
        self.indices = k.offset(pointers["indices"], n["index_offset"], self.index)
        one = k.const(I64, 1)
        self.index_row = k.const(I64, code.depth) if code.dense else n["index_row"]
        self.y_row = one if code.dense and code.single else n["y_row"]
        self.x_rows = [n[f"x_row{d}"] for d in range(code.depth)]
        self.last = [n[f"rows{d}"] - 1 for d in range(code.depth)]
        if code.dense and code.single:
            self.x_rows[-1] = one

    def emit(self, begin: Value, end: Value) -> None:
        """Emit the loop over the chunks of a call."""
        k, n, kind = self.k, self.n, self.code.kind
        with k.loop("chunk", begin, end) as chunk:
            outers, picked, inner = piece_ranges(k, n, 3, chunk)
            with k.loop("outer", *outers) as o, k.loop("index", *picked) as i:
                source = k.offset(self.x, o * n["x_outer"] + self._row(o, i), kind)
                target = k.offset(self.y, o * n["y_outer"] + i * self.y_row, kind)
                if self.code.single:
                    k.store(k.load(kind, source), target)
                else:
                    copy_row(k, kind.by(k.isa.vector_bits // kind.bits), source, target, inner)

    def _row(self, o: Value, i: Value) -> Value:
        """Return how many elements from an outer one's first row the row that is picked lies."""
        k, n = self.k, self.n
        first, at = o * n["index_outer"] + i * self.index_row, k.const(I64, 0)
        for d in range(self.code.depth):
            index = load_index(k, self.index, self.indices, first + d)
            at = at + checked(k, index, n[f"rows{d}"], self.last[d], self.pointers[f"fault{d}"]) * self.x_rows[d]
        return at


def copy_row(k: Function, kind: Type, source: Value, target: Value, bounds: Bounds) -> None:
    """Emit a copy of the elements between bounds, in vectors. The last one ends with the row: it copies some elements again."""
    start, last = bounds
    end, size = last - kind.lanes, last - start
    few = size < kind.lanes
    with k.when(few, "few"):
        k.store_first(k.load_first(kind, k.offset(source, start, kind), size), k.offset(target, start, kind), size)
    with k.when(few ^ k.const(few.type, 1), "many"):
        if (together := LINE_BITS // (kind.bits * kind.lanes)) > 1:
            width = together * kind.lanes
            stop = start + (end - start) // width * width
            with k.loop("line", start, stop, width) as at:
                taken = [k.load(kind, source, at + n * kind.lanes) for n in range(together)]
                for n, value in enumerate(taken):
                    k.store(value, target, at + n * kind.lanes)
            start = stop
        with k.loop("element", start, end, kind.lanes) as at:
            k.store(k.load(kind, source, at), target, at)
        k.store(k.load(kind, source, end), target, end)
