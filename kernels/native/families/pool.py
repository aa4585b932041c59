"""Max and average pooling: lanes are channels; a global pool is a window as large as the image.

    for each unit of a chunk = (image, block of rows, vector of channels):
        for each row of the output, for each tile of P pixels along it:
            for each kernel plane that lies inside the volume:                 one, of images
                for each kernel row that lies inside the plane:
                    for each input column under the tile:                      unrolled, loaded once
                        column[c] = column[c] max or + x[c]
            for each pixel: y = epilogue(its columns' max, or their sum / taps)

The code is decided by the window's columns with their stride and dilation, how channels lie, and the epilogue; all else is
numbers. The columns at a tile's edges are read from what changes nothing where they lie outside of the image. The last tile of a
row ends with the row: pixels that the tile before it has stored are computed again, and not stored. A window wider than the
accumulators is a tile of one pixel, whose columns take turns on them; its size is a number too. Averages add the columns by
themselves and then one another, so that rounding grows with the sides of the window, not its area.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from kernels.expression import FLOAT
from kernels.native.emit.border import Border, ColumnLoad, Columns, Load, tile_start
from kernels.native.emit.builder import Function, Operand, Value
from kernels.native.emit.epilogue import Epilogue
from kernels.native.emit.floats import Floats
from kernels.native.emit.geometry import (
    Conv,
    even_rows,
    first_element,
    plane_numbers,
    plane_range,
    plane_tables,
    row_range,
    row_start,
    row_table,
)
from kernels.native.emit.kernel import SCRATCH, Bounds, NativeKernel, emitted, kernel_name
from kernels.native.emit.names import name_epilogue, name_layouts, name_window
from kernels.native.emit.results import Channels, Numbers, Results, ResultsEmitter, Spots, result_numbers
from kernels.native.emit.types import F32, I64
from kernels.native.errors import EmitError
from kernels.native.memory.image import Image
from kernels.native.target.isa import Isa
from kernels.record import record
from kernels.size import hint, is_symbolic
from kernels.spec import DType

PIXELS = (8, 4, 2, 1)  # of a tile: few sizes, so that images of any width share kernels
MOST_UNROLLED = 5  # columns of a window: wider ones are seldom, but for global pools, and share a loop
WIDE = 8  # accumulators of a window wider than the registers: as many independent sums as hide the latency of one
CHUNK_READS = 4096  # vectors read by one chunk: about 2 µs
LEAST_CHUNKS = 8  # of small images, however little each has to do


@record
class Pooling:
    """A pool over the windows of a depthwise `Conv`.

    counted: (bottom, right) padding of an average whose divisor counts padding, of volumes (back, bottom, right); None where it
    counts pixels of the image only.
    """

    window: Conv
    kind: Literal["max", "average"]
    counted: tuple[int, ...] | None = None

    @property
    def divided(self) -> Conv:
        """The windows over the part of the plane whose taps are counted by the divisor of an average."""
        if self.counted is None:
            return self.window
        conv, (*back, bottom, right) = self.window, self.counted
        depth, planes = conv.depth, 1
        if depth is not None:
            planes = depth.front + depth.x + back[0]
            rows, depth = conv.x.height // depth.x, replace(depth, x=planes, front=0)
        else:
            rows = conv.x.height
        plane = replace(conv.x, height=planes * (conv.top + rows + bottom), width=conv.left + conv.x.width + right)
        return replace(conv, x=plane, top=0, left=0, depth=depth)


def emit_pooling(pooling: Pooling, epilogue: Epilogue[Image], isa: Isa) -> NativeKernel:
    """Emit the kernel. Its arguments are "x", those of the epilogue, and "y".

    Raises EmitError for images whose channels do not come in vectors, and for an epilogue with a bias.
    """
    conv = pooling.window
    if conv.x.channels != conv.y.channels:
        raise EmitError(f"pooling: x has {conv.x.channels} channels and y {conv.y.channels}, need as many")
    if epilogue.bias:
        raise EmitError("pooling: the epilogue has a bias, pools take none")
    epilogue.require("pooling", FLOAT)
    if conv.words.are_bytes and pooling.kind != "max":
        raise EmitError("pooling: elements of x are bytes, whose maxima alone are computed")
    x = Channels.of(conv.x, isa.lanes)
    if x.kind not in {"blocks", "rows"}:
        raise EmitError(f"pooling: x has blocks of {conv.x.block} channels, need whole vectors of {isa.lanes}")
    pixels, wide = _tile(conv, isa)
    results = Results.of(pixels, 1, conv.y, epilogue, isa.lanes)
    code = _Code(
        pooling.kind, None if wide else Columns.of(conv, pixels), min(WIDE, _accumulators(isa)), x, results, conv.words.x
    )
    columns = replace(conv, kernel=(1, conv.kernel[1]), strides=(1, conv.strides[1]), dilations=(1, conv.dilations[1]))
    words = (name_layouts(conv.x, conv.y), "wide" if wide else name_window(columns), *name_epilogue(epilogue))
    row_reads = hint(conv.kernel_rows) * min(hint(conv.x.width), hint(conv.y.width) * hint(conv.kernel[1]))
    rows = even_rows(hint(conv.y.height), CHUNK_READS // row_reads)
    blocks, row_chunks = -(-conv.y.channels // isa.lanes), -(-conv.y.height // rows)
    units = conv.y.batch * row_chunks * blocks
    chunk_units = max(1, min(CHUNK_READS // (rows * row_reads), hint(units) // LEAST_CHUNKS))
    tables = {"row_table": row_table(conv), "divided_rows": row_table(pooling.divided), **plane_tables(conv)}
    if deep := conv.depth is not None:
        tables["divided_planes"] = plane_tables(pooling.divided)["plane_table"]

    def body(k: Function, pointers: Mapping[str, Value], sizes: Mapping[str, Value], chunks: Bounds) -> None:
        _PoolingEmitter(k, code, sizes, pointers).emit(*chunks)

    return emitted(
        isa,
        kernel_name(
            f"{conv.words}_{pooling.kind}pool{'3d' * deep}_{pixels}x{isa.lanes}", (code, deep) if deep else code, isa, words
        ),
        ("x", *epilogue.arguments, "y", SCRATCH),
        -(-units // chunk_units),
        body,
        {
            "chunk_units": chunk_units,
            "units": units,
            "blocks": blocks,
            "row_chunks": row_chunks,
            "chunk_rows": rows,
            **_numbers(pooling, pixels, epilogue, isa),
        },
        tables,
        results.buffer_bytes(isa.lanes),
    )


def _accumulators(isa: Isa) -> int:
    """Return how many vectors a tile may accumulate: registers but for what is loaded and what a maximum that keeps NaN wants."""
    return isa.vector_registers - (6 if isa.fma else 10)  # without FMA, two-operand instructions copy


def _tile(conv: Conv, isa: Isa) -> tuple[int, bool]:
    """Return the pixels of a tile, and whether one pixel has more columns than there are accumulators.

    A tile has as many pixels as there are accumulators for the columns under them, and no more than a row. A window whose width
    depends on symbols counts as one with more columns.
    """
    if is_symbolic(conv.kernel[1]) or conv.kernel[1] > MOST_UNROLLED:
        return 1, True
    window = [s * conv.dilations[1] for s in range(conv.kernel[1])]
    for pixels in PIXELS:
        columns = {p * conv.strides[1] + s for p in range(pixels) for s in window}
        if len(columns) <= _accumulators(isa) and pixels <= conv.y.width:
            return pixels, False
    return 1, True


def _numbers(pooling: Pooling, pixels: int, epilogue: Epilogue[Image], isa: Isa) -> dict[str, int]:
    """Return the numbers that the code reads, by name, but for those of chunks. Strides count elements.

    rows, channels, width, tiles: of y, and of a row of it. x_image, x_block, x_row, x_pixel, x_kernel_row: between neighbours
    of each kind in x; rows are those of neighbouring outputs. x_first: from x to the first column of the first window, which
    may lie outside. left, x_width: padding and width of the image; divided_*: of the plane whose taps count for an average.
    column_step, column_dilation, kernel_columns: of the window. x_kernel_plane: between its planes, of volumes.
    """
    conv, divided = pooling.window, pooling.divided
    x, y, lanes = conv.x, conv.y, isa.lanes
    numbers = {
        "rows": y.height, "channels": y.channels, "width": y.width, "tiles": -(-y.width // pixels), "x_image": x.n_stride,
        "x_block": lanes if x.block > lanes else x.block_stride, "x_row": conv.strides[0] * x.y_stride, "x_pixel": x.x_stride,
        "x_kernel_row": conv.dilations[0] * x.y_stride, "x_first": first_element(conv),
        "left": conv.left, "x_width": x.width, "divided_left": divided.left, "divided_width": divided.x.width,
        "column_step": conv.strides[1], "column_dilation": conv.dilations[1], "kernel_columns": conv.kernel[1],
        **plane_numbers(conv),
    }  # fmt: skip
    for name, image in (("y", y), *zip(epilogue.arguments, epilogue.operands, strict=True)):
        numbers |= result_numbers(name, image, 1, lanes, 0)
    return numbers


@record
class _Code:
    """All that decides the code.

    columns: under a tile; None for a window wider than `accumulators`, whose columns take turns on them. x: how its channels lie.
    dtype: of its elements.
    """

    kind: Literal["max", "average"]
    columns: Columns | None
    accumulators: int
    x: Channels
    results: Results
    dtype: DType = FLOAT

    @property
    def neutral(self) -> float:
        """What changes no result."""
        return float("-inf") if self.kind == "max" else 0.0


class _PoolingEmitter:
    """Emits the code; the methods are the loops of the module docstring, from the outside in."""

    def __init__(self, k: Function, code: _Code, n: Numbers, pointers: Mapping[str, Value]) -> None:
        self.k, self.code, self.n, self.pointers, self.lanes = k, code, n, pointers, k.isa.lanes
        self.results = ResultsEmitter(k, code.results, n, pointers[SCRATCH])
        self.pixel = n["x_pixel"] if code.x.pixel is None else k.const(I64, code.x.pixel)
        self.start, self.x = k.const(k.f32, code.neutral), Floats(k, code.dtype)
        self.outside = self.x.outside(np.iinfo(code.dtype).min if code.dtype.itemsize == 1 else code.neutral)

    def emit(self, begin: Value, end: Value) -> None:
        """Emit the loop over the chunks of a call."""
        k, n = self.k, self.n
        block_step = k.const(I64, self.lanes) if self.code.x.kind == "rows" else n["x_block"]
        with k.loop("unit", begin * n["chunk_units"], k.least(end * n["chunk_units"], n["units"])) as unit:
            number, slow = unit % n["blocks"], unit // n["blocks"]
            rows, image = slow % n["row_chunks"], slow // n["row_chunks"]
            x = self.x.offset(self.pointers["x"], image * n["x_image"] + number * block_step + n["x_first"])
            to, left = self.results.start(self.pointers, image, None, number), n["channels"] - number * self.lanes
            first = rows * n["chunk_rows"]
            with k.loop("row", first, k.least(first + n["chunk_rows"], n["rows"])) as row:
                start = row_start(k, self.pointers, row, n["x_row"])
                self._row(row, self.x.offset(x, start), self.results.row(to, row), left)

    def _row(self, row: Value, x: Value, to: Spots, left: Value) -> None:
        """Emit the tiles along one row. left: channels from the first one of the vector on."""
        k, n, pixels = self.k, self.n, self.code.results.pixels
        bounds, divided = (row_range(k, self.pointers[name], row) for name in ("row_table", "divided_rows"))
        planes, counted = plane_range(k, self.pointers, row), divided[1] - divided[0]
        if "divided_planes" in self.pointers:
            first, last = row_range(k, self.pointers["divided_planes"], row)
            counted = counted * (last - first)
        columns, end = self.code.columns, k.const(I64, pixels)
        if columns is None:
            with k.loop("pixel", 0, n["width"]) as column:
                at, here = self.x.offset(x, column * n["column_step"] * self.pixel), self.results.column(to, column)
                self.results.finish([self._wide(at, column, planes, bounds, counted, left)], here, end, left)
            return
        with k.loop("tile", 0, n["tiles"]) as number:
            column, before = tile_start(k, number, pixels, n["width"])
            here, step = self.results.column(to, column), columns.stride
            at = self.x.offset(x, column * step * self.pixel)
            in_image = Border(k, columns, column * step - n["left"], n["x_width"], self.outside)
            in_divided = Border(k, columns, column * step - n["divided_left"], n["divided_width"], 0.0)

            def finish(load: Load) -> None:
                values = self._tile(at, columns, planes, bounds, in_image.loads(load))
                if self.code.kind == "average":
                    taps = self._taps_of_pixels(columns, counted, in_divided)
                    values = [value / each for value, each in zip(values, taps, strict=True)]
                self.results.finish(values, here, end, left, before)

            if self.code.x.kind == "blocks":
                finish(self.x.load)
                return
            few = left < self.lanes  # the last vector has fewer lanes than are safe to read
            with k.when(few, "few"):
                finish(lambda address: self.x.load_first(address, left))
            with k.when(few ^ k.const(few.type, 1), "many"):
                finish(self.x.load)

    def _tile(self, x: Value, columns: Columns, planes: Bounds, bounds: Bounds, load: ColumnLoad) -> list[Value]:
        """Emit the maximum or the sum of each pixel's window. load: reads a column at an address.

        planes, bounds: of the window's planes, and of the rows of each, that lie inside of x.
        """
        k = self.k
        windows = [columns.of_pixel(p) for p in range(columns.pixels)]
        each = sorted({column for window in windows for column in window})
        with k.fold("plane", *planes, 1, [self.start] * len(each)) as over:
            x = self._at_plane(over.index, x)
            with k.fold("kr", *bounds, 1, over.values) as fold:
                at = self.x.offset(x, fold.index * self.n["x_kernel_row"])
                fold.values = [
                    self._combine(value, load(self.x.offset(at, self.pixel * column), column))
                    for value, column in zip(fold.values, each, strict=True)
                ]
            over.values = fold.values
        taken = dict(zip(each, over.values, strict=True))
        return [self._combined([taken[column] for column in window]) for window in windows]

    def _at_plane(self, plane: Value, x: Value) -> Value:
        """Return the address that a plane of the window reads, from that of the first one."""
        return x if plane.known == 0 else self.x.offset(x, plane * self.n["x_kernel_plane"])

    def _taps_of_pixels(self, columns: Columns, rows: Value, divided: Border) -> list[Value]:
        """Return the number of taps that count for each pixel's average. rows: kernel rows that count."""
        k, found = self.k, []
        all_inside = self._taps(rows * columns.count)
        for p in range(columns.pixels):
            edge = [column for column in columns.of_pixel(p) if columns.may_be_outside(column)]
            if not edge:
                found.append(all_inside)
                continue
            count = k.const(I64, columns.count - len(edge))
            for column in edge:
                count = count + k.convert("zext", divided.is_inside(column), I64)
            found.append(self._taps(rows * count))
        return found

    def _wide(self, x: Value, column: Value, planes: Bounds, bounds: Bounds, counted: Value, left: Value) -> Value:
        """Emit the result of one pixel whose window has more columns than there are accumulators."""
        k, n, several = self.k, self.n, self.code.accumulators
        first, last = self._columns_inside(column, n["left"], n["x_width"])
        step, whole = n["column_dilation"] * self.pixel, first + (last - first) // several * several
        lanes = k.least(left, k.const(I64, self.lanes))

        def load(at: Value, tap: Operand) -> Value:
            address = self.x.offset(at, k.coerce(tap, I64) * step)
            return self.x.load(address) if self.code.x.kind == "blocks" else self.x.load_first(address, lanes)

        with k.fold("plane", *planes, 1, [self.start] * several) as over:
            x = self._at_plane(over.index, x)
            with k.fold("kr", *bounds, 1, over.values) as fold:
                at = self.x.offset(x, fold.index * n["x_kernel_row"])
                with k.fold("kc", first, whole, several, fold.values) as taps:
                    taps.values = [self._combine(value, load(at, taps.index + tap)) for tap, value in enumerate(taps.values)]
                with k.fold("rest", whole, last, 1, taps.values[:1]) as rest:
                    rest.values = [self._combine(rest.values[0], load(at, rest.index))]
                fold.values = [rest.values[0], *taps.values[1:]]
            over.values = fold.values
        pooled = self._combined(over.values)
        if self.code.kind == "max":
            return pooled
        first, last = self._columns_inside(column, n["divided_left"], n["divided_width"])
        return pooled / self._taps(counted * (last - first))

    def _columns_inside(self, column: Value, left: Value, width: Value) -> tuple[Value, Value]:
        """Return the first kernel column of an output that lies inside a plane, and one after the last."""
        k, n = self.k, self.n
        dilation, zero = n["column_dilation"], k.const(I64, 0)
        start = column * n["column_step"] - left
        high = k.least(k.most(width - 1 + dilation - start, zero) // dilation, n["kernel_columns"])
        return k.least(k.most(zero - start + (dilation - 1), zero) // dilation, high), high

    def _taps(self, count: Value) -> Value:
        """Return a number of taps in every lane, 1 for none: all of a dilated window may lie in the padding, and add up to 0."""
        k = self.k
        return k.splat(k.convert("sitofp", k.most(count, k.const(I64, 1)), F32), k.f32)

    def _combine(self, a: Value, b: Value) -> Value:
        return self.k.maximum(a, b) if self.code.kind == "max" else a + b

    def _combined(self, values: Sequence[Value]) -> Value:
        """Combine all of them, by halves."""
        if len(values) == 1:
            return values[0]
        half = len(values) // 2
        return self._combine(self._combined(values[:half]), self._combined(values[half:]))
