"""Max and average pooling: lanes are channels; a global pool is a window as large as the image.

    for each chunk = (image, block of rows, vector of channels):
        for each row of the output, for each tile of P pixels along it:        the borders are tiles of their own, peeled
            for each kernel row that lies inside the image:
                for each input column under the tile:                          unrolled, loaded once
                    column[c] = column[c] max or + x[c]
            for each pixel: y = epilogue(its columns' max, or their sum / taps)

A window wider than the accumulators is a tile of one pixel, whose columns take turns on them.
Averages add the columns by themselves and then one another, so that rounding grows with the sides of the window, not its area.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from kernels.native.emit.builder import Function, Operand, Value
from kernels.native.emit.epilogue import Epilogue, Places, Result, check_images, vector_at
from kernels.native.emit.geometry import Block, Conv, Span, channel_blocks, column_spans, even_rows, kernel_rows, maybe
from kernels.native.emit.kernel import NativeKernel, emitted, kernel_name
from kernels.native.emit.names import name_epilogue, name_layouts, name_window
from kernels.native.emit.types import F32, I64
from kernels.native.errors import EmitError
from kernels.native.memory.image import Image
from kernels.native.target.isa import Isa

PIXELS = 8  # of a tile at most
WIDE = 8  # accumulators of a window wider than the registers: as many independent sums as hide the latency of one
CHUNK_READS = 4096  # vectors read by one chunk: about 2 µs


@dataclass(frozen=True, slots=True)
class Pooling:
    """A pool over the windows of a depthwise `Conv`.

    counted: (bottom, right) padding of an average whose divisor counts padding; None where it counts pixels of the image only.
    """

    window: Conv
    kind: Literal["max", "average"]
    counted: tuple[int, int] | None = None

    @property
    def divided(self) -> Conv:
        """The windows over the part of the plane whose taps are counted by the divisor of an average."""
        if self.counted is None:
            return self.window
        conv, (bottom, right) = self.window, self.counted
        plane = replace(conv.x, height=conv.top + conv.x.height + bottom, width=conv.left + conv.x.width + right)
        return replace(conv, x=plane, top=0, left=0)


def emit_pooling(pooling: Pooling, epilogue: Epilogue[Image], isa: Isa) -> NativeKernel:
    """Emit the kernel. Its arguments are "x", those of the epilogue, and "y".

    Raises EmitError for images whose channels do not come in vectors, and for an epilogue with a bias.
    """
    conv = pooling.window
    if conv.x.channels != conv.y.channels:
        raise EmitError(f"pooling: x has {conv.x.channels} channels and y {conv.y.channels}, need as many")
    if epilogue.bias:
        raise EmitError("pooling: the epilogue has a bias, pools take none")
    for image, what in ((conv.x, "x"), (conv.y, "y")):
        if not (image.contiguous_channels or image.block % isa.lanes == 0):
            raise EmitError(f"pooling: {what} has blocks of {image.block} channels, need whole vectors of {isa.lanes}")
    check_images(epilogue, isa.lanes)
    emitter = _PoolingEmitter(pooling, epilogue, isa)
    words = (name_layouts(conv.x, conv.y), name_window(conv), *name_epilogue(epilogue))
    name = kernel_name(f"f32_{pooling.kind}pool_{emitter.pixels}x{isa.lanes}", (pooling, epilogue), isa, words)

    def body(k: Function, values: list[Value]) -> None:
        x, *operands, y, begin, end = values
        emitter.emit(k, x, Places.of(conv.y, epilogue, y, operands), begin, end)

    return emitted(isa, name, ("x", *epilogue.arguments, "y"), emitter.chunks, body)


class _PoolingEmitter:
    """Emits one pool; the methods are the loops of the module docstring, from the outside in."""

    def __init__(self, pooling: Pooling, epilogue: Epilogue[Image], isa: Isa) -> None:
        self.pooling, self.conv, self.epilogue, self.lanes = pooling, pooling.window, epilogue, isa.lanes
        scratch = 6 if isa.fma else 10  # what is loaded and what a maximum that keeps NaN wants; two-operand instructions copy
        self.accumulators = isa.vector_registers - scratch
        self.pixels = self._pixels()
        self.blocks = channel_blocks(self.conv.y.channels, 1, isa.lanes)
        self.block_count = sum(block.count for block in self.blocks)
        row_reads = self.conv.kernel[0] * min(self.conv.x.width, self.conv.y.width * self.conv.kernel[1])
        self.rows = even_rows(self.conv.y.height, CHUNK_READS // row_reads)
        self.row_chunks = -(-self.conv.y.height // self.rows)
        self.chunks = self.conv.y.batch * self.row_chunks * self.block_count

    def _pixels(self) -> int:
        """Return how many pixels a tile has: as many as there are accumulators for the columns under them."""
        window = [s * self.conv.dilations[1] for s in range(self.conv.kernel[1])]
        for pixels in range(min(PIXELS, self.conv.y.width), 1, -1):
            if len({p * self.conv.strides[1] + s for p in range(pixels) for s in window}) <= self.accumulators:
                return pixels
        return 1

    def emit(self, k: Function, x: Value, places: Places, begin: Value, end: Value) -> None:
        """Emit the loop over the chunks of a call."""
        conv = self.conv
        with k.loop("chunk", begin, end) as chunk:
            number, slow = chunk % self.block_count, chunk // self.block_count
            first, image = slow % self.row_chunks * self.rows, slow // self.row_chunks
            stop = first + self.rows
            if conv.y.height % self.rows:
                stop = k.select(stop < conv.y.height, stop, k.const(I64, conv.y.height))
            at = k.offset(x, self._start(conv.x, image, number))
            to = places.move(k, lambda layout: self._start(layout, image, number))
            for block in self.blocks:
                with maybe(k, block.chosen_by(number, self.blocks)), k.loop("row", first, stop) as row:
                    self._row(k, block, row, at, to)

    def _start(self, layout: Image, image: Value, number: Value) -> Value:
        """Return the offset of a vector of channels in an image, in elements."""
        if layout.contiguous_channels:
            return image * layout.n_stride + number * self.lanes
        if layout.one_for_all_channels:
            return image * layout.n_stride
        per_block = layout.block // self.lanes
        return image * layout.n_stride + number // per_block * layout.block_stride + number % per_block * self.lanes

    def _row(self, k: Function, block: Block, row: Value, x: Value, to: Places) -> None:
        """Emit the tiles along one row."""
        conv, to = self.conv, to.move(k, lambda layout: row * layout.y_stride)
        rows, divided = kernel_rows(k, conv, row), kernel_rows(k, self.pooling.divided, row)
        counted = k.coerce(divided[1], I64) - divided[0]
        for span in column_spans(conv, conv.y.width, self.pixels):
            with k.loop("tile", 0, span.count) as tile:
                self._tile(k, block, span, tile * span.pixels + span.first, row, rows, counted, x, to)

    def _tile(
        self,
        k: Function,
        block: Block,
        span: Span,
        column: Value,
        row: Value,
        rows: tuple[Operand, Operand],
        counted: Value,
        x: Value,
        to: Places,
    ) -> None:
        """The pixels of a tile: pool, divide, finish, store. rows: kernel rows inside the image; counted: how many divide."""
        conv = self.conv
        x = k.offset(x, (column * conv.strides[1] - conv.left) * conv.x.x_stride)
        to, lanes = to.move(k, lambda layout: column * layout.x_stride), self._lanes(block, conv.y)
        results = []
        for p, value in enumerate(self._pool(k, block, span, row, rows, x)):
            pooled = value if self.pooling.kind == "max" else value / self._divisor(k, span, p, counted)
            results.append(Result(pooled, vector_at(p, 0), lanes, lanes))
        to.store(k, self.epilogue, results)

    def _lanes(self, block: Block, image: Image) -> int:
        """Return how many lanes of a vector exist in memory."""
        return block.tail if image.contiguous_channels else self.lanes

    def _pool(self, k: Function, block: Block, span: Span, row: Value, rows: tuple[Operand, Operand], x: Value) -> list[Value]:
        """The maximum or sum of each pixel's window."""
        conv = self.conv
        windows = [[p * conv.strides[1] + s * conv.dilations[1] for s in self._inside(span, p)] for p in range(span.pixels)]
        columns = sorted({column for window in windows for column in window})
        wide = len(columns) > self.accumulators
        start = k.const(k.f32, float("-inf")) if self.pooling.kind == "max" else k.zero(k.f32)
        with k.fold("kr", *rows, 1, [start] * (min(WIDE, self.accumulators) if wide else len(columns))) as fold:
            image_row = row * conv.strides[0] - conv.top + fold.index * conv.dilations[0]
            at = k.offset(x, image_row * conv.x.y_stride)
            fold.values = self._columns(k, self._lanes(block, conv.x), columns, at, fold.values)
        if wide:
            return [self._combined(k, fold.values)]
        taken = dict(zip(columns, fold.values, strict=True))
        return [self._combined(k, [taken[column] for column in window] or [start]) for window in windows]

    def _inside(self, span: Span, pixel: int) -> Sequence[int]:
        """Kernel columns of a pixel that lie inside the image."""
        return range(self.conv.kernel[1]) if span.whole else sorted(self.conv.columns_inside(span.first + pixel))

    def _columns(self, k: Function, lanes: int, columns: list[int], x: Value, values: list[Value]) -> list[Value]:
        """The columns of one kernel row, one an accumulator; those of a wide window, evenly spaced, in turns."""
        turns = len(columns) // max(len(values), 1)
        if turns:
            with k.fold("kc", 0, turns, 1, values) as fold:
                at = k.offset(x, fold.index * (len(values) * self.conv.dilations[1] * self.conv.x.x_stride))
                fold.values = self._taken(k, lanes, columns[: len(values)], at, fold.values)
            values = fold.values
        return self._taken(k, lanes, columns[turns * len(values) :], x, values)

    def _taken(self, k: Function, lanes: int, columns: list[int], x: Value, values: list[Value]) -> list[Value]:
        """The first accumulators with a column each."""
        step = self.conv.x.x_stride
        return [
            self._combine(k, value, k.load_part(k.f32, x, lanes, column * step))
            for value, column in zip(values, columns, strict=False)
        ] + values[len(columns) :]

    def _combine(self, k: Function, a: Value, b: Value) -> Value:
        return k.maximum(a, b) if self.pooling.kind == "max" else a + b

    def _combined(self, k: Function, values: Sequence[Value]) -> Value:
        """All of them, by halves."""
        if len(values) == 1:
            return values[0]
        half = len(values) // 2
        return self._combine(k, self._combined(k, values[:half]), self._combined(k, values[half:]))

    def _divisor(self, k: Function, span: Span, pixel: int, rows: Value) -> Value:
        """The number of taps that count for one pixel of a tile, in every lane. rows: kernel rows that count.

        All taps of a dilated window may lie in the padding; their sum of 0 is divided by 1 then.
        """
        divided = self.pooling.divided
        columns = divided.kernel[1] if span.whole else len(divided.columns_inside(span.first + pixel))
        taps = rows * columns
        if taps.known is not None:
            return k.const(k.f32, float(max(taps.known, 1)))
        if divided.dilations != (1, 1):
            taps = k.select(taps < 1, k.const(I64, 1), taps)
        return k.splat(k.convert("sitofp", taps, F32), k.f32)
