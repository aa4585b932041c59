"""Running sums and products along one axis, each taken in the order of the definition, as in numpy.

    for each chunk = (piece of outer, of elements):    total = x[o, 0, :];  for i:  y[o, i, :] = total = total + x[o, i, :]

Elements that lie side by side are added up in vectors, several at a time. Where the axis is the last there are none: then several
outer ones are, since each addition waits for the one before.

The code is decided by the type, what is computed, and whether elements lie side by side; sizes and strides are numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from kernels.expression import FLOAT, Apply
from kernels.native.emit.builder import Function, Value
from kernels.native.emit.expression import apply, memory_type
from kernels.native.emit.kernel import Bounds, NativeKernel, emitted, kernel_name
from kernels.native.emit.names import name_dtype
from kernels.native.emit.nest import Axis, Nest, chunk_count, cut, piece_numbers, piece_ranges
from kernels.native.emit.types import I64, Type
from kernels.native.errors import EmitError
from kernels.native.memory.view import View
from kernels.native.target.isa import Isa
from kernels.record import record
from kernels.size import hint, most
from kernels.spec import BOOL, DType

TOGETHER = 4  # vectors or rows at a time: an addition waits 3 to 4 cycles for the one before
CHUNK_BYTES = 32 << 10  # read by one, a few µs


@record
class Cumulative:
    """x and y: (outer, size, elements), which do not overlap; y is written.

    kind: how two numbers are combined. exclusive: without the element itself. reverse: from the last one on.
    """

    x: View
    y: View
    kind: Literal["add", "mul"] = "add"
    dtype: DType = FLOAT
    exclusive: bool = False
    reverse: bool = False


@record
class _Code:
    """All that decides the code. side_by_side: whether elements are, of x and y."""

    kind: Literal["add", "mul"]
    dtype: DType
    exclusive: bool
    side_by_side: bool


def emit_cumulative(what: Cumulative, isa: Isa) -> NativeKernel:
    """Emit the kernel, with the arguments "x" and "y". Raises EmitError for shapes that differ, and for bools."""
    x, y, dtype = what.x, what.y, what.dtype
    if x.shape != y.shape or len(x.shape) != 3 or dtype == BOOL:
        raise EmitError(f"cumulative: x is {x.shape}, y {y.shape} of {dtype.name}, need numbers (outer, size, elements) of both")
    outer, size, elements = x.shape
    code = _Code(what.kind, dtype, what.exclusive, elements > 1 and x.strides[2] == y.strides[2] == 1)
    lanes = isa.vector_bits // memory_type(dtype).bits
    sizes = (outer, elements) if x.size else (1, 1)
    units = (1, TOGETHER * lanes) if code.side_by_side else (TOGETHER, 1)
    nest = Nest(tuple(Axis(hint(each), ()) for each in sizes), (), frozenset())
    pieces = cut(nest, units, CHUNK_BYTES / (dtype.itemsize * most(hint(size), 1)))
    numbers = {**piece_numbers(sizes, pieces), "size": size}
    for name, view in (("x", x), ("y", y)):
        first, step = view.offset, view.strides[1]
        if what.reverse:
            first, step = first + (size - 1) * step, -step
        numbers |= {
            f"{name}_first": first,
            f"{name}_outer": view.strides[0],
            f"{name}_step": step,
            f"{name}_element": view.strides[2],
        }

    def body(k: Function, pointers: Mapping[str, Value], sizes: Mapping[str, Value], chunks: Bounds) -> None:
        _CumulativeEmitter(k, code, sizes, pointers).emit(*chunks)

    words = (*(("exclusive",) if what.exclusive else ()), "columns" if code.side_by_side else "rows")
    return emitted(
        isa,
        kernel_name(f"{name_dtype(dtype)}_cum{what.kind}", code, isa, words),
        ("x", "y"),
        chunk_count(sizes, pieces) if x.size else 0,
        body,
        numbers,
    )


class _CumulativeEmitter:
    """Emits the code; the methods are the loops of the module docstring, outermost first."""

    def __init__(self, k: Function, code: _Code, n: Mapping[str, Value], pointers: Mapping[str, Value]) -> None:
        self.k, self.code, self.n = k, code, n
        self.kind = memory_type(code.dtype)
        self.lanes = k.isa.vector_bits // self.kind.bits
        self.first = {name: k.offset(pointers[name], n[f"{name}_first"], self.kind) for name in "xy"}

    def emit(self, begin: Value, end: Value) -> None:
        """Emit the loop over the chunks of a call."""
        with self.k.loop("chunk", begin, end) as chunk:
            (self._columns if self.code.side_by_side else self._rows)(*piece_ranges(self.k, self.n, 2, chunk))

    def _columns(self, outers: Bounds, inner: Bounds) -> None:
        """Emit the sums of elements that lie side by side: several vectors at a time, then one by one, then what is left."""
        k, vector = self.k, self.kind.by(self.lanes)
        with k.loop("outer", *outers) as o:
            start, last = inner
            for count in (TOGETHER, 1):
                width = count * self.lanes
                stop = start + (last - start) // width * width
                with k.loop("column", start, stop, width) as column:
                    self._totals(vector, [self._at(o, column + v * self.lanes) for v in range(count)], None)
                start = stop
            with k.when(start < last, "rest"):
                self._totals(vector, [self._at(o, start)], last - start)

    def _rows(self, outers: Bounds, inner: Bounds) -> None:
        """Emit the sums of elements that lie apart, several outer ones at a time, then one by one."""
        k = self.k
        with k.loop("element", *inner) as element:
            start, last = outers
            for count in (TOGETHER, 1):
                stop = start + (last - start) // count * count
                with k.loop("outer", start, stop, count) as o:
                    self._totals(self.kind, [self._at(o + n, element) for n in range(count)], None)
                start = stop

    def _at(self, o: Value, element: Value) -> dict[str, Value]:
        """Return the addresses of the first of the elements that one total is of, in x and y."""
        k, n, found = self.k, self.n, {}
        for name, first in self.first.items():
            stride = k.const(I64, 1) if self.code.side_by_side else n[f"{name}_element"]
            found[name] = k.offset(first, o * n[f"{name}_outer"] + element * stride, self.kind)
        return found

    def _totals(self, kind: Type, places: Sequence[Mapping[str, Value]], lanes: Value | None) -> None:
        """Emit the running totals of some vectors or elements. lanes: how many of each there are; None for all."""
        k, code = self.k, self.code
        firsts = [self._load(kind, place, k.const(I64, 0), lanes) for place in places]
        neutral = k.const(kind, 0 if code.kind == "add" else 1)
        for place, value in zip(places, firsts, strict=True):
            self._store(neutral if code.exclusive else value, place, k.const(I64, 0), lanes)
        with k.fold("step", 1, self.n["size"], 1, firsts) as fold:
            before, taken = fold.values, [self._load(kind, place, fold.index, lanes) for place in places]
            step, dtypes = Apply(code.kind, (0, 1)), [code.dtype] * 2
            fold.values = [apply(k, step, pair, dtypes, kind.lanes) for pair in zip(before, taken, strict=True)]
            for place, value in zip(places, before if code.exclusive else fold.values, strict=True):
                self._store(value, place, fold.index, lanes)

    def _load(self, kind: Type, place: Mapping[str, Value], step: Value, lanes: Value | None) -> Value:
        k, at = self.k, self.k.offset(place["x"], step * self.n["x_step"], self.kind)
        return k.load(kind, at) if lanes is None else k.load_first(kind, at, lanes)

    def _store(self, value: Value, place: Mapping[str, Value], step: Value, lanes: Value | None) -> None:
        k, at = self.k, self.k.offset(place["y"], step * self.n["y_step"], self.kind)
        if lanes is None:
            k.store(value, at)
        else:
            k.store_first(value, at, lanes)
