"""The code of the three phases of a Winograd convolution. What they read of sizes are numbers, so one code serves every image.

Both transforms work in two passes over a square of vectors in scratch memory, which stays in L1: first each column, then each
row. A loop over columns and one over rows is a sixth of the code of F(4, 3) that has them side by side, and no slower, since so
many vectors do not fit the registers. What lies outside of the image is 0 and so are the columns made of it: columns outside are
zeroed once a tile and left out, rows outside are read from a row of zeros.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from kernels.native.emit.builder import Function, Value
from kernels.native.emit.product import multiply_channel
from kernels.native.emit.results import Channels, Numbers, Results, ResultsEmitter
from kernels.native.emit.types import I8, I64
from kernels.native.families.winograd import transforms
from kernels.spec import Array


@dataclass(frozen=True, slots=True)
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
    """Emits Bᵀ x B. x: how its channels lie. zeros: memory for a row of zeros. square: memory for a tile.

    n: x_image, x_block, x_row: elements between neighbours of each kind in x; x_blocks, x_height, x_width: of x. top, left:
    padding. v_point, v_block: elements between neighbouring points and blocks of V.
    """

    def __init__(self, k: Function, unit: int, x: Channels, n: Numbers, zeros: Value, square: Value) -> None:
        self.k, self.unit, self.n, self.zeros, self.square = k, unit, n, zeros, square
        self.size, self.lanes, self.b = unit + 2, k.isa.lanes, transforms(unit)[0]
        self.pixel = _pixel(x)

    def start(self) -> None:
        """Emit the row of zeros. It comes before all tiles of a call."""
        for column in range(self.size):
            self.k.store(self.k.zero(self.k.f32), self.zeros, column * self.pixel)

    def tile(self, tile: Position, x: Value, v: Value) -> None:
        """Transform all channels of a tile. x: the first image. v: where the tile's first vector goes."""
        k, n = self.k, self.n
        top, left = tile.row * self.unit - n["top"], tile.column * self.unit - n["left"]
        at = k.offset(x, tile.image * n["x_image"] + top * n["x_row"] + left * self.pixel)
        inside = [k.compare("ge", top + i, 0) & (top + i < n["x_height"]) for i in range(self.size)]
        zero, size = k.const(I64, 0), k.const(I64, self.size)
        begin = k.least(k.most(zero - left, zero), size)
        end = k.most(k.least(n["x_width"] - left, size), begin)
        for bounds in ((zero, begin), (end, size)):
            with k.loop("outside", *bounds) as column:
                for i in range(self.size):
                    k.store(k.zero(k.f32), self.square, (column * self.size + i) * self.lanes)
        with k.loop("channels", 0, n["x_blocks"]) as block:
            here = k.offset(at, block * n["x_block"])
            rows = [k.select(inside[i], k.offset(here, n["x_row"] * i), self.zeros) for i in range(self.size)]
            self._transform(rows, begin, end, k.offset(v, block * n["v_block"]))

    def _transform(self, rows: Sequence[Value], begin: Value, end: Value, v: Value) -> None:
        """Transform one vector of channels. rows: addresses. begin, end: the columns that lie inside the image."""
        k = self.k
        with k.loop("column", begin, end) as column:
            given = [k.load(k.f32, row, column * self.pixel) for row in rows]
            for i, value in enumerate(linear(k, self.b, given)):
                k.store(value, self.square, (column * self.size + i) * self.lanes)
        with k.loop("line", 0, self.size) as line:
            given = [k.load(k.f32, self.square, (line + j * self.size) * self.lanes) for j in range(self.size)]
            at = k.offset(v, line * (self.n["v_point"] * self.size))
            for j in range(self.size):
                k.prefetch(at, self.n["v_point"] * j + self.n["v_block"], write=True)
            for j, value in enumerate(linear(k, self.b, given)):
                k.store(value, at, self.n["v_point"] * j)


