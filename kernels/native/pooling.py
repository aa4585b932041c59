"""Max and average pooling: lanes are channels; a global pool is a window as large as the image.

    for each chunk = (image, vector of channels, block of rows):
        for each row of the output, for each tile of P pixels along it:        the borders are tiles of their own, peeled
            for each kernel row that lies inside the image, for each kernel column:
                row[p] = row[p] max or + x[pixel p]
            y = activation(row, or row / taps + residual)

Averages add each kernel row by itself and then the rows, so that rounding grows with the sides of the window, not its area.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from kernels.native.builder import Function, Module, Value
from kernels.native.errors import EmitError
from kernels.native.geometry import Conv, Span, column_spans, kernel_rows
from kernels.native.isa import Isa
from kernels.native.kernel import Epilogue, NativeKernel, Places, kernel_name, signature, vector_at
from kernels.native.types import F32, I64

PIXELS = 4  # of a tile: as many independent sums as hide the latency of an addition
CHUNK_TAPS = 4096  # vectors read by one chunk: about 2 µs


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
        """The windows over the part of the plane whose taps the divisor counts."""
        if self.counted is None:
            return self.window
        conv, (bottom, right) = self.window, self.counted
        plane = replace(conv.x, height=conv.top + conv.x.height + bottom, width=conv.left + conv.x.width + right)
        return replace(conv, x=plane, top=0, left=0)


def emit_pooling(pooling: Pooling, epilogue: Epilogue, isa: Isa) -> NativeKernel:
    """Emit the kernel. Raises EmitError for images whose channels do not come in vectors, and for a bias."""
    conv = pooling.window
    if conv.x.channels != conv.y.channels:
        raise EmitError(f"pooling: x has {conv.x.channels} channels and y {conv.y.channels}, need as many")
    if epilogue.bias:
        raise EmitError("pooling: the epilogue has a bias, pools take none")
    for image, what in ((conv.x, "x"), (conv.y, "y")):
        if image.block != isa.lanes:
            raise EmitError(f"pooling: {what} has blocks of {image.block} channels, need {isa.lanes}")
    epilogue.check(isa.lanes)
    name = kernel_name(f"f32_{pooling.kind}pool_{PIXELS}x{isa.lanes}", (pooling, epilogue), isa)
    emitter = _PoolingEmitter(pooling, epilogue)
    module, names = Module(isa), ("x", *epilogue.arguments, "y")
    with module.function(name, signature(names)) as (k, *values):
        x, *operands, y, begin, end = values
        emitter.emit(k, x, Places.of(conv.y, epilogue, y, operands), begin, end)
    return NativeKernel(name, module.text, emitter.chunks, names)


class _PoolingEmitter:
    """Emits one pool; the methods are the loops of the module docstring, from the outside in."""

    def __init__(self, pooling: Pooling, epilogue: Epilogue) -> None:
        self.pooling, self.conv, self.epilogue = pooling, pooling.window, epilogue
        row_taps = self.conv.y.width * self.conv.kernel[0] * self.conv.kernel[1]
        self.rows = max(1, min(self.conv.y.height, CHUNK_TAPS // row_taps))
        self.row_chunks = -(-self.conv.y.height // self.rows)
        self.chunks = self.conv.y.batch * self.conv.y.blocks * self.row_chunks

    def emit(self, k: Function, x: Value, places: Places, begin: Value, end: Value) -> None:
        """All chunks of a call."""
        conv = self.conv
        with k.loop("chunk", begin, end) as chunk:
            first, plane = chunk % self.row_chunks * self.rows, chunk // self.row_chunks
            number, image = plane % conv.y.blocks, plane // conv.y.blocks
            stop = first + self.rows
            if conv.y.height % self.rows:
                stop = k.select(stop < conv.y.height, stop, k.const(I64, conv.y.height))
            at = k.offset(x, image * conv.x.n_stride + number * conv.x.block_stride)
            to = places.move(k, lambda layout: image * layout.n_stride + number * layout.block_stride)
            with k.loop("row", first, stop) as row:
                row_to = to.move(k, lambda layout: row * layout.y_stride)
                for span in column_spans(conv, conv.y.width, PIXELS):
                    with k.loop("tile", 0, span.count) as tile:
                        self._tile(k, span, tile * span.pixels + span.first, row, at, row_to)

    def _tile(self, k: Function, span: Span, column: Value, row: Value, x: Value, to: Places) -> None:
        """The pixels of a tile: pool, divide, finish, store."""
        conv = self.conv
        start = k.const(k.f32, float("-inf")) if self.pooling.kind == "max" else k.zero(k.f32)
        x = k.offset(x, (column * conv.strides[1] - conv.left) * conv.x.x_stride)
        low, high = kernel_rows(k, conv, row)
        with k.fold("kr", low, high, 1, [start] * span.pixels) as fold:
            image_row = row * conv.strides[0] - conv.top + fold.index * conv.dilations[0]
            taken = self._columns(k, span, k.offset(x, image_row * conv.x.y_stride), [start] * span.pixels)
            fold.values = [self._combine(k, a, b) for a, b in zip(fold.values, taken, strict=True)]
        to = to.move(k, lambda layout: column * layout.x_stride)
        for p, value in enumerate(fold.values):
            pooled = value if self.pooling.kind == "max" else value / self._taps(k, span, p, row)
            to.store(k, self.epilogue, pooled, vector_at(p, 0), conv.y.block, conv.y.block)

    def _columns(self, k: Function, span: Span, x: Value, values: Sequence[Value]) -> list[Value]:
        """All kernel columns of one kernel row; at the border each pixel takes those that lie inside the image."""
        conv, values = self.conv, list(values)
        pixel, tap = conv.strides[1] * conv.x.x_stride, conv.dilations[1] * conv.x.x_stride
        if span.whole:
            with k.fold("kc", 0, conv.kernel[1], 1, values) as fold:
                at = k.offset(x, fold.index * tap)
                taken = [k.load(k.f32, at, p * pixel) for p in range(span.pixels)]
                fold.values = [self._combine(k, a, b) for a, b in zip(fold.values, taken, strict=True)]
            return fold.values
        for p in range(span.pixels):
            for s in sorted(conv.columns_inside(span.first + p)):
                values[p] = self._combine(k, values[p], k.load(k.f32, x, p * pixel + s * tap))
        return values

    def _combine(self, k: Function, a: Value, b: Value) -> Value:
        return k.maximum(a, b) if self.pooling.kind == "max" else a + b

    def _taps(self, k: Function, span: Span, pixel: int, row: Value) -> Value:
        """The divisor of one pixel of a tile, in every lane."""
        divided = self.pooling.divided
        columns = divided.kernel[1] if span.whole else len(divided.columns_inside(span.first + pixel))
        low, high = kernel_rows(k, divided, row)
        rows = k.coerce(high, I64) - low
        return k.splat(k.convert("sitofp", rows * columns, F32), k.f32)
