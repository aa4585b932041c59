"""The code of softmax, normalizations and reductions: sweeps over a row, or over rows side by side (`normalize`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial, reduce
from typing import Literal

from kernels.expression import FLOAT, Expression
from kernels.native.emit import math as functions
from kernels.native.emit.builder import Function, Operand, Value
from kernels.native.emit.expression import evaluate, from_memory, memory_type
from kernels.native.emit.nest import piece_ranges
from kernels.native.emit.types import F32, I64
from kernels.record import record

UNROLLED = 4  # vectors of one turn of a sweep, each with a sum of its own
INFINITY = float("inf")


@record
class RowsCode:
    """All that decides the code.

    kind, reduces, epsilon, arguments: of `normalize.Rows`. expression: of the epilogue. along: whether vectors run within a row.
    vector: each argument's stride along the vectors, 0 or 1. kept, read, write: how many loops there are over rows, and within
    a row where x alone is read and where y is written. columns: vectors of rows that are processed side by side.
    """

    kind: str
    reduces: bool
    epsilon: float
    arguments: tuple[str, ...]
    expression: Expression
    along: bool
    vector: tuple[int, ...]
    kept: int
    read: int
    write: int
    columns: int


@record
class _Gather:
    """A reduction: `take` maps each element, `combine` reduces two, `end` makes the result of the total and of how many it is."""

    identity: float
    take: Callable[[Function, Value], Value]
    combine: Callable[[Function, Value, Value], Value]
    end: Callable[[Function, Value, Value], Value] = lambda _, total, __: total


def _itself(_: Function, x: Value) -> Value:
    return x


def _add(_: Function, a: Value, b: Value) -> Value:
    return a + b


def _greater(k: Function, a: Value, b: Value) -> Value:
    """Return the greater value in one instruction, which may drop a NaN; the sum of exponentials after it is NaN all the same."""
    return k.select(a > b, a, b)


_MAXIMUM = _Gather(-INFINITY, _itself, _greater)
_SUM = _Gather(0.0, _itself, _add)
_GATHERS: Mapping[str, _Gather] = {
    "sum": _SUM,
    "mean": _Gather(0.0, _itself, _add, lambda _, total, count: total / count),
    "max": _Gather(-INFINITY, _itself, lambda k, a, b: k.maximum(a, b)),
    "min": _Gather(INFINITY, _itself, lambda k, a, b: k.minimum(a, b)),
    "prod": _Gather(1.0, _itself, lambda _, a, b: a * b),
    "l1": _Gather(0.0, lambda k, x: k.abs(x), _add),
    "l2": _Gather(0.0, lambda _, x: x * x, _add, lambda k, total, _: k.sqrt(total)),
    "sum_square": _Gather(0.0, lambda _, x: x * x, _add),
    "log_sum": _Gather(0.0, _itself, _add, lambda k, total, _: functions.log(k, total)),
}

Places = Mapping[str, Value]  # the current address of each argument


@record
class _Block:
    """What is processed at once: one row, or some vectors of rows. lanes: that count of the last vector, None for all.

    unrolled: elements of every row in one turn of a sweep, or vectors of the one row.
    """

    columns: int
    lanes: Value | None
    unrolled: int


@record
class _Spot:
    """One vector: where it lies in each argument, how many of its lanes count (None for all), and the block's column it is in."""

    at: Places
    lanes: Value | None
    column: int


_Visit = Callable[[list[Value], int, _Spot], None]


def reduced(k: Function, vectors: Sequence[Value], combine: Callable[[Value, Value], Value]) -> Value:
    """Combine the lanes of each vector, by halves, and return the results over and over in the lanes of one vector.

    vectors: a power of two of them, as many as there are lanes at most. The halves of two make one, so that each step after the
    first combines the lanes of several.
    """
    kind, width, found = vectors[0].type, vectors[0].type.lanes, list(vectors)
    if len(vectors) == 1:
        return k.splat(k.reduce(found[0], combine), kind)
    while width > 1:
        width //= 2
        sections = range(0, found[0].type.lanes * min(len(found), 2), 2 * width)
        low, high = ([start + side + lane for start in sections for lane in range(width)] for side in (0, width))
        pairs = zip(found[::2], found[1::2], strict=True) if len(found) > 1 else [(found[0], None)]
        found = [combine(k.shuffle(a, b, low), k.shuffle(a, b, high)) for a, b in pairs]
    return k.shuffle(found[0], None, [lane % len(vectors) for lane in range(kind.lanes)])


