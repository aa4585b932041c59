"""Resizing of images: every row, and every pixel of a row, is a weighted sum of a few of the input's; lanes are channels.

    for each chunk = (image, block of rows, block of V channel vectors):
        for each row of the output:
            separable:  line[column] = Σ row weight · x[row of the tap, column]        once for every column of x, in scratch
            for each pixel along it, P at a time:
                separable:  y = epilogue(Σ column weight · line[column of the tap])
                direct:     y = epilogue(Σ row weight · Σ column weight · x[row of the tap, column of the tap])

Separable reads less where the output is wider than the input or there are many taps, direct where it is narrower, and where one
input row makes an output row. Rows and pixels that lie outside are filled with a number instead.

What an output reads lies in tables made for the layout: how far each tap is from the first row or column, and its weight. One
look-up serves V vectors, so nearest neighbours are copies whose speed is bound by their stores at every scale.

Packed table of a side: [output][tap] distance in elements as i64, then [output][tap] weight as fp32 where there are weights.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from kernels.native.emit.builder import Function, Value
from kernels.native.emit.epilogue import Epilogue, Places, Result, check_images, vector_at
from kernels.native.emit.geometry import Block, channel_blocks, even_rows, maybe
from kernels.native.emit.kernel import SCRATCH, NativeKernel, emitted, kernel_name
from kernels.native.emit.names import name_epilogue, name_layouts
from kernels.native.emit.product import unrolled
from kernels.native.emit.types import I64
from kernels.native.errors import EmitError
from kernels.native.memory.buffers import aligned
from kernels.native.memory.image import Image
from kernels.native.target.isa import Isa
from kernels.spec import Array

MOST_TAPS = 8  # looked up once and unrolled; more are a loop
MOST_LOADS = 64  # unrolled in the innermost loop
PIXELS = 4  # at a time at most
CHUNK_CYCLES = 8192  # about 2 µs
LINE_BYTES = 24 << 10  # of scratch that stays in L1 beside what is read and written

_Vectors = Callable[[Value], Sequence[Value]]  # the V vectors at a distance


@dataclass(frozen=True, slots=True)
class Side:
    """The resizing of one side. taps: inputs of every output. weighted: whether they have weights; one tap may have none.

    begin, end: the range of outputs that are computed; those before and after it are filled.
    """

    taps: int
    weighted: bool
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Resizing:
    """A resizing of an image. fill: the value of outputs that lie outside of the input."""

    x: Image
    y: Image
    rows: Side
    columns: Side
    fill: float = 0.0


@dataclass(frozen=True, slots=True)
class ResizeTile:
    """pixels × vectors: worked on at a time. rows: output rows of a chunk. separable: by way of a line of all input columns."""

    pixels: int
    vectors: int
    rows: int
    separable: bool

    def __str__(self) -> str:
        return f"{self.pixels}x{self.vectors}"


@functools.lru_cache(1024)
def resize_tiles(resizing: Resizing, isa: Isa, limit: int = 6) -> tuple[ResizeTile, ...]:
    """Return the tiles that a port model estimates to be fastest, the best first."""
    forms = (False, True) if resizing.rows.taps > 1 else (False,)
    most = -(-resizing.y.channels // isa.lanes)
    tiles = [
        make_resize_tile(resizing, isa, PIXELS, vectors, separable=separable)
        for separable in forms
        if separable or resizing.rows.taps <= MOST_TAPS
        for vectors in (4, 2, 1)
        if vectors <= most
    ]
    return tuple(sorted(tiles, key=lambda tile: _row_cycles(resizing, tile, isa))[:limit])


def make_resize_tile(resizing: Resizing, isa: Isa, pixels: int, vectors: int, *, separable: bool) -> ResizeTile:
    """Make a tile of these sizes; the rest follows by rule."""
    taps = min(resizing.columns.taps, MOST_TAPS) * (1 if separable else resizing.rows.taps)
    pixels = max(1, min(pixels, resizing.y.width, MOST_LOADS // (vectors * taps)))
    tile = ResizeTile(pixels, vectors, 1, separable)
    blocks = sum(block.count for block in channel_blocks(resizing.y.channels, vectors, isa.lanes))
    wanted = int(CHUNK_CYCLES * blocks / _row_cycles(resizing, tile, isa))
    return ResizeTile(pixels, vectors, even_rows(resizing.y.height, wanted), separable)


def _row_cycles(resizing: Resizing, tile: ResizeTile, isa: Isa) -> float:
    """Estimate the cycles of one output row of all channels: two loads, two multiply–adds and one store a cycle.

    Lines that do not stay in L1 take half as long again to store and load.
    """
    rows, columns, total = resizing.rows.taps, resizing.columns.taps, 0.0
    looks = columns * (1 + resizing.columns.weighted)
    for block in channel_blocks(resizing.y.channels, tile.vectors, isa.lanes):
        v, line = block.vectors, 0.0
        if tile.separable:
            spill = 1.5 if _line_bytes(resizing, tile, isa) > LINE_BYTES else 1.0
            line = spill * resizing.x.width * v * max(rows / 2, 1)
            pixel = spill * max((v * columns + looks) / 2, v)
        else:
            pixel = max((v * rows * columns + looks) / 2, v, v * rows * (columns + 1) / 2 if rows > 1 else 0)
        total += block.count * (line + resizing.y.width * (pixel + 1 / tile.pixels))
    return total


def _line_bytes(resizing: Resizing, tile: ResizeTile, isa: Isa) -> int:
    return 4 * resizing.x.width * tile.vectors * isa.lanes if tile.separable else 0


def pack_rows(resizing: Resizing, index: Array, weights: Array | None) -> Array:
    """Pack the table of the rows. index, weights: (outputs, taps)."""
    return _pack(index * resizing.x.y_stride, weights)


def pack_columns(resizing: Resizing, tile: ResizeTile, isa: Isa, index: Array, weights: Array | None) -> Array:
    """Pack the table of the columns. index, weights: (outputs, taps)."""
    return _pack(index * (tile.vectors * isa.lanes if tile.separable else resizing.x.x_stride), weights)


def _pack(distances: Array, weights: Array | None) -> Array:
    parts = [distances.astype(np.int64).ravel().view(np.uint8)]
    if weights is not None:
        parts.append(weights.astype(np.float32).ravel().view(np.uint8))
    joined = np.concatenate(parts)
    memory = aligned(joined.nbytes)
    memory[:] = joined
    return memory


def emit_resize(resizing: Resizing, tile: ResizeTile, epilogue: Epilogue[Image], isa: Isa) -> NativeKernel:
    """Emit the kernel. Its arguments are "x", "rows" and "columns" (the packed tables), those of the epilogue, "y" and "scratch".

    Raises EmitError for images whose channels do not come in vectors, and for a bias.
    """
    _check(resizing, tile, epilogue, isa)
    form = "separable" if tile.separable else "direct"
    taps = f"{resizing.rows.taps}x{resizing.columns.taps}"
    words = (form, name_layouts(resizing.x, resizing.y), taps, *name_epilogue(epilogue))
    name = kernel_name(f"f32_resize_{tile.pixels}x{tile.vectors * isa.lanes}", (resizing, tile, epilogue), isa, words)
    emitter = _ResizeEmitter(resizing, tile, epilogue, isa)

    def body(k: Function, values: list[Value]) -> None:
        x, rows, columns, *operands, y, line, begin, end = values
        emitter.emit(k, x, rows, columns, line, Places.of(resizing.y, epilogue, y, operands), begin, end)

    arguments = ("x", "rows", "columns", *epilogue.arguments, "y", SCRATCH)
    return emitted(isa, name, arguments, emitter.chunks, body, _line_bytes(resizing, tile, isa))


def _check(resizing: Resizing, tile: ResizeTile, epilogue: Epilogue[Image], isa: Isa) -> None:
    x, y = resizing.x, resizing.y
    if (x.channels, x.batch) != (y.channels, y.batch):
        raise EmitError(f"resize: x has {x.batch}×{x.channels} channels and y {y.batch}×{y.channels}, need as many")
    if epilogue.bias:
        raise EmitError("resize: the epilogue has a bias, resizing takes none")
    if not tile.separable and resizing.rows.taps > MOST_TAPS:
        raise EmitError(f"resize: a row has {resizing.rows.taps} taps, {MOST_TAPS} at most go without a line")
    for side, what in ((resizing.rows, "rows"), (resizing.columns, "columns")):
        if side.taps < 1 or (side.taps > 1 and not side.weighted):
            raise EmitError(f"resize: {what} have {side.taps} taps, need one, or weights")
    for image, what in ((x, "x"), (y, "y")):
        whole = image.block % isa.lanes == 0 and tile.vectors % max(image.block // isa.lanes, 1) == 0
        if not (image.contiguous_channels or whole):
            raise EmitError(f"resize: {what} has blocks of {image.block} channels, a tile takes {tile.vectors} of {isa.lanes}")
    check_images(epilogue, isa.lanes)


class _ResizeEmitter:
    """Emits one resizing; the methods are the loops of the module docstring, from the outside in."""

    def __init__(self, resizing: Resizing, tile: ResizeTile, epilogue: Epilogue[Image], isa: Isa) -> None:
        self.resizing, self.tile, self.epilogue, self.lanes = resizing, tile, epilogue, isa.lanes
        self.blocks = channel_blocks(resizing.y.channels, tile.vectors, isa.lanes)
        self.block_count = sum(block.count for block in self.blocks)
        self.row_chunks = -(-resizing.y.height // tile.rows)
        self.chunks = resizing.y.batch * self.row_chunks * self.block_count

    def emit(
        self, k: Function, x: Value, rows: Value, columns: Value, line: Value, places: Places, begin: Value, end: Value
    ) -> None:
        """Emit the loop over the chunks of a call. line: address of scratch memory for one line."""
        height, tile = self.resizing.y.height, self.tile
        with k.loop("chunk", begin, end) as chunk:
            number, slow = chunk % self.block_count, chunk // self.block_count
            first, image = slow % self.row_chunks * tile.rows, slow // self.row_chunks
            stop = first + tile.rows
            if height % tile.rows:
                stop = k.select(stop < height, stop, k.const(I64, height))
            at = k.offset(x, self._start(self.resizing.x, image, number))
            to = places.move(k, lambda layout: self._start(layout, image, number))
            for block in self.blocks:
                with maybe(k, block.chosen_by(number, self.blocks)), k.loop("row", first, stop) as row:
                    self._row(k, block, row, at, rows, columns, line, to.move(k, lambda layout: row * layout.y_stride))

    def _start(self, layout: Image, image: Value, number: Value) -> Value:
        """Return the offset of a block of channels in an image, in elements."""
        return image * layout.n_stride + number * layout.offset(self.tile.vectors * self.lanes)

    def _row(self, k: Function, block: Block, row: Value, x: Value, rows: Value, columns: Value, line: Value, to: Places) -> None:
        """One row: made of input rows, or filled where it lies outside."""
        side, height = self.resizing.rows, self.resizing.y.height
        if (side.begin, side.end) == (0, height):
            self._made(k, block, row, x, rows, columns, line, to)
            return
        inside = (row >= side.begin) & (row < side.end)
        with k.when(inside, "inside"):
            self._made(k, block, row, x, rows, columns, line, to)
        with k.when(inside ^ 1, "outside"):
            self._filled(k, block, 0, self.resizing.y.width, to)

    def _made(
        self, k: Function, block: Block, row: Value, x: Value, rows: Value, columns: Value, line: Value, to: Places
    ) -> None:
        """A row that lies inside: of its pixels those that do are sums, the others filled."""
        resizing = self.resizing
        by_row, side = _Sum(k, resizing.rows, rows, resizing.y.height, row), resizing.columns
        if self.tile.separable:
            self._line(k, block, by_row, x, line)
        self._filled(k, block, 0, side.begin, to)
        self._pixels(k, block, by_row, columns, line if self.tile.separable else x, to)
        self._filled(k, block, side.end, resizing.y.width, to)

    def _line(self, k: Function, block: Block, by_row: _Sum, x: Value, line: Value) -> None:
        """Every input column's sum over rows."""
        step = self.tile.vectors * self.lanes

        def body(column: Value, turns: int, _: list[Value]) -> list[Value]:
            at, to = k.offset(x, column * self.resizing.x.x_stride), k.offset(line, column * step)
            for n in range(turns):
                for v, value in enumerate(self._summed(k, block, by_row, k.offset(at, n * self.resizing.x.x_stride))):
                    k.store(value, to, n * step + v * self.lanes)
            return []

        unrolled(k, "line", self.resizing.x.width, PIXELS, [], body)

    def _summed(self, k: Function, block: Block, by_row: _Sum, at: Value) -> list[Value]:
        """The sums of one input column. at: where it is in the first row."""
        return by_row.over(lambda distance: self._vectors(k, block, k.offset(at, distance)))

    def _pixels(self, k: Function, block: Block, by_row: _Sum, columns: Value, source: Value, to: Places) -> None:
        """The pixels that lie inside."""
        resizing, side = self.resizing, self.resizing.columns
        if side.begin == side.end:
            return

        def body(index: Value, turns: int, _: list[Value]) -> list[Value]:
            for n in range(turns):
                column = index + (side.begin + n)
                values = self._pixel(k, block, by_row, _Sum(k, side, columns, resizing.y.width, column), source)
                self._store(k, block, column, values, to)
            return []

        unrolled(k, "pixel", side.end - side.begin, self.tile.pixels, [], body)

    def _pixel(self, k: Function, block: Block, by_row: _Sum, by_column: _Sum, source: Value) -> list[Value]:
        """The sums of one pixel. source: the line, or x."""
        if self.tile.separable:
            return by_column.over(lambda distance: self._line_vectors(k, block, k.offset(source, distance)))

        def row(distance: Value) -> list[Value]:
            at = k.offset(source, distance)
            return by_column.over(lambda farther: self._vectors(k, block, k.offset(at, farther)))

        return by_row.over(row)

    def _filled(self, k: Function, block: Block, first: int, last: int, to: Places) -> None:
        """Pixels that lie outside."""
        if first == last:
            return
        with k.loop("fill", first, last) as column:
            self._store(k, block, column, [k.const(k.f32, self.resizing.fill)] * block.vectors, to)

    def _store(self, k: Function, block: Block, column: Value, values: Sequence[Value], to: Places) -> None:
        """Finish and write a pixel. to: the row."""
        to = to.move(k, lambda layout: column * layout.x_stride)
        results = []
        for v, value in enumerate(values):
            lanes = self._lanes(block, v, self.resizing.y)
            results.append(Result(value, vector_at(0, v * self.lanes), lanes, lanes))
        to.store(k, self.epilogue, results)

    def _vectors(self, k: Function, block: Block, at: Value) -> list[Value]:
        """The vectors of a pixel of x."""
        x = self.resizing.x
        return [k.load_part(k.f32, at, self._lanes(block, v, x), x.offset(v * self.lanes)) for v in range(block.vectors)]

    def _line_vectors(self, k: Function, block: Block, at: Value) -> list[Value]:
        """The vectors of a column of the line."""
        return [k.load(k.f32, at, v * self.lanes) for v in range(block.vectors)]

    def _lanes(self, block: Block, v: int, image: Image) -> int:
        """Return how many lanes of vector v exist in memory."""
        return block.tail if v == block.vectors - 1 and image.contiguous_channels else self.lanes


