"""Direct convolution and matrix product: one register tile of pixels × channel vectors, everything else is its addresses.

    for each chunk = (image, group, block of output channels, block of rows):
        for each row of the output:
            for each tile of P pixels:                             the borders are tiles of their own, peeled
                acc[P][V] = bias
                for each kernel row that lies inside the image, for each kernel column:
                    for each block of input channels, for a few channels at once:       unrolled
                        acc[p][v] += x[pixel p, channel] · w[channel, vector v]
                y = epilogue(acc)

A 1×1 convolution without stride and a matrix product are the case of one long row. The input is read one channel at a time
and broadcast, so it may lie in any layout, NCHW included; the output is written in vectors of channels.

Kernel columns are a loop, and at the border, where each has pixels of its own, their addresses are hidden from LLVM: it would
keep what neighbouring columns both read, and spill.

Packed weights: [group][block of V vectors][kernel row][kernel column][input channel][V·lanes], read from end to end.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from kernels.native.emit.builder import Function, Value
from kernels.native.emit.epilogue import Epilogue, Places, Result, check_images, vector_at
from kernels.native.emit.geometry import Block, Conv, Span, aligned_copy, channel_blocks, column_spans, kernel_rows, maybe
from kernels.native.emit.kernel import NativeKernel, emitted, kernel_name
from kernels.native.emit.names import name_epilogue, name_layouts, name_window
from kernels.native.emit.product import BODY_FMAS, LINE_ELEMENTS, MOST_PIXELS, most_rows, step_cycles
from kernels.native.emit.types import I64
from kernels.native.errors import EmitError
from kernels.native.memory.buffers import aligned
from kernels.native.memory.image import Image
from kernels.native.target.isa import Isa
from kernels.spec import Array

CHUNK_MACS = (256 << 10, 2 << 20)  # least and most of one chunk: 2 to 15 µs, against about 0.1 µs to take one
CHUNKS = 32  # wanted at least: the last one to finish then costs a few percent on a few cores
FEW_REGISTERS = 16
TIGHT = 1.06  # of a tile that leaves none of them for weights loaded early: 6×2 and 4×3 on AVX2 against 5×2, on Zen 3
SPLIT_LINES = 1.03  # of a tile that ends within a cache line of x, which the next one reads again: 5×2 against 4×2, on Zen 3
MIN_TILES_AHEAD = 3  # of a block, for weights to be asked for ahead: with fewer, memory is busy enough
WEIGHTS_INNER_BYTES = 1 << 20  # weights up to this are walked innermost, so that the pixels of a chunk stay where they are near
CHUNK_BYTES = 128 << 10  # of x that a chunk of such a product reads, at most: a quarter of L2


@dataclass(frozen=True, slots=True)
class ConvTile:
    """The sizes by which a convolution is cut into chunks and register tiles.

    pixels × vectors: accumulators. channels: input channels unrolled. rows: output rows of a chunk.
    row_pixels: where a long row is cut into rows of its own (a product's), else 0.
    weights_inner: consecutive chunks walk the channel blocks of the same rows, else the rows of the same channel block.
    """

    pixels: int
    vectors: int
    channels: int
    rows: int
    row_pixels: int
    weights_inner: bool

    def __str__(self) -> str:
        return f"{self.pixels}x{self.vectors}"


def pack_weights(conv: Conv, tile: ConvTile, isa: Isa, weights: Array, done: Callable[[Array], None] = lambda _: None) -> Array:
    """Pack weights (outputs, inputs of a group, kernel rows, columns) in the order in which the kernel reads them; tails are 0.

    done: called with each part of the weights that is not read any more.
    """
    lanes, taps = isa.lanes, weights[0].size
    vectors = conv.output_vectors(lanes)
    memory, at = aligned(4 * conv.groups * vectors * lanes * taps).view(np.float32), 0  # zeroed; written in place, block by block
    for group in np.split(weights, conv.groups):
        for block in channel_blocks(conv.group_outputs, tile.vectors, lanes):
            size = block.vectors * lanes
            start = block.first * tile.vectors * lanes
            for number in range(block.count):
                rows = group[start + number * size : start + (number + 1) * size]
                place = memory[at : at + size * taps].reshape(*weights.shape[2:], weights.shape[1], size)
                place[..., : len(rows)] = rows.transpose(2, 3, 1, 0)
                done(rows)
                at += size * taps
    return memory


def pack_bias(conv: Conv, isa: Isa, bias: Array) -> Array:
    """Pack a bias (outputs,): each group is padded to whole vectors with 0."""
    size = conv.output_vectors(isa.lanes) * isa.lanes
    padded = np.zeros((conv.groups, size), np.float32)
    padded[:, : conv.group_outputs] = bias.reshape(conv.groups, -1)
    return aligned_copy(padded.ravel())


@functools.lru_cache(1024)
def conv_tiles(conv: Conv, isa: Isa, limit: int = 6) -> tuple[ConvTile, ...]:
    """Return tiles, the fastest by a port model first: the one to use without a measurement, then others worth measuring."""
    flat = conv.flat()
    spread = conv.x.block == 1 < conv.group_inputs  # channels are planes: LLVM loads the weights of the next one early
    scored = []
    for vectors in range(1, 7):
        most = min(most_rows(vectors, isa, 2 if spread else 1), MOST_PIXELS, flat.y.width)
        for pixels in range(1, most + 1):
            tight = isa.vector_registers == FEW_REGISTERS and pixels > most_rows(vectors, isa, 2)
            splits = conv.x.block == isa.lanes and pixels * isa.lanes % LINE_ELEMENTS
            cycles = _estimate(flat, pixels, vectors, isa) * (TIGHT if tight else 1) * (SPLIT_LINES if splits else 1)
            scored.append((cycles, -pixels * vectors, pixels, vectors))
    return tuple(make_tile(conv, isa, pixels, vectors) for _, _, pixels, vectors in sorted(scored)[:limit])


def _estimate(conv: Conv, pixels: int, vectors: int, isa: Isa) -> float:
    """Estimate the cycles for one output row per input channel and tap."""
    total = 0.0
    for block in channel_blocks(conv.group_outputs, vectors, isa.lanes):
        for count, p in ((conv.y.width // pixels, pixels), (1, conv.y.width % pixels)):
            total += block.count * count * step_cycles(p, block.vectors) if p else 0
    return total


def conv_cycles(conv: Conv, tile: ConvTile, isa: Isa) -> float:
    """Estimate the cycles of one core for the whole convolution, by the port model."""
    flat = conv.flat()
    rows = flat.y.batch * flat.groups * flat.y.height * flat.kernel[0] * flat.kernel[1] * flat.group_inputs
    return rows * _estimate(flat, tile.pixels, tile.vectors, isa)


def conv_chunks(conv: Conv, tile: ConvTile, isa: Isa) -> int:
    """Return the number of chunks that threads share."""
    return _ConvEmitter(conv.flat(), tile, Epilogue(), isa).chunks


def make_tile(conv: Conv, isa: Isa, pixels: int, vectors: int) -> ConvTile:
    """Make a tile of these sizes; the rest follows by rule."""
    run = conv.group_inputs if conv.x.contiguous_channels else conv.x.block
    most = max(1, min(16, conv.group_inputs, BODY_FMAS // (pixels * vectors)))
    channels = max(c for c in range(1, most + 1) if c % run == 0 or run % c == 0 or c == conv.group_inputs)
    flat = conv.flat()
    row_macs = flat.y.width * min(vectors * isa.lanes, conv.group_outputs) * conv.macs // (
        conv.y.batch * conv.y.height * conv.y.width * conv.y.channels
    )  # fmt: skip
    chunk_macs = min(max(conv.macs // CHUNKS, CHUNK_MACS[0]), CHUNK_MACS[1])
    rows, row_pixels = max(1, min(flat.y.height, chunk_macs // max(row_macs, 1))), 0
    weights_inner = 4 * conv.y.channels * conv.group_inputs * conv.kernel[0] * conv.kernel[1] <= WEIGHTS_INNER_BYTES
    if conv.is_product and flat.y.height == 1:
        wanted = chunk_macs * flat.y.width // max(row_macs, 1)
        if weights_inner:
            wanted = min(wanted, CHUNK_BYTES // (4 * conv.group_inputs))
        wanted = max(1, wanted // pixels) * pixels
        row_pixels = wanted if wanted < flat.y.width else 0
    return ConvTile(pixels, vectors, channels, rows, row_pixels, weights_inner)


def emit_conv(conv: Conv, tile: ConvTile, epilogue: Epilogue[Image], isa: Isa) -> NativeKernel:
    """Emit the kernel. Its arguments are "x", "w" (`pack_weights`), "b" (`pack_bias`), those of the epilogue, and "y".

    Raises EmitError for layouts it cannot address.
    """
    _check(conv, tile, epilogue, isa)
    flat = conv.flat()
    if flat is not conv:
        epilogue = epilogue.laid(Image.flat)
    kind = "gemm" if flat.y.height == 1 and conv.is_product else "conv2d"
    stem = f"f32_{kind}_{tile.pixels}x{tile.vectors * isa.lanes}"
    window = () if kind == "gemm" else (name_window(conv),)
    name = kernel_name(stem, (flat, tile, epilogue), isa, (name_layouts(conv.x, conv.y), *window, *name_epilogue(epilogue)))
    emitter = _ConvEmitter(flat, tile, epilogue, isa)

    def body(k: Function, values: list[Value]) -> None:
        x, w, b, *operands, y, begin, end = values
        emitter.emit(k, x, w, b, Places.of(flat.y, epilogue, y, operands), begin, end)

    return emitted(isa, name, ("x", "w", "b", *epilogue.arguments, "y"), emitter.chunks, body)


def _check(conv: Conv, tile: ConvTile, epilogue: Epilogue[Image], isa: Isa) -> None:
    check_images(epilogue, isa.lanes)
    per_block = conv.y.block // isa.lanes
    vectors_fit = conv.y.contiguous_channels or (conv.y.block % isa.lanes == 0 and tile.vectors % per_block == 0)
    if not vectors_fit:
        raise EmitError(f"conv: y has blocks of {conv.y.block} channels, a tile writes {tile.vectors} vectors of {isa.lanes}")
    operands = [(image, conv.group_outputs, f"operand {n}") for n, image in enumerate(epilogue.operands)]
    for image, size, what in ((conv.x, conv.group_inputs, "x"), (conv.y, conv.group_outputs, "y"), *operands):
        if conv.groups > 1 and not image.contiguous_channels and size % image.block:
            raise EmitError(f"conv: {what} has blocks of {image.block} channels, groups of {size} begin inside them")
    if conv.x.channels % conv.groups or conv.y.channels % conv.groups:
        raise EmitError(f"conv: {conv.x.channels} and {conv.y.channels} channels do not make {conv.groups} groups")


class _ConvEmitter:
    """Emits one convolution; the methods are the loops of the module docstring, from the outside in."""

    def __init__(self, conv: Conv, tile: ConvTile, epilogue: Epilogue[Image], isa: Isa) -> None:
        self.conv, self.tile, self.epilogue, self.isa = conv, tile, epilogue, isa
        self.lanes = isa.lanes
        self.blocks = channel_blocks(conv.group_outputs, tile.vectors, isa.lanes)
        self.block_count = sum(block.count for block in self.blocks)
        self.row_width = tile.row_pixels or conv.y.width
        self.row_count = -(-conv.y.width // self.row_width) if tile.row_pixels else conv.y.height
        self.row_chunks = -(-self.row_count // tile.rows)
        self.taps = conv.kernel[0] * conv.kernel[1] * conv.group_inputs
        self.chunks = conv.y.batch * conv.groups * self.block_count * self.row_chunks
        self.ahead = self._lines_ahead()

    def _lines_ahead(self) -> int:
        """Cache lines of the next block's weights that each turn of the innermost loop prefetches.

        All tiles of a block together prefetch the next block. 0 where a block has few tiles: then memory is the limit anyway.
        """
        conv, tile = self.conv, self.tile
        tiles = conv.y.height * -(-conv.y.width // tile.pixels)
        if self.block_count == 1 or tiles < MIN_TILES_AHEAD:
            return 0
        return -(-tile.channels * tile.vectors // tiles)

    def emit(self, k: Function, x: Value, w: Value, b: Value, places: Places, begin: Value, end: Value) -> None:
        """Emit the loop over the chunks of a call."""
        conv, tile = self.conv, self.tile
        vectors_per_group = conv.output_vectors(self.lanes)
        with k.loop("chunk", begin, end) as chunk:
            inner = self.block_count if tile.weights_inner else self.row_chunks
            slow, fast = chunk // inner, chunk % inner
            image_group = slow // (self.row_chunks if tile.weights_inner else self.block_count)
            middle = slow % (self.row_chunks if tile.weights_inner else self.block_count)
            number, row_chunk = (fast, middle) if tile.weights_inner else (middle, fast)
            image, group = image_group // conv.groups, image_group % conv.groups
            at = k.offset(x, image * conv.x.n_stride + group * conv.x.offset(conv.group_inputs))
            weights = k.offset(w, (group * vectors_per_group + number * tile.vectors) * (self.lanes * self.taps))
            bias = k.offset(b, (group * vectors_per_group + number * tile.vectors) * self.lanes)
            to = places.move(k, lambda layout: self._start(layout, image, group, number))
            first = row_chunk * tile.rows
            for block in self.blocks:
                with maybe(k, block.chosen_by(number, self.blocks)):
                    self._rows(k, block, first, at, weights, bias, to)

    def _start(self, layout: Image, n: Value, group: Value, number: Value) -> Value:
        """Return the offset of block `number` of a group in an image, in elements."""
        per_block = self.tile.vectors * self.lanes
        step = per_block if layout.contiguous_channels else per_block // layout.block * layout.block_stride
        return n * layout.n_stride + group * layout.offset(self.conv.group_outputs) + number * step

    def _rows(self, k: Function, block: Block, first: Value, x: Value, w: Value, b: Value, to: Places) -> None:
        """The rows of a chunk; the last chunk may have fewer, and the last row of a cut product fewer pixels."""
        tile, whole = self.tile, self.conv.y.width % self.row_width == 0
        stop = first + tile.rows
        if self.row_count % tile.rows:
            stop = k.select(stop < self.row_count, stop, k.const(I64, self.row_count))
        if self.row_count == 1:
            self._row(k, block, self.row_width, k.const(I64, 0), x, w, b, to)
            return
        with k.loop("row", first, stop) as row:
            if not tile.row_pixels or whole:
                self._row(k, block, self.row_width, row, x, w, b, to)
                return
            last = self.row_count - 1
            with k.when(row < last):
                self._row(k, block, self.row_width, row, x, w, b, to)
            with k.when(k.compare("eq", row, last)):
                self._row(k, block, self.conv.y.width % self.row_width, row, x, w, b, to)

    def _row(self, k: Function, block: Block, width: int, row: Value, x: Value, w: Value, b: Value, to: Places) -> None:
        """Emit the tiles along one row."""
        conv, cut = self.conv, self.tile.row_pixels
        to = to.move(k, lambda image: row * (cut * image.x_stride if cut else image.y_stride))
        tiles = row * -(-(cut or conv.y.width) // self.tile.pixels)  # before this row
        if cut:
            x, row = k.offset(x, row * (cut * conv.x.x_stride)), k.const(I64, 0)
        for span in column_spans(conv, width, self.tile.pixels):
            with k.loop("tile", 0, span.count) as number:
                column = number * span.pixels + span.first
                self._tile(k, block, span, column, row, x, w, b, to, tiles + column // self.tile.pixels)

    def _tile(
        self, k: Function, block: Block, span: Span, column: Value, row: Value, x: Value, w: Value, b: Value, to: Places,
        number: Value,
    ) -> None:  # fmt: skip
        """One register tile, of that number among all of its block: accumulate, finish, store."""
        conv, vector = self.conv, k.f32
        zero = k.zero(vector)
        starts = [k.load(vector, b, v * self.lanes) if self.epilogue.bias else zero for v in range(block.vectors)]
        x = k.offset(x, (column * conv.strides[1] - conv.left) * conv.x.x_stride)
        low, high = kernel_rows(k, conv, row)
        with k.fold("kr", low, high, 1, [*starts * span.pixels, *self._first_ahead(k, block, w, number)]) as fold:
            image_row = row * conv.strides[0] - conv.top + fold.index * conv.dilations[0]
            at = k.offset(x, image_row * conv.x.y_stride)
            weights = k.offset(w, fold.index * (self.taps // conv.kernel[0] * block.vectors * self.lanes))
            fold.values = self._columns(k, block, span, at, weights, fold.values)
        to = to.move(k, lambda image: column * image.x_stride)
        results = []
        for p in range(span.pixels):
            for v in range(block.vectors):
                lanes = block.tail if v == block.vectors - 1 else self.lanes
                stored = lanes if conv.y.contiguous_channels else self.lanes
                results.append(Result(fold.values[p * block.vectors + v], vector_at(p, v * self.lanes), lanes, stored))
        to.store(k, self.epilogue, results)

    def _first_ahead(self, k: Function, block: Block, w: Value, number: Value) -> list[Value]:
        """Return the address from which a tile prefetches the next block's weights, in a list; empty where it does not."""
        if not self.ahead:
            return []
        per_tile = self.ahead * LINE_ELEMENTS * -(-self.taps // self.tile.channels)
        return [k.offset(w, number * per_tile + block.vectors * self.lanes * self.taps)]

    def _columns(self, k: Function, block: Block, span: Span, x: Value, w: Value, values: list[Value]) -> list[Value]:
        """All kernel columns of one kernel row; at the border each with the pixels for which it lies inside the image."""
        conv, everyone = self.conv, tuple(range(span.pixels))
        x_step, w_step = conv.dilations[1] * conv.x.x_stride, conv.group_inputs * block.vectors * self.lanes
        if span.whole:
            with k.fold("kc", 0, conv.kernel[1], 1, values) as fold:
                at, weights = k.offset(x, fold.index * x_step), k.offset(w, fold.index * w_step)
                fold.values = self._channels(k, block, everyone, at, weights, fold.values)
            return fold.values
        inside = [conv.columns_inside(span.first + p) for p in everyone]
        for column in range(conv.kernel[1]):
            if pixels := tuple(p for p in everyone if column in inside[p]):
                at, weights = k.opaque(k.offset(x, column * x_step)), k.offset(w, column * w_step)
                values = self._channels(k, block, pixels, at, weights, values)
        return values

    def _channels(
        self, k: Function, block: Block, pixels: tuple[int, ...], x: Value, w: Value, values: list[Value]
    ) -> list[Value]:
        """Emit the loop over all input channels of one kernel tap."""
        image, count, step = self.conv.x, self.conv.group_inputs, self.tile.channels
        run = count if image.contiguous_channels else min(image.block, count)
        if step >= run:  # a turn takes several blocks, or all there is
            return self._turns(k, block, pixels, count, image.offset(step), x, w, values)
        per_channel = block.vectors * self.lanes
        with k.fold("run", 0, count // run, 1, values) as fold:
            at, weights = k.offset(x, fold.index * image.block_stride), k.offset(w, fold.index * (run * per_channel))
            fold.values = self._turns(k, block, pixels, run, step, at, weights, fold.values)
        values = fold.values
        if rest := count % run:
            at, weights = k.offset(x, image.offset(count - rest)), k.offset(w, (count - rest) * per_channel)
            values = self._turns(k, block, pixels, rest, step, at, weights, values)
        return values

    def _turns(
        self,
        k: Function,
        block: Block,
        pixels: tuple[int, ...],
        count: int,
        x_step: int,
        x: Value,
        w: Value,
        values: list[Value],
    ) -> list[Value]:
        """`count` input channels, a turn's worth at once; x_step: elements from one turn to the next."""
        step, per_channel = self.tile.channels, block.vectors * self.lanes
        turns, rest = divmod(count, step)
        if turns:
            with k.fold("c", 0, turns, 1, values) as fold:
                at, weights = k.offset(x, fold.index * x_step), k.offset(w, fold.index * (step * per_channel))
                fold.values = self._unrolled(k, block, pixels, step, at, weights, fold.values)
            values = fold.values
        if rest:
            at, weights = k.offset(x, turns * x_step), k.offset(w, turns * step * per_channel)
            values = self._unrolled(k, block, pixels, rest, at, weights, values)
        return values

    def _unrolled(
        self, k: Function, block: Block, pixels: tuple[int, ...], channels: int, x: Value, w: Value, values: list[Value]
    ) -> list[Value]:
        """Emit the multiply–adds of a turn."""
        conv, vectors = self.conv, block.vectors
        values, pixel_step = list(values), conv.strides[1] * conv.x.x_stride
        ahead = set(range(0, channels, max(channels // self.ahead, 1))) if self.ahead else set()
        for c in range(channels):
            if c in ahead:
                k.prefetch(values[-1])
                values[-1] = k.offset(values[-1], LINE_ELEMENTS)
            weights = [k.load(k.f32, w, (c * vectors + v) * self.lanes) for v in range(vectors)]
            for p in pixels:
                scalar = k.broadcast(k.f32, x, p * pixel_step + conv.x.offset(c))
                for v in range(vectors):
                    values[p * vectors + v] = k.fma(scalar, weights[v], values[p * vectors + v])
        return values