class RowsEmitter:
    """Emits the code. A column is what has statistics of its own: the row, or each vector of a block of rows."""

    def __init__(self, k: Function, code: RowsCode, n: Mapping[str, Value]) -> None:
        self.k, self.code, self.n, self.lanes = k, code, n, k.isa.lanes
        self.strides = dict(zip(code.arguments, code.vector, strict=True))
        own = len(code.arguments) - len(code.expression.operands)
        dtypes = (*[FLOAT] * own, *code.expression.operands[1:], FLOAT)
        self.dtypes = dict(zip(code.arguments, dtypes, strict=True))
        self.operands = code.arguments[own:-1]
        inner = [f"read{code.read - 1}", f"write{code.write - 1}"]
        unit = self.lanes if code.along else 1
        self.whole = {  # how far the innermost loops within a row go in whole turns, by loop and elements of a turn
            (loop, count): n[loop] // count * count
            for loop in inner
            for count in (unit, UNROLLED // code.columns * unit, UNROLLED * unit)
        }
        self.steps = {  # elements that a few turns of a loop are, by loop, argument and turns
            (loop, name, turns): n[f"{loop}_{name}"] * turns
            for loop in ([f"kept{code.kept - 1}"] if code.along else inner)
            for name in code.arguments
            for turns in range(1, UNROLLED)
        }
        self.count = k.splat(k.convert("sitofp", n["count"], F32), k.f32)

    def emit(self, pointers: Places, begin: Value, end: Value) -> None:
        """Emit the loop over the chunks of a call."""
        k, n = self.k, self.n
        at = {name: k.offset(pointers[name], n[f"{name}_offset"], memory_type(dtype)) for name, dtype in self.dtypes.items()}
        with k.loop("chunk", begin, end) as chunk:
            self._rows(0, at, piece_ranges(k, n, self.code.kept, chunk))

    def _rows(self, loop: int, at: Places, ranges: Sequence[tuple[Value, Value]]) -> None:
        """Emit the loops over rows, from one of them on."""
        if loop == self.code.kept - 1:
            self._blocks(at, *ranges[loop])
            return
        with self.k.loop(f"kept{loop}", *ranges[loop]) as index:
            self._rows(loop + 1, self._moved(at, f"kept{loop}", index), ranges)

    def _blocks(self, at: Places, first: Value, last: Value) -> None:
        """Emit the innermost loop over rows: several columns side by side, then one by one, of vectors a part in the end."""
        k, columns, each = self.k, self.code.columns, 1 if self.code.along else self.lanes
        stop = first + (last - first) // (columns * each) * (columns * each)
        with k.loop("block", first, stop, columns * each) as row:
            self._row(_Block(columns, None, UNROLLED // columns), self._across(at, row))
        if self.code.along and columns == 1:
            return
        with k.loop("rest", stop, last, each) as row:
            lanes = None if self.code.along else k.least(last - row, k.const(I64, each))
            self._row(_Block(1, lanes, 1 if self.code.along else UNROLLED), self._across(at, row))

    def _across(self, at: Places, rows: Value) -> Places:
        """Return the addresses that many rows further in the innermost loop over rows."""
        return self._moved(at, f"kept{self.code.kept - 1}", rows) if self.code.along else self._along(at, rows)

    def _column(self, at: Places, column: int) -> Places:
        """Return the addresses of a column of a block."""
        return self._ahead(at, f"kept{self.code.kept - 1}", column) if self.code.along else self._along(at, column * self.lanes)

    def _moved(self, at: Places, loop: str, steps: Value) -> Places:
        """Return the addresses that many turns of a loop further."""
        return {
            name: self.k.offset(address, steps * self.n[f"{loop}_{name}"], memory_type(self.dtypes[name]))
            for name, address in at.items()
        }

    def _ahead(self, at: Places, loop: str, steps: int) -> Places:
        """Return the addresses a few turns of a loop further; how far that is has been computed once."""
        if steps == 0:
            return at
        return {
            name: self.k.offset(here, self.steps[loop, name, steps], memory_type(self.dtypes[name])) for name, here in at.items()
        }

    def _along(self, at: Places, elements: Operand) -> Places:
        """Return the addresses that many elements further along the vectors."""
        k, by = self.k, self.k.coerce(elements, I64)
        return {name: k.offset(here, by * self.strides[name], memory_type(self.dtypes[name])) for name, here in at.items()}

    def _row(self, block: _Block, at: Places) -> None:
        """Emit one row, or one block of rows side by side."""
        if self.code.kind in ("softmax", "log_softmax"):
            self._softmax(block, at)
        elif self.code.reduces:
            self._reduction(block, at)
        else:
            self._normalization(block, at)

    def _softmax(self, block: _Block, at: Places) -> None:
        """Subtract the maximum, so that nothing overflows; y holds the exponentials until their sum is known."""
        k, logarithm = self.k, self.code.kind == "log_softmax"
        top = self._spread(block, self._gather(block, at, _MAXIMUM, self._x))

        def exponential(spot: _Spot) -> Value:
            value = functions.exp_or_zero(k, self._x(spot) - top[spot.column])
            if not logarithm:
                self._put(value, spot)
            return value

        total = self._gather(block, at, _SUM, exponential, ("x",) if logarithm else ("x", "y"))
        if logarithm:
            shift = self._spread(block, [functions.log(k, value) for value in total])
            self._write(block, at, lambda spot: self._x(spot) - top[spot.column] - shift[spot.column])
        else:
            factor = self._spread(block, [1.0 / value for value in total])
            self._write(block, at, lambda spot: self._load(spot, "y") * factor[spot.column])

    def _normalization(self, block: _Block, at: Places) -> None:
        """Subtract the mean before squaring: E[x²] - E[x]² would lose digits by cancellation."""
        k, code, mean = self.k, self.code, None
        if code.kind == "layer_norm":
            mean = self._spread(block, [total / self.count for total in self._gather(block, at, _SUM, self._x)])

        def centred(spot: _Spot) -> Value:
            return self._x(spot) - mean[spot.column] if mean else self._x(spot)

        square = self._gather(block, at, _GATHERS["sum_square"], centred)
        inverse = self._spread(block, [1.0 / k.sqrt(total / self.count + code.epsilon) for total in square])

        def result(spot: _Spot) -> Value:
            value = centred(spot) * inverse[spot.column]
            if "w" in code.arguments and "b" in code.arguments:
                return k.fma(value, self._load(spot, "w"), self._load(spot, "b"))
            value = value * self._load(spot, "w") if "w" in code.arguments else value
            return value + self._load(spot, "b") if "b" in code.arguments else value

        self._write(block, at, result)

    def _reduction(self, block: _Block, at: Places) -> None:
        """Emit one element for each row."""
        k = self.k
        if self.code.kind == "log_sum_exp":
            top = self._gather(block, at, _MAXIMUM, self._x)
            top = [k.select(k.abs(value) < INFINITY, value, 0.0) for value in top]  # an infinite maximum is its own answer
            shift = self._spread(block, top)
            total = self._gather(block, at, _SUM, lambda spot: functions.exp(k, self._x(spot) - shift[spot.column]))
            results = [functions.log(k, value) + most for value, most in zip(total, top, strict=True)]
        else:
            gather = _GATHERS[self.code.kind]
            results = [gather.end(k, total, self.count) for total in self._gather(block, at, gather, self._x)]
        for column, value in enumerate(self._spread(block, results)):
            self._store(value, _Spot(self._column(at, column), block.lanes, column))

    def _x(self, spot: _Spot) -> Value:
        return self._load(spot, "x")

    def _load(self, spot: _Spot, name: str) -> Value:
        """Load a vector of an argument, or one element of it into every lane."""
        k, dtype, address = self.k, self.dtypes[name], spot.at[name]
        kind = memory_type(dtype).by(self.lanes)
        if self.strides[name] == 0:
            return from_memory(k, k.broadcast(kind, address), dtype)
        return from_memory(k, k.load(kind, address) if spot.lanes is None else k.load_first(kind, address, spot.lanes), dtype)

    def _store(self, value: Value, spot: _Spot) -> None:
        """Apply the epilogue and store."""
        loads = [partial(self._load, spot, name) for name in self.operands]
        self._put(evaluate(self.k, self.code.expression, [lambda: value, *loads], self.lanes), spot)

    def _put(self, value: Value, spot: _Spot) -> None:
        if self.strides["y"] == 0:
            self.k.store(self.k.extract(value, 0), spot.at["y"])
        elif spot.lanes is None:
            self.k.store(value, spot.at["y"])
        else:
            self.k.store_first(value, spot.at["y"], spot.lanes)

    def _write(self, block: _Block, at: Places, result: Callable[[_Spot], Value]) -> None:
        """Sweep over the row and store what `result` returns for each vector."""
        self._sweep("write", block, at, self.code.arguments, [], lambda _, __, spot: self._store(result(spot), spot))

    def _gather(
        self, block: _Block, at: Places, gather: _Gather, value: Callable[[_Spot], Value], used: Sequence[str] = ("x",)
    ) -> list[Value]:
        """Sweep over the row and reduce what `value` returns, for each column.

        Returns a vector for each, or for rows along lanes one vector that has the results over and over (`reduced`).
        """
        k, columns = self.k, block.columns
        identity = k.const(k.f32, gather.identity)

        def visit(totals: list[Value], slot: int, spot: _Spot) -> None:
            taken = gather.take(k, value(spot))
            if self.code.along and spot.lanes is not None:
                taken = k.select(k.first_lanes(k.f32, spot.lanes), taken, identity)
            totals[slot] = gather.combine(k, totals[slot], taken)

        def combine(a: Value, b: Value) -> Value:
            return gather.combine(k, a, b)

        totals = self._sweep("read", block, at, used, [identity] * (columns * block.unrolled), visit)
        results = [reduce(combine, totals[column::columns]) for column in range(columns)]
        return [reduced(k, results, combine)] if self.code.along else results

    def _spread(self, block: _Block, values: list[Value]) -> list[Value]:
        """Return what each column has of statistics in the lanes that it fills. values: computed of what `_gather` returned."""
        if not self.code.along or block.columns == 1:
            return values
        return [self.k.shuffle(values[0], None, [column] * self.lanes) for column in range(block.columns)]

    def _sweep(
        self, loops: Literal["read", "write"], block: _Block, at: Places, used: Sequence[str], values: list[Value], visit: _Visit
    ) -> list[Value]:
        """Visit every vector of the columns; each visit of an unrolled turn has a slot of `values`. used: arguments touched."""
        depth = self.code.read if loops == "read" else self.code.write

        def nest(loop: int, at: Places, values: list[Value]) -> list[Value]:
            if loop == depth - 1:
                emit = self._vectors if self.code.along else self._elements
                return emit(f"{loops}{loop}", block, at, values, visit)
            with self.k.fold(f"{loops}{loop}", 0, self.n[f"{loops}{loop}"], 1, values, runs=True) as fold:
                fold.values = nest(loop + 1, self._moved(at, f"{loops}{loop}", fold.index), fold.values)
            return fold.values

        return nest(0, {name: at[name] for name in used}, values)

    def _vectors(self, loop: str, block: _Block, at: Places, values: list[Value], visit: _Visit) -> list[Value]:
        """Emit the innermost loops along rows: several vectors at a time, then one by one, then what is left of the last."""
        k, size, start = self.k, self.n[loop], self.k.const(I64, 0)
        left = size - self.whole[loop, self.lanes]
        steps = [(count, self.whole[loop, count * self.lanes], None) for count in dict.fromkeys((block.unrolled, 1))]
        for count, stop, lanes in (*steps, (1, size, left)):  # the last one runs once or never
            with k.fold("vector", start, stop, count * self.lanes, values) as fold:
                carried = list(fold.values)
                for number in range(count):
                    here = self._along(at, fold.index + number * self.lanes)
                    for column in range(block.columns):
                        spot = _Spot(self._column(here, column), lanes, column)
                        visit(carried, number * block.columns + column, spot)
                fold.values = carried
            values, start = list(fold.values), stop
        return values

    def _elements(self, loop: str, block: _Block, at: Places, values: list[Value], visit: _Visit) -> list[Value]:
        """Emit the innermost loops across rows: an element of every column at a time, or several."""
        k, start = self.k, self.k.const(I64, 0)
        for count in dict.fromkeys((block.unrolled, 1)):
            stop = self.whole[loop, count]
            with k.fold("element", start, stop, count, values, runs=block.unrolled == 1) as fold:
                carried = list(fold.values)
                first = self._moved(at, loop, fold.index)
                for number in range(count):
                    here = self._ahead(first, loop, number)
                    for column in range(block.columns):
                        spot = _Spot(self._column(here, column), block.lanes, column)
                        visit(carried, number * block.columns + column, spot)
                fold.values = carried
            values, start = list(fold.values), stop
        return values