class _Sum:
    """The weighted sum that one output of a side is; where it has few taps they are looked up when this is made."""

    def __init__(self, k: Function, side: Side, table: Value, outputs: int, number: Value) -> None:
        self.k, self.side = k, side
        self.first = number * side.taps
        self.table, self.weights = table, k.offset(table, outputs * side.taps, I64)
        self.known = [self._tap(k.const(I64, n)) for n in range(side.taps)] if side.taps <= MOST_TAPS else []

    def _tap(self, tap: Value) -> tuple[Value, Value | None]:
        """The distance of a tap, and its weight in every lane."""
        at = self.first + tap
        weight = self.k.broadcast(self.k.f32, self.weights, at) if self.side.weighted else None
        return self.k.load(I64, self.table, at), weight

    def over(self, vectors: _Vectors) -> list[Value]:
        """Emit the weighted sums of the elements at the distances of the taps."""
        first = self._add(None, self.known[0] if self.known else self._tap(self.k.const(I64, 0)), vectors)
        if self.known:
            return functools.reduce(lambda sums, tap: self._add(sums, tap, vectors), self.known[1:], first)

        def body(index: Value, turns: int, sums: list[Value]) -> list[Value]:
            for n in range(turns):
                sums = self._add(sums, self._tap(index + (n + 1)), vectors)
            return sums

        return unrolled(self.k, "tap", self.side.taps - 1, PIXELS, first, body)

    def _add(self, sums: list[Value] | None, tap: tuple[Value, Value | None], vectors: _Vectors) -> list[Value]:
        distance, weight = tap
        taken = list(vectors(distance))
        if weight is None:
            return taken
        if sums is None:
            return [value * weight for value in taken]
        return [self.k.fma(value, weight, total) for value, total in zip(taken, sums, strict=True)]