class ProductEmitter:
    """Emits V · U for register tiles of `pixels` tiles, or one less, × `vectors` vectors of outputs.

    n: inputs, x_blocks: channels of x, and blocks of them. v_block: elements between blocks of V. block_weights: elements of a
    block of weights of one point. ahead_tile, ahead_step: bytes of the next such block that a register tile prefetches, and
    each of its channels.
    """

    def __init__(self, k: Function, pixels: int, vectors: int, n: Numbers) -> None:
        self.k, self.pixels, self.vectors, self.n, self.lanes = k, pixels, vectors, n, k.isa.lanes

    def point(self, v: Value, w: Value, m: Value, tiles: Value) -> None:
        """Emit one point of a group of so many tiles and one block of outputs.

        Some register tiles have one tile less, as many of them as make up the number best. What is over in the last one is
        computed from memory of any content, into memory of any content.
        """
        k, most = self.k, self.pixels
        spans = (tiles + (most - 1)) // most
        if most == 1:
            self._spans(spans, most, v, w, m, self._ahead(w, k.const(I64, 0)))
            return
        whole = k.most(tiles - spans * (most - 1), 0)
        self._spans(whole, most, v, w, m, self._ahead(w, k.const(I64, 0)))
        done = whole * most
        v, m = k.offset(v, done * self.lanes), k.offset(m, done * (self.vectors * self.lanes))
        self._spans(spans - whole, most - 1, v, w, m, self._ahead(w, whole))

    def _ahead(self, w: Value, span: Value) -> Value:
        """Return the weights that a register tile prefetches: its share of the next block's."""
        return self.k.offset(self.k.offset(w, self.n["block_weights"]), span * self.n["ahead_tile"], I8)

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

    def __init__(self, k: Function, unit: int, results: Results, n: Numbers, pointers: Mapping[str, Value], square: Value) -> None:
        self.k, self.unit, self.n, self.pointers, self.square = k, unit, n, pointers, square
        self.size, self.lanes, self.a = unit + 2, k.isa.lanes, transforms(unit)[2]
        self.bias, self.results = results.bias, ResultsEmitter(k, results, n, pointers["scratch"])

    def tile(self, tile: Position, block: Value, m: Value) -> None:
        """Write a tile in one block of channels. m: its first vector of point 0."""
        k, n = self.k, self.n
        first = block * n["block_vectors"]
        with k.loop("vector", 0, k.least(n["block_vectors"], n["vectors"] - first)) as vector:
            self._vector(tile, first + vector, k.offset(m, vector * self.lanes))

    def _vector(self, tile: Position, vector: Value, m: Value) -> None:
        k, n = self.k, self.n
        step = n["m_point"] * self.size
        with k.loop("column", 0, self.size) as column:
            at = k.offset(m, column * n["m_point"])
            for i in range(self.size):
                k.prefetch(at, step * i + n["m_next"])
            for i, value in enumerate(linear(k, self.a, [k.load(k.f32, at, step * i) for i in range(self.size)])):
                k.store(value, self.square, (column * self.unit + i) * self.lanes)
        row, column = tile.row * self.unit, tile.column * self.unit
        to = self.results.start(self.pointers, tile.image, None, vector)
        to = self.results.column(self.results.row(to, row), column)
        left = n["outputs"] - vector * self.lanes
        most = k.const(I64, self.unit)
        pixels = k.least(n["y_width"] - column, most)
        bias = k.load(k.f32, self.pointers["b"], vector * self.lanes) if self.bias else None
        with k.loop("line", 0, k.least(n["y_height"] - row, most)) as line:
            given = [k.load(k.f32, self.square, (line + j * self.unit) * self.lanes) for j in range(self.size)]
            values = linear(k, self.a, given)
            if bias is not None:
                values = [value + bias for value in values]
            self.results.finish(values, self.results.row(to, line), pixels, left)


def _pixel(x: Channels) -> int:
    """Return the elements between neighbouring pixels of an image in blocks of channels."""
    assert x.pixel is not None
    return x.pixel


def row_elements(unit: int, x: Channels, lanes: int) -> int:
    """Return how many elements a tile's row of x spans, and so does `InputEmitter`'s row of zeros."""
    return (unit + 1) * _pixel(x) + lanes


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
