"""Elementwise expressions and copies over strided tensors: every input is read once and nothing but the result is written.

    for each chunk = a piece of each axis:
        for each axis but one, for the columns, in vectors:        columns: the axis along which y is contiguous
            load the operands, apply the steps, store

What an operand costs depends on its stride along the columns: 1 is a load, 0 one element in every lane (loaded once a row, and
what depends on such operands alone is computed then), -1 a load and a shuffle. An operand that lies contiguous along the rows is
transposed in registers, lanes × lanes at a time. Any other is loaded element by element.

The code is decided by the steps, the types and these kinds of strides. Sizes, other strides and how chunks are cut are numbers.

With no step a map is a copy, of elements of 1, 2, 4 or 8 bytes: transposition, slice, expansion, a piece of a concatenation, a
conversion between layouts. The result may overwrite an operand that lies in the same place under the same strides.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace

import numpy as np

from kernels.expression import FLOAT, Apply, Expression
from kernels.native.emit.builder import Function, Value
from kernels.native.emit.expression import compute, cycles_of, from_memory, memory_type, to_memory, value_types
from kernels.native.emit.kernel import Bounds, NativeKernel, emitted, kernel_name
from kernels.native.emit.names import name_dtype, name_expression
from kernels.native.emit.nest import Axis, Nest, chunk_count, cut, make_nest, piece_numbers, piece_ranges
from kernels.native.emit.transpose import transpose
from kernels.native.emit.types import I8, I16, I32, I64, Type
from kernels.native.errors import EmitError
from kernels.native.memory.view import View
from kernels.native.target.isa import Isa
from kernels.record import record
from kernels.size import hint, hinted, surely_equal
from kernels.spec import BFLOAT16, DType

DEPTH = 4  # least axes of a loop nest
CHUNK_CYCLES = (8_000, 30_000)  # least and most of one chunk: 2 to 10 µs
CHUNKS = 32
CYCLE_BYTES = 32  # that caches move in a cycle, roughly
TURNED_LANES = 16  # most of a tile that is transposed: as many vectors as there are registers for
NARROW_VECTORS = 2  # of a row, at most, for several rows to be computed at a time
UNROLL = 4  # vectors at a time
HEAVY_CYCLES = 10  # a step of so many keeps the machine busy with one


@record
class Strided:
    """A tensor in memory: its strides and its element type."""

    view: View
    dtype: DType = FLOAT


@record
class Map:
    """y = steps(operands), element by element. Operands are broadcast to y's shape as in numpy; without steps y = operand 0."""

    y: Strided
    operands: tuple[Strided, ...]
    steps: tuple[Apply, ...] = ()

    @property
    def expression(self) -> Expression:
        """The expression that each element of y is, of the operands' elements."""
        return Expression(tuple(operand.dtype for operand in self.operands), self.steps)


def emit_map(what: Map, isa: Isa) -> NativeKernel:
    """Emit the kernel, with the arguments "x0", "x1"… and "y". Where y has no element, the kernel has no chunk.

    Raises EmitError for operations that do not exist, types that do not fit, and a y whose elements overlap.
    """
    types = value_types(what.expression)
    if not types or types[-1] != what.y.dtype or not (what.steps or len(what.operands) == 1):
        made = types[-1].name if types else "nothing"
        raise EmitError(f"map: {len(what.operands)} operands and {len(what.steps)} steps make {made}, y is {what.y.dtype.name}")
    names = (*(f"x{n}" for n in range(len(what.operands))), "y")
    stem = f"{name_dtype(what.y.dtype)}_map{len(what.steps)}" if what.steps else f"b{what.y.dtype.itemsize}_copy"
    nest = _deep(make_nest([what.y.view, *_repeated(what)] if what.y.view.size else [View.dense((1,))] * len(names)))
    code = _Code.of(what, types, nest, isa)
    words = (*(("transposed",) if code.turned else ()), *name_expression(what.expression))
    pieces = _pieces(hint(what.y.view.size), code, nest, isa)

    def body(k: Function, pointers: Mapping[str, Value], sizes: Mapping[str, Value], chunks: Bounds) -> None:
        _MapEmitter(k, code, sizes).emit([pointers["y"], *(pointers[name] for name in names[:-1])], *chunks)

    return emitted(
        isa,
        kernel_name(stem, code, isa, words),
        names,
        chunk_count(nest.sizes, pieces) if what.y.view.size else 0,
        body,
        _numbers(nest, pieces),
    )


