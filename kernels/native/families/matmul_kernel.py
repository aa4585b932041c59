"""The code of matrix products of two computed tensors: a few register tiles, whose surroundings are data.

    for each chunk = a few units, for each unit = (batch, block of columns, block of rows):
        packed: write the columns of b side by side into scratch memory
        for each tile of rows × vectors of columns:        a is broadcast as it lies, b is read in vectors
            y = epilogue(alpha·a·b)

What decides the code is a `MatMulCode`: the tile, how the factors and the operands lie, and the epilogue. There is one tile more
for rows that do not fill the tallest tile, and one for columns that do not fill a block: it reads and writes parts of vectors.
In tiles that may have too many rows, the last row stands in for those that do not exist; their results are not stored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

from kernels.expression import FLOAT
from kernels.native.emit.builder import Function, Operand, Value
from kernels.native.emit.kernel import SCRATCH
from kernels.native.emit.product import (
    BUSY,
    Load,
    Rows,
    collect,
    copy,
    first_load,
    lanes_apart,
    multiply,
    part_load,
    rest_rows,
    turn,
    whole_load,
)
from kernels.native.emit.results import Numbers, Results, ResultsEmitter, Spot, Spots
from kernels.native.emit.transpose import transpose
from kernels.native.emit.types import F32, I32, I64
from kernels.native.emit.walk import next_turn
from kernels.native.target.isa import Isa
from kernels.record import record

FEW_ROWS = 2  # of a tile: then products are bound by reading b, and blocks of columns that are not full are read like others

Method = Literal["direct", "packed", "dots"]
Order = Literal["rows", "columns", "strided"]  # which neighbours of a matrix lie side by side: those of a row, of a column, none


@record
class MatMulCode:
    """All that decides the code. a, b: how they lie. results: the tile, y and its operands. scaled: alpha is not 1.

    batches: loops over batches.
    """

    method: Method
    a: Order
    b: Order
    results: Results
    scaled: bool
    batches: int

    @property
    def rest_rows(self) -> int:
        """Rows of the tile for rows that are left over; 0 where the tallest tile leaves none."""
        return rest_rows(self.results.pixels, self.results.vectors)

    @property
    def part(self) -> tuple[int, int]:
        """Rows and vectors of the tile for blocks of columns that are not full."""
        return part_tile(self.results.pixels, self.results.vectors)

    def buffer_bytes(self, isa: Isa) -> int:
        """Return the bytes of scratch memory for a tile that is stored in parts."""
        rows, vectors = self.part
        tiles = (self.results, replace(self.results, pixels=rows, vectors=vectors))
        return max(tile.buffer_bytes(isa.lanes) for tile in tiles) * (2 if self.method == "dots" else 1)


def part_tile(rows: int, vectors: int) -> tuple[int, int]:
    """Return rows and vectors of the tile for blocks of columns that are not full: all vectors at once, or one by one."""
    return (rows, vectors) if rows <= FEW_ROWS else (BUSY, 1)


class MatMulEmitter:
    """Emits the code; the methods are the loops of the module's docstring, from the outside in.

    n: the numbers by name, as `kernels.native.families.matmul` fills them. pointers: of the oriented product.
    """

    def __init__(self, k: Function, code: MatMulCode, n: Numbers, pointers: Mapping[str, Value], buffer: Value) -> None:
        self.k, self.code, self.n, self.pointers, self.lanes = k, code, n, pointers, k.isa.lanes
        self.tile, self.buffer = code.results, buffer
        self.width = code.results.vectors * k.isa.lanes
        if code.method == "dots":
            self.few = n["columns"] < k.isa.lanes
            self.columns_apart = lanes_apart(k, k.select(self.few, n["copy_step"], n["b_column"]))
        self.alpha = k.splat(k.convert("bitcast", k.convert("trunc", n["alpha"], I32), F32), k.f32) if code.scaled else None

    def emit(self, begin: Value, end: Value) -> None:
        """Emit the loop over the chunks of a call."""
        k, n = self.k, self.n
        sizes = [n["row_chunks"], n["blocks"], *(n[f"batch{axis}"] for axis in reversed(range(1, self.code.batches)))]
        first, turns = begin * n["chunk_units"], list[Value]()
        left = first
        for size in sizes:
            turns.append(left % size)
            left = left // size
        with k.fold("unit", first, k.least(end * n["chunk_units"], n["units"]), 1, [*turns, left]) as fold:
            cut, block, *batches = fold.values
            self._unit(cut, block, batches[::-1])
            fold.values = next_turn(k, fold.values, sizes)

    def _start(self, name: str, batches: Sequence[Value]) -> Value:
        """Return the elements from a tensor's address to its first one of a batch."""
        start = self.n[f"{name}_first"]
        for axis, batch in enumerate(batches):
            start = start + batch * self.n[f"{name}_batch{axis}"]
        return start

    def _unit(self, cut: Value, block: Value, batches: Sequence[Value]) -> None:
        """Emit one block of rows of one block of columns."""
        k, n = self.k, self.n
        column = block * n["unit_columns"]
        left = n["columns"] - column
        a = k.offset(self.pointers["a"], self._start("a", batches))
        b = k.offset(self.pointers["b"], self._start("b", batches) + column * self._b_column)
        to = []
        for name, channels, dtype in zip(
            self.tile.names, (self.tile.y, *self.tile.operands), (FLOAT, *self.tile.expression.operands[1:]), strict=True
        ):
            vector = k.const(I64, self.lanes if channels.kind == "rows" else 0)
            spot = Spot(channels, dtype, self.pointers[name], vector, n[f"{name}_row"])
            to.append(spot.move(k, self._start(name, batches)))
        here = self._columns(to, column)
        first = cut * n["chunk_rows"]
        stop = k.least(first + n["chunk_rows"], n["rows"])
        if self.code.method == "dots":
            with k.when(self.few, "copy"):
                copy(k, n["depth"], n["columns"], b, n["b_column"], self.pointers[SCRATCH], n["copy_step"])
            b = k.select(self.few, self.pointers[SCRATCH], b)
            self._dots(a, b, here, (first, stop), k.least(left, n["unit_columns"]))
            return
        b_step: Operand = n["b_step"]
        if self.code.method == "packed":
            self._pack(k.least(left, k.const(I64, self.width)), b)
            b, b_step = self.pointers[SCRATCH], self.width
        full = left >= self.width
        with k.when(full, "full"):
            self._full_block(a, b, b_step, here, (first, stop))
        with k.when(full ^ k.const(full.type, 1), "rest"):
            self._part_of_block(a, b, b_step, here, (first, stop), left)

    @property
    def _b_column(self) -> Operand:
        return 1 if self.code.b == "rows" else self.n["b_column"]

    def _columns(self, to: Spots, column: Operand) -> Spots:
        """Return the places of a column."""
        return [spot.move(self.k, column) if spot.channels.kind == "rows" else spot for spot in to]

    def _rows(self, to: Spots, row: Value) -> Spots:
        """Return the places of a row."""
        return [spot.move(self.k, row * spot.pixel) for spot in to]

    def _pack(self, columns: Value, b: Value) -> None:
        """Emit the packing of a block's columns of b, side by side."""
        k, n, to = self.k, self.n, self.pointers[SCRATCH]
        if self.code.b == "rows":
            copy(k, columns, n["depth"], b, n["b_step"], to, self.width)
        elif self.code.b == "columns":
            turn(k, columns, n["depth"], b, n["b_column"], to, self.width)
        else:
            collect(k, columns, n["depth"], b, (n["b_step"], n["b_column"]), to, self.width)

    def _full_block(self, a: Value, b: Value, b_step: Operand, to: Spots, rows: tuple[Value, Value]) -> None:
        """Emit the tiles of a block of columns that all exist."""
        k, (first, stop), vectors = self.k, rows, self.tile.vectors
        loads, height, rest = [whole_load(k)] * vectors, self.tile.pixels, self.code.rest_rows
        whole = first + (stop - first) // height * height
        with k.loop("row", first, whole, height) as row:
            values = self._tile(self._a(a, row, None), height, loads, b, b_step)
            self._results(height, vectors).finish_whole(values, self._rows(to, row))
        if rest:
            with k.loop("row", whole, stop, rest) as row:
                values = self._tile(self._a(a, row, stop), rest, loads, b, b_step)
                some = k.least(stop - row, k.const(I64, rest))
                self._results(rest, vectors).finish_part(values, self._rows(to, row), (k.const(I64, 0), some), None)

    def _part_of_block(self, a: Value, b: Value, b_step: Operand, to: Spots, rows: tuple[Value, Value], left: Value) -> None:
        """Emit the tiles of a block of `left` columns, fewer than it has room for."""
        k, (first, stop), (height, vectors) = self.k, rows, self.code.part
        with k.loop("column", 0, left, vectors * self.lanes) as column:
            few = left - column
            packed = self.code.method == "packed"  # that memory has whole vectors
            loads = [whole_load(k) if packed else part_load(k, few, v * self.lanes) for v in range(vectors)]
            with k.loop("row", first, stop, height) as row:
                values = self._tile(self._a(a, row, stop), height, loads, k.offset(b, column), b_step)
                some = k.least(stop - row, k.const(I64, height))
                here = self._columns(self._rows(to, row), column)
                self._results(height, vectors).finish_part(values, here, (k.const(I64, 0), some), few)

    def _a(self, a: Value, row: Value, stop: Value | None) -> Rows:
        """Return the rows of a from `row` on. stop: the number behind the last that exists; None where all of a tile do."""
        n = self.n
        # without FMA LLVM would load the rows of a step together where it knows that they lie side by side, and spill
        by_row: Operand = 1 if self.code.a == "columns" and self.k.isa.fma else n["a_row"]
        by_step: Operand = 1 if self.code.a == "rows" else n["a_step"]
        return Rows(self.k.offset(a, row * n["a_row"]), by_row, by_step, None if stop is None else stop - row - 1)

    def _tile(self, rows: Rows, count: int, loads: Sequence[Load], b: Value, b_step: Operand) -> list[Value]:
        """Emit one register tile."""
        starts = [self.k.zero(self.k.f32)] * count * len(loads)
        return self._scaled(multiply(self.k, rows, loads, self.n["depth"], b, b_step, starts))

    def _scaled(self, values: list[Value]) -> list[Value]:
        return values if self.alpha is None else [value * self.alpha for value in values]

    def _results(self, rows: int, vectors: int) -> ResultsEmitter:
        return ResultsEmitter(self.k, replace(self.tile, pixels=rows, vectors=vectors), self.n, self.buffer)

    def _dots(self, a: Value, b: Value, to: Spots, rows: tuple[Value, Value], columns: Value) -> None:
        """Emit some columns of some rows, a vector of columns at a time, lanes along the depth.

        The last vector ends with the last column, so columns of the one before are computed again, and not stored. Fewer columns
        than lanes were copied to where there is room for others.
        """
        k, n, lanes, results = self.k, self.n, self.k.const(I64, self.lanes), self._results(1, 1)
        most = k.select(self.few, k.const(I64, 0), lanes)
        with k.loop("column", 0, columns, self.lanes) as column:
            left = k.least(columns - column, lanes)
            before, whole = k.most(most - left, k.const(I64, 0)), left >= lanes
            at, here = k.offset(b, (column - before) * n["b_column"]), self._columns(to, column)
            with k.loop("row", *rows) as row:
                value, place = self._scaled([self._sums_of_dots(k.offset(a, row * n["a_row"]), at)])[0], self._rows(here, row)
                with k.when(whole, "whole"):
                    results.finish_whole([value], place)
                with k.when(whole ^ k.const(whole.type, 1), "part"):
                    k.store(value, self.buffer)
                    one = (k.const(I64, 0), k.const(I64, 1))
                    results.finish_part([k.load(k.f32, self.buffer, before)], place, one, left)

    def _sums_of_dots(self, a: Value, b: Value) -> Value:
        """Emit the products of a row and a vector of columns."""
        k, depth = self.k, self.n["depth"]
        sums, whole = [k.zero(k.f32)] * self.lanes, depth // self.lanes * self.lanes
        for start, stop, some in ((k.const(I64, 0), whole, None), (whole, depth, depth - whole)):
            load = whole_load(k) if some is None else first_load(k, some)
            with k.fold("depth", start, stop, self.lanes, sums) as fold:
                one, others = load(k.offset(a, fold.index)), self.columns_apart(k.offset(b, fold.index))
                fold.values = [k.fma(one, load(other), total) for other, total in zip(others, fold.values, strict=True)]
            sums = fold.values
        turned = transpose(k, sums)
        while len(turned) > 1:
            turned = [first + second for first, second in zip(turned[::2], turned[1::2], strict=True)]
        return turned[0]
