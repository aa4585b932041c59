"""Rows picked by indices that are known only when the kernel runs: an embedding, or any Gather along one axis.

    for each chunk = (piece of outer, of picked rows, of their elements):    y[o, i, :] = x[o, indices[i], :]

An index from -rows to -1 counts from the end. One that is out of range reads the nearest row, never other memory, and is written
to "fault", since a kernel cannot raise an error: the caller checks it. 0 is never out of range, so 0 means that all were good.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np

from kernels.expression import FLOAT
from kernels.native.emit.builder import Function, Value
from kernels.native.emit.kernel import NativeKernel, emitted, kernel_name
from kernels.native.emit.names import name_dtype
from kernels.native.emit.nest import Axis, Nest, chunk_count, chunk_ranges, cut, tiles
from kernels.native.emit.types import I32, I64, Type
from kernels.native.errors import EmitError
from kernels.native.families.elementwise import CHUNK_CYCLES, CYCLE_BYTES, bits_type
from kernels.native.memory.view import View
from kernels.native.target.isa import Isa
from kernels.spec import DType

VECTORS = 4  # copied at a time
INT64 = np.dtype(np.int64)


@dataclass(frozen=True, slots=True)
class Gather:
    """x: (outer, rows, elements), y: (outer, indices, elements), elements side by side. indices: dense, int64 or int32."""

    x: View
    y: View
    dtype: DType = FLOAT
    indices: DType = INT64


def emit_gather(what: Gather, isa: Isa) -> NativeKernel:
    """Emit the kernel, with the arguments "x", "indices", "fault" and "y".

    fault: address of an int64, which the kernel sets to an index that is out of range, and leaves unchanged where none is.
    Raises EmitError for shapes that do not fit, elements that do not lie side by side, and an x without rows.
    """
    (outer, rows, elements), (y_outer, count, y_elements) = what.x.shape, what.y.shape
    if (outer, elements) != (y_outer, y_elements) or (rows == 0 and what.y.size):
        raise EmitError(f"gather: x is {what.x.shape} and y {what.y.shape}, need (outer, rows > 0, elements) of both")
    if elements > 1 and (what.x.strides[2], what.y.strides[2]) != (1, 1):
        raise EmitError(f"gather: elements are {what.x.strides[2]} and {what.y.strides[2]} apart, need 1 (of x and y)")
    if what.indices not in (INT64, np.dtype(np.int32)):
        raise EmitError(f"gather: indices are {what.indices.name}, need int64 or int32")
    kind = bits_type(what.dtype)
    lanes = isa.vector_bits // kind.bits
    (xo, xr, _), (yo, yr, _) = what.x.strides, what.y.strides
    nest = Nest(
        (Axis(outer, (yo, xo)), Axis(count, (yr, 0)), Axis(elements, (1, 1))), (what.y.offset, what.x.offset), frozenset()
    )
    pieces = cut(nest, (1, VECTORS * lanes), CHUNK_CYCLES[0] * CYCLE_BYTES * 8 / (2 * kind.bits))
    names = ("x", "indices", "fault", "y")
    name = kernel_name(f"b{what.dtype.itemsize}_gather", what, isa, (name_dtype(what.indices),))

    def body(k: Function, values: list[Value]) -> None:
        x, indices, fault, y, begin, end = values
        rows_at, y_at = k.offset(x, what.x.offset, kind), k.offset(y, what.y.offset, kind)
        with k.loop("chunk", begin, end) as chunk:
            outers, picked, inner = chunk_ranges(k, nest, pieces, chunk)
            with k.loop("outer", *outers) as o, k.loop("index", *picked) as i:
                row = _row(k, what, indices, fault, i)
                source, target = k.offset(rows_at, o * xo + row * xr, kind), k.offset(y_at, o * yo + i * yr, kind)
                tiles(k, "element", elements, inner, VECTORS * lanes, partial(_copy, k, kind.by(lanes), source, target))

    return emitted(isa, name, names, chunk_count(nest, pieces) if what.y.size else 0, body)


def _copy(k: Function, kind: Type, source: Value, target: Value, first: Value, width: int) -> None:
    """`width` elements from number `first` on: the loads, then the stores."""
    parts = [(at, min(kind.lanes, width - at)) for at in range(0, width, kind.lanes)]
    taken = [k.load_part(kind, source, lanes, first + at) for at, lanes in parts]
    for value, (at, lanes) in zip(taken, parts, strict=True):
        k.store_part(value, target, lanes, first + at)


def _row(k: Function, what: Gather, indices: Value, fault: Value, i: Value) -> Value:
    """Return the row of index i, clamped to the rows that exist."""
    rows = what.x.shape[1]
    index = k.convert("sext", k.load(I64 if what.indices == INT64 else I32, indices, i), I64)
    row = k.select(index < 0, index + rows, index)
    outside = k.op(f"icmp uge {row}, {rows}", k.compare("lt", row, 0).type, "outside")
    with k.when(outside, "fault"):
        k.store(index, fault)
    return k.select(row < 0, k.const(I64, 0), k.select(row < rows, row, k.const(I64, rows - 1)))