def _deep(nest: Nest) -> Nest:
    """Return a nest with at least DEPTH axes: one loop nest then serves tensors of any rank up to that."""
    missing = DEPTH - len(nest.axes)
    return replace(nest, axes=(*[Axis(1, (0,) * len(nest.offsets))] * missing, *nest.axes)) if missing > 0 else nest


def _numbers(nest: Nest, pieces: Sequence[int]) -> dict[str, int]:
    """Return the numbers that the code reads, by name.

    offset0…: elements from the address of each view to its first one, y's first; stride0_1…: of view 0 along axis 1.
    """
    numbers = piece_numbers(nest.sizes, pieces)
    for view, offset in enumerate(nest.offsets):
        numbers |= {f"offset{view}": offset, **{f"stride{view}_{n}": axis.strides[view] for n, axis in enumerate(nest.axes)}}
    return numbers


@record
class _Code:
    """All that decides the code. View 0 is y, view n + 1 operand n.

    types: of the operands and of each step. y: of the result. axes: how many. columns: each view's stride along the columns
    where it is 0, 1 or -1, else None. turned: the views that lie contiguous along the rows instead. narrow: a row is a vector
    or two, so that several rows are computed at a time; the views that are the same in every row then. None where rows are
    longer.
    """

    steps: tuple[Apply, ...]
    types: tuple[DType, ...]
    y: DType
    axes: int
    columns: tuple[int | None, ...]
    turned: tuple[int, ...]
    narrow: tuple[int, ...] | None = None

    @staticmethod
    def of(what: Map, types: Sequence[DType], nest: Nest, isa: Isa) -> _Code:
        """Return the code of a map over that nest."""
        columns = tuple(stride if abs(stride) <= 1 else None for stride in nest.columns.strides)
        steps, turned = what.steps, tuple(sorted(nest.turned))
        if not steps:  # copies of all types of one size are one
            bits = np.dtype(f"u{memory_type(what.y.dtype).bits // 8}")
            code = _Code((), (bits,), bits, len(nest.axes), columns, turned)
        else:
            code = _Code(steps, tuple(types), what.y.dtype, len(nest.axes), columns, turned)
        few = hint(nest.columns.size) <= NARROW_VECTORS * code.lanes(isa) and hint(nest.rows.size) >= UNROLL
        if turned or not few:
            return code
        return replace(code, narrow=tuple(view for view, stride in enumerate(nest.rows.strides) if surely_equal((stride,), (0,))))

    @property
    def operands(self) -> int:
        """How many operands there are."""
        return len(self.columns) - 1

    @property
    def kinds(self) -> list[Type]:
        """The type of an element of each view in memory."""
        return [memory_type(dtype) for dtype in (self.y, *self.types[: self.operands])]

    def lanes(self, isa: Isa) -> int:
        """Return the elements that are computed together: as many as there are of the widest type in a vector."""
        lanes = isa.vector_bits // max(kind.bits for kind in (*self.kinds, *map(memory_type, self.types)))
        return min(lanes, TURNED_LANES) if self.turned else lanes

    @property
    def unroll(self) -> int:
        """Vectors at a time."""
        if self.turned or None in self.columns:
            return 1
        return 1 if max(map(cycles_of, self.steps), default=1) >= HEAVY_CYCLES else UNROLL


