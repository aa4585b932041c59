"""Depthwise convolution: lanes are channels, and every input vector that is loaded meets all the taps that want it.

    for each chunk = (image, block of V channel vectors, block of rows):
        for each row of the output, for each tile of P pixels along it:        the borders are tiles of their own, peeled
            acc[P][V] = bias
            for each kernel row that lies inside the image:
                for each input column under the tile:                          unrolled, loaded once
                    for each pixel that the column meets: acc[p] += x[column] · w[row, p's kernel column]
            y = epilogue(acc)

With stride 1 a tile of P pixels loads P + k - 1 vectors a kernel row for P·k multiply–adds, so it is bound by arithmetic.

Packed weights: [block of V vectors][kernel row][kernel column][V·lanes].
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from kernels.native.emit.builder import Function, Operand, Value
from kernels.native.emit.epilogue import Epilogue, Places, Result, check_images, vector_at
from kernels.native.emit.geometry import (
    Block,
    Conv,
    Span,
    aligned_copy,
    channel_blocks,
    column_spans,
    even_rows,
    kernel_rows,
    maybe,
)
from kernels.native.emit.kernel import NativeKernel, emitted, kernel_name
from kernels.native.emit.names import name_epilogue, name_layouts, name_window
from kernels.native.emit.types import I64
from kernels.native.errors import EmitError
from kernels.native.memory.image import Image
from kernels.native.target.isa import Isa
from kernels.spec import Array

CHUNK_MACS = (32 << 10, 256 << 10)  # least and most of one chunk: up to about 5 µs
CHUNKS = 32


@dataclass(frozen=True, slots=True)
class DepthwiseTile:
    """pixels × vectors: accumulators. rows: output rows of a chunk."""

    pixels: int
    vectors: int
    rows: int

    def __str__(self) -> str:
        return f"{self.pixels}x{self.vectors}"


def pack_depthwise(conv: Conv, tile: DepthwiseTile, isa: Isa, weights: Array) -> Array:
    """Pack weights (channels, 1, kernel rows, columns) in the order in which the kernel reads them; tails are 0."""
    parts = []
    for block in channel_blocks(conv.y.channels, tile.vectors, isa.lanes):
        size = block.vectors * isa.lanes
        start = block.first * tile.vectors * isa.lanes
        rows = weights[start : start + block.count * size, 0].astype(np.float32)
        padded = np.zeros((block.count * size, *conv.kernel), np.float32)
        padded[: len(rows)] = rows
        parts.append(padded.reshape(block.count, size, *conv.kernel).transpose(0, 2, 3, 1).ravel())
    return aligned_copy(np.concatenate(parts))


def pack_depthwise_bias(isa: Isa, bias: Array) -> Array:
    """Pack a bias (channels,), padded to whole vectors with 0."""
    return aligned_copy(np.pad(bias.astype(np.float32), (0, -len(bias) % isa.lanes)))


@functools.lru_cache(1024)
def depthwise_tiles(conv: Conv, isa: Isa, limit: int = 4) -> tuple[DepthwiseTile, ...]:
    """Return the tiles that a port model estimates to be fastest, the best first, of equal ones the longer row of pixels."""
    scored = []
    for vectors in (1, 2, 3):
        for pixels in range(1, min(conv.y.width, isa.vector_registers) + 1):
            scratch = 2 * vectors + (2 if isa.fma else 3)  # input vectors and what LLVM keeps; without FMA the product too
            if (pixels + conv.kernel[1]) * vectors + scratch > max(isa.vector_registers, conv.kernel[1] + scratch + 2):
                continue
            scored.append((_estimate(conv, pixels, vectors, isa), pixels * vectors, vectors, pixels))
    return tuple(make_depthwise_tile(conv, isa, pixels, vectors) for _, _, vectors, pixels in sorted(scored)[:limit])


def _estimate(conv: Conv, pixels: int, vectors: int, isa: Isa) -> float:
    """Estimate the cycles of one row of all channels and one kernel row: two multiply–adds and two loads a cycle, latency 4."""
    taps, total = conv.kernel[1], 0.0
    for block in channel_blocks(conv.y.channels, vectors, isa.lanes):
        for first in range(0, conv.y.width, pixels):
            p = min(pixels, conv.y.width - first)
            loads = block.vectors * (min((p - 1) * conv.strides[1] + taps, p * taps) + taps)
            total += block.count * (max(p * block.vectors * taps / 2, loads / 2, 4 * taps) + 1)
    return total


def depthwise_cycles(conv: Conv, tile: DepthwiseTile, isa: Isa) -> float:
    """Estimate the cycles of one core for the whole convolution, by the port model."""
    return conv.y.batch * conv.y.height * conv.kernel[0] * _estimate(conv, tile.pixels, tile.vectors, isa)


def depthwise_chunks(conv: Conv, tile: DepthwiseTile, isa: Isa) -> int:
    """Return the number of chunks that threads share."""
    return _DepthwiseEmitter(conv, tile, Epilogue(), isa).chunks


def make_depthwise_tile(conv: Conv, isa: Isa, pixels: int, vectors: int) -> DepthwiseTile:
    """Make a tile of these sizes; the rest follows by rule."""
    row_macs = conv.y.width * vectors * isa.lanes * conv.kernel[0] * conv.kernel[1]
    chunk_macs = min(max(conv.macs // CHUNKS, CHUNK_MACS[0]), CHUNK_MACS[1])
    return DepthwiseTile(pixels, vectors, even_rows(conv.y.height, chunk_macs // row_macs))


def emit_depthwise(conv: Conv, tile: DepthwiseTile, epilogue: Epilogue[Image], isa: Isa) -> NativeKernel:
    """Emit the kernel. Its arguments: "x", "w" (`pack_depthwise`), "b" (`pack_depthwise_bias`), those of the epilogue, and "y".

    Raises EmitError where a group has more than one input or output channel.
    """
    if not conv.groups == conv.x.channels == conv.y.channels:
        raise EmitError(f"depthwise: {conv.x.channels} to {conv.y.channels} channels in {conv.groups} groups, need one each")
    for image, what in ((conv.x, "x"), (conv.y, "y")):
        whole = image.block % isa.lanes == 0 and tile.vectors % max(image.block // isa.lanes, 1) == 0
        if not (image.contiguous_channels or whole):
            raise EmitError(
                f"depthwise: {what} has blocks of {image.block} channels, a tile takes {tile.vectors} vectors of {isa.lanes}"
            )
    check_images(epilogue, isa.lanes)
    words = (name_layouts(conv.x, conv.y), name_window(conv), *name_epilogue(epilogue))
    name = kernel_name(f"f32_dwconv2d_{tile.pixels}x{tile.vectors * isa.lanes}", (conv, tile, epilogue), isa, words)
    emitter = _DepthwiseEmitter(conv, tile, epilogue, isa)

    def body(k: Function, values: list[Value]) -> None:
        x, w, b, *operands, y, begin, end = values
        emitter.emit(k, x, w, b, Places.of(conv.y, epilogue, y, operands), begin, end)

    return emitted(isa, name, ("x", "w", "b", *epilogue.arguments, "y"), emitter.chunks, body)


class _DepthwiseEmitter:
    """Emits one depthwise convolution; the methods are the loops of the module docstring, from the outside in."""

    def __init__(self, conv: Conv, tile: DepthwiseTile, epilogue: Epilogue[Image], isa: Isa) -> None:
        self.conv, self.tile, self.epilogue = conv, tile, epilogue
        self.lanes = isa.lanes
        self.blocks = channel_blocks(conv.y.channels, tile.vectors, isa.lanes)
        self.block_count = sum(block.count for block in self.blocks)
        self.row_chunks = -(-conv.y.height // tile.rows)
        self.chunks = conv.y.batch * self.block_count * self.row_chunks

    def emit(self, k: Function, x: Value, w: Value, b: Value, places: Places, begin: Value, end: Value) -> None:
        """Emit the loop over the chunks of a call."""
        conv, tile = self.conv, self.tile
        with k.loop("chunk", begin, end) as chunk:
            number, slow = chunk % self.block_count, chunk // self.block_count  # rows outermost, as products share them out
            row_chunk, image = slow % self.row_chunks, slow // self.row_chunks
            channel = number * (tile.vectors * self.lanes)
            at = k.offset(x, self._start(conv.x, image, number))
            to = places.move(k, lambda layout: self._start(layout, image, number))
            weights, bias = k.offset(w, channel * (conv.kernel[0] * conv.kernel[1])), k.offset(b, channel)
            first = row_chunk * tile.rows
            stop = first + tile.rows
            if conv.y.height % tile.rows:
                stop = k.select(stop < conv.y.height, stop, k.const(I64, conv.y.height))
            for block in self.blocks:
                with maybe(k, block.chosen_by(number, self.blocks)), k.loop("row", first, stop) as row:
                    self._row(k, block, row, at, weights, bias, to)

    def _start(self, layout: Image, image: Value, number: Value) -> Value:
        """Return the offset of a block of channels in an image, in elements."""
        per_block = self.tile.vectors * self.lanes
        step = per_block if layout.contiguous_channels else per_block // layout.block * layout.block_stride
        return image * layout.n_stride + number * step

    def _row(self, k: Function, block: Block, row: Value, x: Value, w: Value, b: Value, to: Places) -> None:
        conv, rows = self.conv, kernel_rows(k, self.conv, row)
        to = to.move(k, lambda image: row * image.y_stride)
        for span in column_spans(conv, conv.y.width, self.tile.pixels):
            with k.loop("tile", 0, span.count) as number:
                self._tile(k, block, span, number * span.pixels + span.first, row, rows, x, w, b, to)

    def _tile(
        self,
        k: Function,
        block: Block,
        span: Span,
        column: Value,
        row: Value,
        rows: tuple[Operand, Operand],
        x: Value,
        w: Value,
        b: Value,
        to: Places,
    ) -> None:
        """One register tile: accumulate, finish, store. rows: kernel rows inside the image."""
        conv = self.conv
        starts = [k.load(k.f32, b, v * self.lanes) if self.epilogue.bias else k.zero(k.f32) for v in range(block.vectors)]
        x = k.offset(x, (column * conv.strides[1] - conv.left) * conv.x.x_stride)
        with k.fold("kr", *rows, 1, starts * span.pixels) as fold:
            image_row = row * conv.strides[0] - conv.top + fold.index * conv.dilations[0]
            weights = k.offset(w, fold.index * (conv.kernel[1] * block.vectors * self.lanes))
            fold.values = self._taps(k, block, span, k.offset(x, image_row * conv.x.y_stride), weights, fold.values)
        to = to.move(k, lambda image: column * image.x_stride)
        results = []
        for p in range(span.pixels):
            for v in range(block.vectors):
                lanes = self._lanes(block, v, conv.y)
                results.append(Result(fold.values[p * block.vectors + v], vector_at(p, v * self.lanes), lanes, lanes))
        to.store(k, self.epilogue, results)

    def _lanes(self, block: Block, v: int, image: Image) -> int:
        """Return how many lanes of vector v exist in memory."""
        return block.tail if v == block.vectors - 1 and image.contiguous_channels else self.lanes

    def _taps(self, k: Function, block: Block, span: Span, x: Value, w: Value, values: list[Value]) -> list[Value]:
        """One kernel row: walk the input columns, each loaded once."""
        conv, values = self.conv, list(values)
        columns, (stride, dilation) = conv.kernel[1], (conv.strides[1], conv.dilations[1])
        inside = [set(range(columns)) if span.whole else conv.columns_inside(span.first + p) for p in range(span.pixels)]
        meets: dict[int, list[tuple[int, int]]] = {}
        for p in range(span.pixels):
            for s in sorted(inside[p]):
                meets.setdefault(p * stride + s * dilation, []).append((p, s))
        weights = [[k.load(k.f32, w, (s * block.vectors + v) * self.lanes) for v in range(block.vectors)] for s in range(columns)]
        for column in sorted(meets):
            for v in range(block.vectors):
                at = column * conv.x.x_stride + conv.x.offset(v * self.lanes)
                taken = k.load_part(k.f32, x, self._lanes(block, v, conv.x), at)
                for p, s in meets[column]:
                    values[p * block.vectors + v] = k.fma(taken, weights[s][v], values[p * block.vectors + v])
        return values
