"""Elementwise expressions and copies over strided tensors: every input is read once and nothing but the result is written.

    for each chunk = a piece of each axis:
        for each axis but two, for each tile of rows × columns:        columns: in vectors, along the axis where y is contiguous
            load the operands, apply the steps, store

What an operand costs depends on its stride along the columns: 1 is a load, 0 one element in every lane (loaded once a row, and
what depends on such operands alone is computed then), -1 a load and a shuffle. An operand that lies contiguous along the rows is
transposed in registers, lanes × lanes at a time. Any other is loaded element by element.

With no step a map is a copy, of elements of 1, 2, 4 or 8 bytes: transposition, slice, expansion, a piece of a concatenation, a
conversion between layouts. The result may overwrite an operand that lies in the same place under the same strides.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kernels.expression import FLOAT, Apply, Expression
from kernels.native.emit.builder import Function, Value
from kernels.native.emit.expression import apply, cycles_of, from_memory, memory_type, to_memory, value_types
from kernels.native.emit.kernel import NativeKernel, emitted, kernel_name
from kernels.native.emit.names import name_dtype, name_expression
from kernels.native.emit.nest import Axis, chunk_count, chunk_ranges, cut, make_nest, tiles
from kernels.native.emit.transpose import transpose
from kernels.native.emit.types import I8, I16, I32, I64, Type
from kernels.native.errors import EmitError
from kernels.native.memory.view import View
from kernels.native.target.isa import Isa
from kernels.spec import DType

CHUNK_CYCLES = (8_000, 30_000)  # least and most of one chunk: 2 to 10 µs
CHUNKS = 32
CYCLE_BYTES = 32  # that caches move in a cycle, roughly
TURNED_LANES = 16  # most of a tile that is transposed: as many vectors as there are registers for
UNROLL = 4  # vectors at a time
HEAVY_CYCLES = 10  # a step of so many keeps the machine busy with one


@dataclass(frozen=True, slots=True)
class Strided:
    """A tensor in memory: its strides and its element type."""

    view: View
    dtype: DType = FLOAT


@dataclass(frozen=True, slots=True)
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
    emitter = _MapEmitter(what, types, isa) if what.y.view.size else None
    turned = ("transposed",) if emitter and emitter.nest.turned else ()
    name = kernel_name(stem, what, isa, (*turned, *name_expression(what.expression)))

    def body(k: Function, values: list[Value]) -> None:
        if emitter:
            *operands, y, begin, end = values
            emitter.emit(k, [y, *operands], begin, end)

    return emitted(isa, name, names, emitter.chunks if emitter else 0, body)


Values = dict[int, Value]  # of the tape, by number


class _MapEmitter:
    """Emits one map; the methods are the loops of the module docstring, outermost first. View 0 is y, view n + 1 operand n."""

    def __init__(self, what: Map, types: Sequence[DType], isa: Isa) -> None:
        self.what, self.isa = what, isa
        tensors = (what.y, *what.operands)
        self.nest = make_nest([what.y.view, *_repeated(what)])
        self.dtypes = types
        self.kinds = [bits_type(what.y.dtype)] if not what.steps else [memory_type(tensor.dtype) for tensor in tensors]
        self.kinds *= len(tensors) // len(self.kinds)
        every = [*self.kinds, *(memory_type(dtype) for dtype in types)] if what.steps else self.kinds
        self.lanes = isa.vector_bits // max(kind.bits for kind in every)
        if self.nest.turned:
            self.lanes = min(self.lanes, TURNED_LANES)
        heavy = max(map(cycles_of, what.steps), default=1) >= HEAVY_CYCLES
        self.unroll = 1 if heavy else UNROLL
        vectors = -(-self.nest.columns.size // self.lanes)
        if self.nest.turned:
            self.units = (self.lanes, self.lanes)
        else:
            across = min(vectors, self.unroll)
            self.units = (self.unroll // across, across * self.lanes)
        each = max(self._cycles(), 1 / self.lanes)  # of an element
        total = what.y.view.size * each
        chunk_cycles = min(max(total / CHUNKS, CHUNK_CYCLES[0]), CHUNK_CYCLES[1])
        self.pieces = cut(self.nest, self.units, chunk_cycles / each)
        self.chunks = chunk_count(self.nest, self.pieces)

    def _cycles(self) -> float:
        """Estimate the cycles of one element."""
        cycles = (1 + sum(map(cycles_of, self.what.steps))) / self.lanes
        for n, (kind, stride) in enumerate(zip(self.kinds, self.nest.columns.strides, strict=True)):
            single = abs(stride) > 1 and n not in self.nest.turned
            cycles += 1 if single else min(abs(stride), 1) * kind.bits / 8 / CYCLE_BYTES
        return cycles

    def emit(self, k: Function, addresses: Sequence[Value], begin: Value, end: Value) -> None:
        """Emit the loop over the chunks of a call."""
        addresses = [k.offset(at, self.nest.offsets[n], self.kinds[n]) for n, at in enumerate(addresses)]
        with k.loop("chunk", begin, end) as chunk:
            self._axis(k, 0, addresses, chunk_ranges(k, self.nest, self.pieces, chunk))

    def _axis(self, k: Function, depth: int, addresses: Sequence[Value], ranges: Sequence[tuple[Value, Value]]) -> None:
        axis = self.nest.axes[depth]
        if depth == len(self.nest.axes) - 2:
            self._rows(k, addresses, *ranges[depth:])
            return
        with k.loop(f"axis{depth}", *ranges[depth]) as index:
            self._axis(k, depth + 1, self._moved(k, addresses, axis, index), ranges)

    def _moved(self, k: Function, addresses: Sequence[Value], axis: Axis, index: Value) -> list[Value]:
        """Return the addresses at an index of an axis."""
        triples = zip(addresses, axis.strides, self.kinds, strict=True)
        return [k.offset(address, index * stride, kind) for address, stride, kind in triples]

    def _rows(
        self, k: Function, addresses: Sequence[Value], row_range: tuple[Value, Value], column_range: tuple[Value, Value]
    ) -> None:
        """Emit the tiles of a chunk at one index of the outer axes."""
        (row_axis, column_axis), (row_unit, column_unit) = self.nest.axes[-2:], self.units

        def rows(row: Value, count: int) -> None:
            at = self._moved(k, addresses, row_axis, row)
            shared = self._shared(k, at, count)

            def columns(column: Value, width: int) -> None:
                self._tile(k, self._moved(k, at, column_axis, column), shared, width)

            tiles(k, "column", column_axis.size, column_range, column_unit, columns)

        tiles(k, "row", row_axis.size, row_range, row_unit, rows)

    def _shared(self, k: Function, addresses: Sequence[Value], rows: int) -> list[Values]:
        """Compute once per row what is equal in all columns: operands that are broadcast along them, and steps on these alone."""
        nest = self.nest
        shared: list[Values] = [{} for _ in range(rows)]
        for n in range(len(self.what.operands)):
            if nest.columns.strides[n + 1] != 0:
                continue
            if nest.rows.strides[n + 1] == 0:
                one = self._load(k, addresses[n + 1], n, 0, 0, 1)
                for values in shared:
                    values[n] = one
            elif not nest.turned:  # a tile of many rows has no registers to keep one for each
                for row, values in enumerate(shared):
                    values[n] = self._load(k, addresses[n + 1], n, row, 0, 1)
        for values in shared:
            self._apply(k, values)
        return shared

    def _apply(self, k: Function, values: Values) -> None:
        """Compute every step whose arguments have been computed."""
        for number, step in enumerate(self.what.steps, len(self.what.operands)):
            if number not in values and all(arg in values for arg in step.args):
                dtypes = [self.dtypes[arg] for arg in step.args]
                values[number] = apply(k, step, [values[arg] for arg in step.args], dtypes, self.lanes)

    def _tile(self, k: Function, addresses: Sequence[Value], shared: Sequence[Values], width: int) -> None:
        """Emit one tile, a few vectors at a time: all loads, then the steps, then the stores."""
        rows = len(shared)
        turned = {view - 1: self._turned(k, addresses[view], view, rows, width) for view in sorted(self.nest.turned)}
        cells = [(row, at) for row in range(rows) for at in range(0, width, self.lanes)]
        for first in range(0, len(cells), self.unroll):
            group = [(row, at, dict(shared[row])) for row, at in cells[first : first + self.unroll]]
            for row, at, values in group:
                for n, address in enumerate(addresses[1:]):
                    if n in turned:
                        values[n] = turned[n][row]
                    elif n not in values:
                        values[n] = self._load(k, address, n, row, at, min(self.lanes, width - at))
            for _, _, values in group:
                self._apply(k, values)
            for row, at, values in group:
                self._store(k, addresses[0], values[len(self.dtypes) - 1], row, at, min(self.lanes, width - at))

    def _turned(self, k: Function, address: Value, view: int, rows: int, width: int) -> list[Value]:
        """Load a tile of an operand that is contiguous along the rows, transpose it, and return its rows."""
        kind, stride = self.kinds[view].by(self.lanes), self.nest.columns.strides[view]
        loaded = [k.load_part(kind, address, rows, column * stride) for column in range(width)]
        rows_of = transpose(k, loaded + [k.poison(kind)] * (self.lanes - width))
        return [self._value(k, raw, view - 1) for raw in rows_of[:rows]]

    def _value(self, k: Function, raw: Value, operand: int) -> Value:
        return from_memory(k, raw, self.dtypes[operand]) if self.what.steps else raw

    def _load(self, k: Function, address: Value, operand: int, row: int, column: int, lanes: int) -> Value:
        """Load a vector of an operand along the columns."""
        stride = self.nest.columns.strides[operand + 1]
        at = row * self.nest.rows.strides[operand + 1] + column * stride
        return self._value(k, self._load_raw(k, self.kinds[operand + 1].by(self.lanes), address, at, stride, lanes), operand)

    def _load_raw(self, k: Function, kind: Type, address: Value, at: int, stride: int, lanes: int) -> Value:
        if stride == 0:
            return k.broadcast(kind, address, at)
        if stride == 1:
            return k.load_part(kind, address, lanes, at)
        if stride == -1:
            return k.shuffle(k.load_part(kind, address, lanes, at - (lanes - 1)), None, _backwards(lanes, self.lanes))
        value = k.poison(kind)
        for lane in range(lanes):
            value = k.insert(value, k.load(kind.element, address, at + lane * stride), lane)
        return value

    def _store(self, k: Function, address: Value, value: Value, row: int, column: int, lanes: int) -> None:
        """Store a vector along the columns, element by element where y is not contiguous."""
        raw = to_memory(k, value, self.what.y.dtype) if self.what.steps else value
        stride = self.nest.columns.strides[0]
        at = row * self.nest.rows.strides[0] + column * stride
        if stride == 1:
            k.store_part(raw, address, lanes, at)
            return
        for lane in range(lanes):
            k.store(k.extract(raw, lane), address, at + lane * stride)


def _repeated(what: Map) -> Iterator[View]:
    """Return the operands broadcast to y's shape. Raises EmitError where one does not fit."""
    shape = what.y.view.shape
    for n, operand in enumerate(what.operands):
        given = operand.view.shape
        fits = len(given) <= len(shape) and all(a in (1, b) for a, b in zip(given[::-1], shape[::-1], strict=False))
        if not fits:
            raise EmitError(f"map: operand {n} has shape {given}, it does not repeat to {shape}")
        yield operand.view.broadcast(shape)


def bits_type(dtype: DType) -> Type:
    """Return the integer type that holds the bits of an element."""
    return {8: I8, 16: I16, 32: I32, 64: I64}[memory_type(dtype).bits]


def _backwards(lanes: int, of: int) -> list[int]:
    """Return the picks of a shuffle that reverses the first lanes and leaves the others undefined."""
    return [*range(lanes - 1, -1, -1)] + [-1] * (of - lanes)