def _pieces(elements: int, code: _Code, nest: Nest, isa: Isa) -> tuple[int, ...]:
    """Return how much of each axis a chunk takes. elements: in all."""
    lanes = code.lanes(isa)
    each = (1 + sum(map(cycles_of, code.steps))) / lanes  # cycles of an element
    for kind, stride, n in zip(code.kinds, hinted(nest.columns.strides), range(len(code.columns)), strict=True):
        single = abs(stride) > 1 and n not in code.turned
        each += 1 if single else min(abs(stride), 1) * kind.bits / 8 / CYCLE_BYTES
    each = max(each, 1 / lanes)
    chunk_cycles = min(max(elements * each / CHUNKS, CHUNK_CYCLES[0]), CHUNK_CYCLES[1])
    across = min(-(-hint(nest.columns.size) // lanes), code.unroll)
    return cut(nest, (lanes, lanes) if code.turned else (1, across * lanes), chunk_cycles / each)


Values = dict[int, Value]  # of the steps, by number


class _MapEmitter:
    """Emits the code; the methods are the loops of the module docstring, outermost first."""

    def __init__(self, k: Function, code: _Code, n: Mapping[str, Value]) -> None:
        self.k, self.code, self.n = k, code, n
        self.kinds, self.lanes = code.kinds, code.lanes(k.isa)

    def emit(self, addresses: Sequence[Value], begin: Value, end: Value) -> None:
        """Emit the loop over the chunks of a call."""
        k, n = self.k, self.n
        each = enumerate(zip(addresses, self.kinds, strict=True))
        at = [k.offset(address, n[f"offset{view}"], kind) for view, (address, kind) in each]
        with k.loop("chunk", begin, end) as chunk:
            self._axis(0, at, piece_ranges(k, n, self.code.axes, chunk))

    def _axis(self, axis: int, at: Sequence[Value], ranges: Sequence[tuple[Value, Value]]) -> None:
        rows = self.code.axes - 2
        if axis == rows and self.code.turned:
            self._turned_rows(at, *ranges[rows:])
        elif axis == rows and self.code.narrow is not None:
            self._narrow_rows(at, self.code.narrow, *ranges[rows:])
        elif axis == rows + 1:
            self._columns(at, *ranges[axis])
        else:
            with self.k.loop(f"axis{axis}", *ranges[axis]) as index:
                self._axis(axis + 1, self._moved(at, axis, index), ranges)

    def _moved(self, at: Sequence[Value], axis: int, index: Value) -> list[Value]:
        """Return the addresses at an index of an axis."""
        return [
            self.k.offset(address, index * self._stride(view, axis), kind)
            for view, (address, kind) in enumerate(zip(at, self.kinds, strict=True))
        ]

    def _stride(self, view: int, axis: int) -> Value:
        known = self.code.columns[view] if axis == self.code.axes - 1 else None
        return self.n[f"stride{view}_{axis}"] if known is None else self.k.const(I64, known)

    def _columns(self, at: Sequence[Value], first: Value, last: Value) -> None:
        """Emit the vectors of a row: several at a time, then one by one, then what is left of the last."""
        k, lanes, axis = self.k, self.lanes, self.code.axes - 1
        shared, wide = self._shared(at), self.code.unroll * lanes
        start, size = first, last - first
        for count in dict.fromkeys((wide, lanes)):
            stop = first + size // count * count
            with k.loop("column", start, stop, count) as column:
                self._vectors(self._moved(at, axis, column), shared, count // lanes)
            start = stop
        with k.when(start < last, "rest"):
            self._part(self._moved(at, axis, start), shared, last - start)

    def _shared(self, at: Sequence[Value]) -> Values:
        """Compute once for a row what is equal in all columns: operands broadcast along them, and steps on these alone."""
        shared: Values = {}
        for operand, (address, stride) in enumerate(zip(at[1:], self.code.columns[1:], strict=True)):
            if stride == 0:
                kind = self.kinds[operand + 1].by(self.lanes)
                shared[operand] = self._value(self.k.broadcast(kind, address), operand)
        self._apply(shared)
        return shared

    def _apply(self, values: Values) -> None:
        """Compute every step whose arguments have been computed."""
        expression = Expression(self.code.types[: self.code.operands], self.code.steps)
        for number, step in enumerate(self.code.steps, self.code.operands):
            if number not in values and all(arg in values for arg in step.args):
                values[number] = compute(self.k, expression, self.code.types, number, values.__getitem__, self.lanes)

    def _value(self, raw: Value, operand: int) -> Value:
        return from_memory(self.k, raw, self.code.types[operand]) if self.code.steps else raw

    def _vectors(self, at: Sequence[Value], shared: Values, count: int) -> None:
        """Emit whole vectors side by side: all loads, then the steps, then the stores."""
        group = [dict(shared) for _ in range(count)]
        for number, values in enumerate(group):
            for operand in range(self.code.operands):
                if operand not in values:
                    values[operand] = self._value(self._load(operand + 1, at[operand + 1], number), operand)
        for values in group:
            self._apply(values)
        for number, values in enumerate(group):
            self._store(at[0], values, number)

    def _load(self, view: int, address: Value, number: int) -> Value:
        """Load the vector of that number along the columns."""
        k, kind, stride = self.k, self.kinds[view].by(self.lanes), self.code.columns[view]
        first = number * self.lanes
        if stride == 1:
            return k.load(kind, address, first)
        if stride == -1:
            backwards = k.load(kind, address, 1 - first - self.lanes)
            return k.shuffle(backwards, None, range(self.lanes - 1, -1, -1))
        step, value = self._stride(view, self.code.axes - 1), k.poison(kind)
        for lane in range(self.lanes):
            value = k.insert(value, k.load(kind.element, address, step * (first + lane)), lane)
        return value

    def _store(self, address: Value, values: Values, number: int) -> None:
        k, raw, first = self.k, self._raw(values), number * self.lanes
        if self.code.columns[0] == 1:
            k.store(raw, address, first)
            return
        step = self._stride(0, self.code.axes - 1)
        for lane in range(self.lanes):
            k.store(k.extract(raw, lane), address, step * (first + lane))

    def _raw(self, values: Values) -> Value:
        """Return the result as it is stored."""
        value = values[len(self.code.types) - 1]
        return to_memory(self.k, value, self.code.y) if self.code.steps else value

    def _part(self, at: Sequence[Value], shared: Values, count: Value) -> None:
        """Emit the first `count` lanes of a vector."""
        k, values, axis = self.k, dict(shared), self.code.axes - 1
        for operand, (address, kind) in enumerate(zip(at[1:], self.kinds[1:], strict=True)):
            if operand not in values:
                raw = k.load_first(kind.by(self.lanes), address, count, self._stride(operand + 1, axis))
                values[operand] = self._value(raw, operand)
        self._apply(values)
        k.store_first(self._raw(values), at[0], count, self._stride(0, axis))

    # Rows of a vector or two

    def _narrow_rows(
        self, at: Sequence[Value], same: Sequence[int], rows: tuple[Value, Value], columns: tuple[Value, Value]
    ) -> None:
        """Emit each vector of the columns for several rows at a time. same: the views that are the same in every row."""
        k, lanes, axis = self.k, self.lanes, self.code.axes
        start, last = columns
        stop = start + (last - start) // lanes * lanes
        with k.loop("column", start, stop, lanes) as column:
            here = self._moved(at, axis - 1, column)
            held = {view - 1: self._operand(here, view - 1) for view in same if view}
            self._apply(held)
            first = rows[0]
            for count in dict.fromkeys((self.code.unroll, 1)):
                end = first + (rows[1] - first) // count * count
                with k.loop("row", first, end, count) as row:
                    self._rows(self._moved(here, axis - 2, row), held, count)
                first = end
        with k.when(stop < last, "rest"), k.loop("row", *rows) as row:
            here = self._moved(self._moved(at, axis - 2, row), axis - 1, stop)
            self._part(here, self._shared(here), last - stop)

    def _rows(self, at: Sequence[Value], held: Values, count: int) -> None:
        """Emit one vector of so many rows: all loads, then the steps, then the stores. held: what all rows share."""
        one, group = self.k.const(I64, 1), []
        for number in range(count):
            at = self._moved(at, self.code.axes - 2, one) if number else at
            group.append((at, {n: self._operand(at, n) for n in range(self.code.operands) if n not in held} | dict(held)))
        for _, values in group:
            self._apply(values)
        for here, values in group:
            self._store(here[0], values, 0)

    def _operand(self, at: Sequence[Value], operand: int) -> Value:
        """Read a vector of an operand, or the element that all columns of a row share."""
        if self.code.columns[operand + 1] == 0:
            return self._value(self.k.broadcast(self.kinds[operand + 1].by(self.lanes), at[operand + 1]), operand)
        return self._value(self._load(operand + 1, at[operand + 1], 0), operand)

    # Operands that lie contiguous along the rows

    def _turned_rows(self, at: Sequence[Value], rows: tuple[Value, Value], columns: tuple[Value, Value]) -> None:
        """Emit the square tiles of a chunk."""
        k, lanes, axis = self.k, self.lanes, self.code.axes
        with k.loop("row", *rows, lanes) as row, k.loop("column", *columns, lanes) as column:
            here = self._moved(self._moved(at, axis - 2, row), axis - 1, column)
            height, width = k.least(rows[1] - row, k.const(I64, lanes)), k.least(columns[1] - column, k.const(I64, lanes))
            whole = k.compare("eq", height + width, 2 * lanes)
            with k.when(whole, "whole"):
                self._tile(here, None)
            with k.when(whole ^ k.const(whole.type, 1), "part"):
                self._tile(here, (height, width))

    def _tile(self, at: Sequence[Value], size: tuple[Value, Value] | None) -> None:
        """Emit one square tile. size: its rows and columns where it has fewer than lanes."""
        k, code, axis = self.k, self.code, self.code.axes
        turned = {view: self._turned(at[view], view, size) for view in code.turned}
        for row in range(self.lanes):
            guard = nullcontext() if size is None else k.when(size[0] > row, "row")
            with guard:
                here = self._moved(at, axis - 2, k.const(I64, row))
                values = {view - 1: self._value(rows[row], view - 1) for view, rows in turned.items()} | self._shared(here)
                if size is None:
                    for operand in range(code.operands):
                        if operand not in values:
                            values[operand] = self._value(self._load(operand + 1, here[operand + 1], 0), operand)
                    self._apply(values)
                    self._store(here[0], values, 0)
                else:
                    self._part(here, values, size[1])

    def _turned(self, address: Value, view: int, size: tuple[Value, Value] | None) -> list[Value]:
        """Load a tile of an operand that is contiguous along the rows, transpose it, and return its rows."""
        k, kind, step = self.k, self.kinds[view].by(self.lanes), self._stride(view, self.code.axes - 1)
        if size is None:
            return transpose(k, [k.load(kind, address, step * column) for column in range(self.lanes)])
        loaded = []
        for column in range(self.lanes):
            last = k.least(size[1] - 1, k.const(I64, column))  # beyond the last column, that again
            loaded.append(k.load_first(kind, k.offset(address, step * last, kind), size[0]))
        return transpose(k, loaded)


def _repeated(what: Map) -> Iterator[View]:
    """Return the operands broadcast to y's shape. Raises EmitError where one does not fit."""
    shape = what.y.view.shape
    for n, operand in enumerate(what.operands):
        given = operand.view.shape
        fits = len(given) <= len(shape) and all(a in (1, b) for a, b in zip(given[::-1], shape[::-1], strict=False))
        if not fits:
            raise EmitError(f"map: operand {n} has shape {given}, it does not repeat to {shape}")
        yield operand.view.broadcast(shape)


def conversion(old: DType, new: DType) -> tuple[Apply, ...]:
    """Return the steps from elements of one type to the same numbers as another one."""
    if old == new:
        return ()
    return (Apply("hold" if (old, new) == (FLOAT, BFLOAT16) else "cast", (0,), (), new),)


def bits_type(dtype: DType) -> Type:
    """Return the integer type that holds the bits of an element."""
    return {8: I8, 16: I16, 32: I32, 64: I64}[memory_type(dtype).bits]
