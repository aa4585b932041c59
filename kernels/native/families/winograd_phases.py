"""The code of the three phases of a Winograd convolution. What they read of sizes are numbers, so one code serves every image.

A transform has two passes over a square of vectors: first each column, then each row. A square of F(2, 3) is held in registers.
Larger ones lie in scratch memory, which stays in L1, and the passes are loops: a sixth of the code of F(4, 3) that has columns
and rows side by side, and as fast, since so many vectors do not fit the registers.

What lies outside of the image is 0, and rows outside are read from a row of zeros. So are columns outside, for F(2, 3); in larger
squares they are zeroed once a tile, and not computed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np

from kernels.native.emit.builder import Function, Value
from kernels.native.emit.floats import Floats
from kernels.native.emit.kernel import SCRATCH, Bounds
from kernels.native.emit.product import multiply_channel
from kernels.native.emit.results import Numbers, Results, ResultsEmitter
from kernels.native.emit.types import I8, I64
from kernels.native.families.winograd import transforms
from kernels.record import record
from kernels.spec import Array, DType

HELD_VECTORS = 16  # the fewest registers that an instruction set has


@record
class Position:
    """Where a tile lies: its number of all tiles, its image, and its row and column of tiles there."""

    number: Value
    image: Value
    row: Value
    column: Value


@contextmanager
def walk_tiles(k: Function, n: Numbers, first: Value, stop: Value) -> Iterator[Position]:
    """Emit a loop over tiles, numbered through image, row and column. Only the first one's position is found by division."""
    line, zero, one = first // n["columns"], k.const(I64, 0), k.const(I64, 1)
    starts = [line // n["rows"], line % n["rows"], first % n["columns"]]
    with k.fold("tile", first, stop, 1, starts) as fold:
        image, row, column = fold.values
        yield Position(fold.index, image, row, column)
        ends_row = k.compare("eq", column + 1, n["columns"])
        row = row + k.select(ends_row, one, zero)
        ends_image = k.compare("eq", row, n["rows"])
        fold.values = [
            image + k.select(ends_image, one, zero),
            k.select(ends_image, zero, row),
            k.select(ends_row, zero, column + 1),
        ]


class InputEmitter:
    """Emits Bᵀ x B. dtype: of x. pixel: elements between neighbouring pixels of x. zeros: memory for a row of zeros. square: for
    a tile.

    far: V is larger than near caches, so that the memory of the next block of channels is prefetched.
    n: x_image, x_block, x_row: elements between neighbours of each kind in x; x_blocks, x_height, x_width: of x. top, left:
    padding. v_point, v_block: elements between neighbouring points and blocks of V.
    """

    def __init__(
        self, k: Function, dtype: DType, unit: int, pixel: int, n: Numbers, zeros: Value, square: Value, *, far: bool
    ) -> None:
        self.k, self.unit, self.pixel, self.n, self.zeros, self.square, self.far = k, unit, pixel, n, zeros, square, far
        self.x = Floats(k, dtype)
        self.size, self.lanes, self.b = unit + 2, k.isa.lanes, transforms(unit)[0]

    def start(self) -> None:
        """Emit the row of zeros. It comes before all tiles of a call."""
        for column in range(self.size):
            self.k.store(self.k.zero(self.x.vector), self.x.offset(self.zeros, column * self.pixel))

    def tile(self, tile: Position, x: Value, v: Value) -> None:
        """Transform all channels of a tile. x: the first image. v: where the tile's first vector goes."""
        k, n, size = self.k, self.n, self.size
        top, left = tile.row * self.unit - n["top"], tile.column * self.unit - n["left"]
        at = self.x.offset(x, tile.image * n["x_image"] + top * n["x_row"] + left * self.pixel)
        inside = [k.compare("ge", top + i, 0) & (top + i < n["x_height"]) for i in range(size)]
        if held := _is_held(size):
            columns = [k.compare("ge", left + j, 0) & (left + j < n["x_width"]) for j in range(size)]
        else:
            bounds = self._clear_outside(left)
        with k.loop("channels", 0, n["x_blocks"]) as block:
            here, to = self.x.offset(at, block * n["x_block"]), k.offset(v, block * n["v_block"])
            rows = [k.select(inside[i], self.x.offset(here, n["x_row"] * i), self.zeros) for i in range(size)]
            if held:
                self._in_registers(rows, columns, to)
            else:
                self._in_memory(rows, bounds, to)

    def _in_registers(self, rows: Sequence[Value], inside: Sequence[Value], v: Value) -> None:
        """Transform one vector of channels. rows: addresses. inside: of each column, whether it lies inside the image."""
        k, size = self.k, self.size
        for row in rows:
            for column in range(size, size + self.unit):
                k.prefetch(self.x.offset(row, column * self.pixel))  # of the next tile
        square = []
        for column, known in enumerate(inside):
            places = [k.select(known, self.x.offset(row, column * self.pixel), self.zeros) for row in rows]
            square.append(linear(k, self.b, [self.x.load(place) for place in places]))
        for i in range(size):
            self._store_line(linear(k, self.b, [column[i] for column in square]), k.offset(v, self.n["v_point"] * (size * i)))

    def _clear_outside(self, left: Value) -> Bounds:
        """Zero the columns of the square that lie outside of the image. Returns the first one inside and one after the last."""
        k, zero, size = self.k, self.k.const(I64, 0), self.k.const(I64, self.size)
        begin = k.least(k.most(zero - left, zero), size)
        end = k.most(k.least(self.n["x_width"] - left, size), begin)
        for bounds in ((zero, begin), (end, size)):
            with k.loop("outside", *bounds) as column:
                for i in range(self.size):
                    k.store(k.zero(k.f32), self.square, (column * self.size + i) * self.lanes)
        return begin, end

    def _in_memory(self, rows: Sequence[Value], inside: Bounds, v: Value) -> None:
        """Transform one vector of channels. rows: addresses. inside: the columns that lie inside the image."""
        k, size = self.k, self.size
        with k.loop("column", *inside) as column:
            given = [self.x.load(self.x.offset(row, column * self.pixel)) for row in rows]
            for row in rows:
                k.prefetch(self.x.offset(row, (column + self.unit) * self.pixel))  # of the next tile
            for i, value in enumerate(linear(k, self.b, given)):
                k.store(value, self.square, (column * size + i) * self.lanes)
        with k.loop("line", 0, size) as line:
            given = [k.load(k.f32, self.square, (line + j * size) * self.lanes) for j in range(size)]
            self._store_line(linear(k, self.b, given), k.offset(v, line * (self.n["v_point"] * size)))

    def _store_line(self, values: Sequence[Value], v: Value) -> None:
        """Store a row of the square. v: where the row's first point goes."""
        for j, value in enumerate(values):
            at = self.k.offset(v, self.n["v_point"] * j)
            if self.far:
                self.k.prefetch(at, self.n["v_block"], write=True)
            self.k.store(value, at)


@record
class Spans:
    """How a group is cut into register tiles. whole: so many of all tiles; less: behind them, so many of one tile less.

    tiles: of the whole ones together. ahead: bytes of weights that they prefetch.
    """

    whole: Value
    less: Value
    tiles: Value
    ahead: Value


class ProductEmitter:
    """Emits V · U for register tiles of `pixels` tiles, or one less, × `vectors` vectors of outputs.

    n: inputs, x_blocks: channels of x, and blocks of them. v_block: elements between blocks of V. block_weights: elements of a
    block of weights of one point. ahead_tile, ahead_step: bytes of the next such block that a register tile prefetches, and
    each of its channels.
    """

    def __init__(self, k: Function, pixels: int, vectors: int, n: Numbers) -> None:
        self.k, self.pixels, self.vectors, self.n, self.lanes = k, pixels, vectors, n, k.isa.lanes

    def cut(self, tiles: Value) -> Spans:
        """Cut a group of so many tiles into register tiles.

        Some have one tile less, as many as make up the number best. What is over in the last one is computed from memory of any
        content, into memory of any content.
        """
        k, most = self.k, self.pixels
        spans = (tiles + (most - 1)) // most
        whole = k.most(tiles - spans * (most - 1), 0) if most > 1 else spans
        return Spans(whole, spans - whole, whole * most, whole * self.n["ahead_tile"])

    def point(self, spans: Spans, v: Value, w: Value, m: Value) -> None:
        """Emit one point of a group and one block of outputs. v, w, m: addresses of theirs."""
        k = self.k
        ahead = k.offset(w, self.n["block_weights"])
        self._spans(spans.whole, self.pixels, v, w, m, ahead)
        if self.pixels > 1:
            v, m = k.offset(v, spans.tiles * self.lanes), k.offset(m, spans.tiles * (self.vectors * self.lanes))
            self._spans(spans.less, self.pixels - 1, v, w, m, k.offset(ahead, spans.ahead, I8))

    def _spans(self, count: Value, pixels: int, v: Value, w: Value, m: Value, ahead: Value) -> None:
        """Emit so many register tiles of `pixels` tiles. v, m, ahead: of the first one."""
        k, n = self.k, self.n
        with k.loop("span", 0, count) as span:
            at = k.offset(v, span * (pixels * self.lanes))
            to = k.offset(m, span * (pixels * self.vectors * self.lanes))
            for number, value in enumerate(self._products(pixels, at, w, k.offset(ahead, span * n["ahead_tile"], I8))):
                k.store(value, to, number * self.lanes)

    def _products(self, pixels: int, v: Value, w: Value, ahead: Value) -> list[Value]:
        """Emit a register tile over all channels. ahead: weights to prefetch."""
        k, n = self.k, self.n
        starts = [k.zero(k.f32)] * (pixels * self.vectors)
        with k.fold("block", 0, n["x_blocks"], 1, [*starts, w, ahead], runs=True) as blocks:
            at = k.offset(v, blocks.index * n["v_block"])
            run = k.least(n["inputs"] - blocks.index * self.lanes, k.const(I64, self.lanes))
            with k.fold("channel", 0, run, 1, blocks.values, runs=True) as fold:
                x, apart = k.offset(at, fold.index), k.const(I64, self.lanes)
                fold.values = multiply_channel(k, (pixels, self.vectors), x, apart, fold.values, n["ahead_step"])
            blocks.values = fold.values
        return blocks.values[:-2]


class OutputEmitter:
    """Emits Aᵀ M A, the epilogue and the stores. results: for `unit` pixels × one vector. square: memory for a tile.

    n: rows, columns, y_height, y_width: of tiles in an image, and of pixels. outputs, vectors: channels of y, and vectors of
    them. block_vectors: of a block of M. m_point: elements between points of M. Others are `result_numbers`.
    """

    def __init__(
        self, k: Function, unit: int, results: Results, n: Numbers, pointers: Mapping[str, Value], square: Value
    ) -> None:
        self.k, self.unit, self.n, self.pointers, self.square = k, unit, n, pointers, square
        self.size, self.lanes, self.a = unit + 2, k.isa.lanes, transforms(unit)[2]
        self.bias, self.results = results.bias, ResultsEmitter(k, results, n, pointers[SCRATCH])

    def tile(self, tile: Position, block: Value, m: Value) -> None:
        """Write a tile in one block of channels. m: its first vector of point 0. The next tile of the block is prefetched."""
        k, n = self.k, self.n
        first = block * n["block_vectors"]
        with k.loop("vector", 0, k.least(n["block_vectors"], n["vectors"] - first)) as vector:
            here = k.offset(m, vector * self.lanes)
            if _is_held(self.size):
                self._in_registers(here)
            else:
                self._first_pass(here)
            self._write(tile, first + vector)

    def _write(self, tile: Position, vector: Value) -> None:
        """Finish the results of a tile, and write those that lie inside the image. vector: its number of all channels'."""
        k, n, most = self.k, self.n, self.k.const(I64, self.unit)
        row, column = tile.row * self.unit, tile.column * self.unit
        to = self.results.start(self.pointers, tile.image, None, vector)
        to = self.results.column(self.results.row(to, row), column)
        left, pixels = n["outputs"] - vector * self.lanes, k.least(n["y_width"] - column, most)
        bias = k.load(k.f32, self.pointers["b"], vector * self.lanes) if self.bias else None
        with k.loop("line", 0, k.least(n["y_height"] - row, most)) as line:
            values = self._line(line)
            if bias is not None:
                values = [value + bias for value in values]
            self.results.finish(values, self.results.row(to, line), pixels, left)

    def _line(self, line: Value) -> list[Value]:
        """Return the results of a row: what is in the square already, or the second pass over it."""
        k, held = self.k, _is_held(self.size)
        given = [k.load(k.f32, self.square, (line + j * self.unit) * self.lanes) for j in range(self.unit if held else self.size)]
        return given if held else linear(k, self.a, given)

    def _in_registers(self, m: Value) -> None:
        """Compute the results of one vector of channels, and write them to the square."""
        k, columns = self.k, [self._column(self.k.offset(m, self.n["m_point"] * j)) for j in range(self.size)]
        for i in range(self.unit):
            for j, value in enumerate(linear(k, self.a, [column[i] for column in columns])):
                k.store(value, self.square, (j * self.unit + i) * self.lanes)

    def _first_pass(self, m: Value) -> None:
        """Write each column of one vector of channels, transformed, to the square."""
        k = self.k
        with k.loop("column", 0, self.size) as column:
            for i, value in enumerate(self._column(k.offset(m, column * self.n["m_point"]))):
                k.store(value, self.square, (column * self.unit + i) * self.lanes)

    def _column(self, m: Value) -> list[Value]:
        """Read a column and transform it."""
        k, step = self.k, self.n["m_point"] * self.size
        places = [k.offset(m, step * i) for i in range(self.size)]
        for place in places:
            k.prefetch(place, self.n["block_vectors"] * self.lanes)
        return linear(k, self.a, [k.load(k.f32, place) for place in places])


def _is_held(size: int) -> bool:
    """Whether a square fits the registers."""
    return size**2 <= HELD_VECTORS


def row_elements(unit: int, pixel: int, lanes: int) -> int:
    """Return how many elements a tile's row of x spans, and so does `InputEmitter`'s row of zeros."""
    return (unit + 1) * pixel + lanes


def linear(k: Function, matrix: Array, values: Sequence[Value]) -> list[Value]:
    """matrix · values, with few instructions: rows, or columns, that differ in signs alone share what they have in common."""
    rows, columns = matrix.shape
    out: dict[int, Value] = {}
    for n in range(rows - 1):
        even, odd = (matrix[n] + matrix[n + 1]) / 2, (matrix[n] - matrix[n + 1]) / 2
        if n in out or not even.any() or not odd.any() or (even * odd).any():
            continue
        scale = float(odd[np.flatnonzero(odd)[-1]])
        left, right = combine(k, even, values), combine(k, odd / scale, values)
        out[n], out[n + 1] = combine(k, (1, scale), (left, right)), combine(k, (1, -scale), (left, right))
    if out:
        return [out[n] if n in out else combine(k, matrix[n], values) for n in range(rows)]
    terms, weights = list(values), matrix.copy()
    for n in range(columns - 1):
        a, b = matrix[:, n], matrix[:, n + 1]
        if (np.abs(a) == np.abs(b)).all() and (a == b).any() and (a != b).any():
            terms[n], terms[n + 1] = values[n] + values[n + 1], values[n] - values[n + 1]
            weights[:, n], weights[:, n + 1] = (a + b) / 2, (a - b) / 2
    return [combine(k, row, terms) for row in weights]


def combine(k: Function, weights: Sequence[float] | Array, values: Sequence[Value]) -> Value:
    """Emit the weighted sum of values, those of weight 1 first."""
    terms = [(float(weight), value) for weight, value in zip(weights, values, strict=True) if weight]
    (weight, value), *rest = sorted(terms, key=lambda term: term[0] != 1)
    total = value if weight == 1 else value * weight
    for weight, value in rest:
        total = total + value if weight == 1 else total - value if weight == -1 else k.fma(value, weight, total)
    return total
