"""GridSample over images: each output reads the pixels around a position that a grid holds. Lanes are channels.

    for each chunk = (image, rows of the output):
        for each row, for each pixel of it:
            offsets, weights = the taps around grid[pixel]           scalars; taps outside of the image weigh nothing
            for each block of one vector of channels:
                y = Σ weight · x[offset]

The code is decided by how many taps there are along an axis and what lies outside of the image; sizes and strides are numbers.
Every offset lies inside of the image, whatever the grid holds. What a tap without weight would read is not read, so that an
infinite pixel beside it adds nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Literal

from kernels.native.emit.builder import Function, Value
from kernels.native.emit.kernel import Bounds, NativeKernel, emitted, kernel_name
from kernels.native.emit.types import F32, F64, I64
from kernels.native.errors import EmitError
from kernels.native.memory.image import Image
from kernels.native.memory.view import View
from kernels.native.target.isa import Isa
from kernels.record import record
from kernels.size import hint

CHUNK_READS = 4096  # vectors read by one chunk: about 2 µs
_TAPS = {"nearest": 1, "linear": 2, "cubic": 4}
_FAR = 2.0**30  # infinite and undefined positions are taken there
_CUBIC_A = -0.75


@record
class GridSample:
    """x, y: images in blocks of one vector. grid: (n, rows, columns, 2), the column first, from -1 to 1 over the image.

    outside: what positions beyond the image read. aligned: whether -1 and 1 are the centres of the outermost pixels.
    """

    x: Image
    y: Image
    grid: View
    mode: Literal["nearest", "linear", "cubic"] = "linear"
    outside: Literal["zeros", "border", "reflection"] = "zeros"
    aligned: bool = False


def emit_grid_sample(what: GridSample, isa: Isa) -> NativeKernel:
    """Emit the kernel, with the arguments "x", "grid" and "y".

    Raises EmitError for images that are not in blocks of one vector.
    """
    x, y = what.x, what.y
    if x.block != isa.lanes or y.block != isa.lanes:
        raise EmitError(f"grid sample: images have blocks of {x.block} and {y.block} channels, need {isa.lanes}")
    row_reads = hint(y.width) * hint(y.blocks) * _TAPS[what.mode] ** 2
    rows = max(1, min(hint(y.height), CHUNK_READS // row_reads))
    row_chunks = -(-y.height // rows)
    code = _Code(what.mode, what.outside, what.aligned)
    numbers = {
        "row_chunks": row_chunks, "chunk_rows": rows, "rows": y.height, "columns": y.width, "blocks": y.blocks,
        "height": x.height, "width": x.width,
        "x_image": x.n_stride, "x_block": x.block_stride, "x_row": x.y_stride, "x_pixel": x.x_stride,
        "y_image": y.n_stride, "y_block": y.block_stride, "y_row": y.y_stride, "y_pixel": y.x_stride,
        **dict(zip(("grid_image", "grid_row", "grid_pixel", "grid_axis"), what.grid.strides, strict=True)),
    }  # fmt: skip

    def body(k: Function, pointers: Mapping[str, Value], sizes: Mapping[str, Value], chunks: Bounds) -> None:
        _GridSampleEmitter(k, code, sizes, pointers).emit(*chunks)

    words = (what.outside, *(("aligned",) if what.aligned else ()))
    name = kernel_name(f"f32_grid_{what.mode}_1x{isa.lanes}", code, isa, words)
    return emitted(isa, name, ("x", "grid", "y"), y.batch * row_chunks, body, numbers)


@record
class _Code:
    """All that decides the code."""

    mode: Literal["nearest", "linear", "cubic"]
    outside: Literal["zeros", "border", "reflection"]
    aligned: bool


@record
class _Tap:
    """A pixel along one axis, and its weight, both fp32 scalars but for the index."""

    index: Value
    weight: Value


class _GridSampleEmitter:
    """Emits the code; the methods are the loops of the module docstring, from the outside in."""

    def __init__(self, k: Function, code: _Code, n: Mapping[str, Value], pointers: Mapping[str, Value]) -> None:
        self.k, self.code, self.n, self.pointers = k, code, n, pointers

    def emit(self, begin: Value, end: Value) -> None:
        """Emit the loop over the chunks of a call."""
        k, n = self.k, self.n
        with k.loop("chunk", begin, end) as chunk:
            image, first = chunk // n["row_chunks"], chunk % n["row_chunks"] * n["chunk_rows"]
            bases = {name: k.offset(self.pointers[name], image * n[f"{name}_image"]) for name in ("x", "grid", "y")}
            last = k.least(first + n["chunk_rows"], n["rows"])
            with k.loop("row", first, last) as row, k.loop("column", 0, n["columns"]) as column:
                at = k.offset(bases["grid"], row * n["grid_row"] + column * n["grid_pixel"])
                to = k.offset(bases["y"], row * n["y_row"] + column * n["y_pixel"])
                self._pixel(bases["x"], at, to)

    def _pixel(self, x: Value, grid: Value, y: Value) -> None:
        """Emit one pixel of all channels."""
        k, n = self.k, self.n
        across = self._taps(k.load(F32, grid), n["width"])
        down = self._taps(k.load(F32, grid, n["grid_axis"]), n["height"])
        nothing = k.module.table(k, "nothing", F32, [0.0] * k.isa.lanes)
        places = []
        for row, column in itertools.product(down, across):
            weight = row.weight * column.weight
            weighs = k.compare("ne", weight, 0.0)
            address = k.offset(x, row.index * n["x_row"] + column.index * n["x_pixel"])
            step = k.select(weighs, n["x_block"], k.const(I64, 0))
            places.append((k.select(weighs, address, nothing), step, weight))
        with k.loop("block", 0, n["blocks"]) as block:
            total = k.zero(k.f32)
            for address, step, weight in places:
                total = k.fma(k.splat(weight, k.f32), k.load(k.f32, k.offset(address, block * step)), total)
            k.store(total, k.offset(y, block * n["y_block"]))

    # Taps along one axis; all values are scalars

    def _taps(self, place: Value, size: Value) -> Sequence[_Tap]:
        """Return the pixels that a number of the grid reads along an axis of that size."""
        k, code = self.k, self.code
        extent = k.convert("sitofp", size, F32)
        unit = self._within(place, _FAR) + 1.0
        position = unit * 0.5 * (extent - 1.0) if code.aligned else (unit * extent - 1.0) * 0.5
        position = self._within(position, _FAR)
        if code.mode != "cubic":
            position = self._inside(position, extent)
        first = k.round_even(position) if code.mode == "nearest" else k.floor(position)
        t = position - first
        if code.mode == "nearest":
            return [self._tap(first, k.const(F32, 1.0), extent, size)]
        if code.mode == "linear":
            return [self._tap(first, 1.0 - t, extent, size), self._tap(first + 1.0, t, extent, size)]
        return [self._tap(first + offset, self._cubic(k.abs(t - offset)), extent, size) for offset in (-1.0, 0.0, 1.0, 2.0)]

    def _within(self, x: Value, bound: float) -> Value:
        """Return a number within [-bound, bound]; -bound for NaN."""
        k = self.k
        x = k.select(k.compare("gt", x, -bound), x, k.const(F32, -bound))
        return k.select(k.compare("lt", x, bound), x, k.const(F32, bound))

    def _inside(self, position: Value, extent: Value) -> Value:
        """Bring a position that lies beyond the image into it; for zeros it stays. An unaligned image ends half a pixel out."""
        k, code = self.k, self.code
        if code.outside == "zeros":
            return position
        low, high = (k.const(F32, 0.0), extent - 1.0) if code.aligned else (k.const(F32, -0.5), extent - 0.5)
        beyond = k.compare("lt", position, low) | k.compare("gt", position, high)
        if code.outside == "border":
            moved = k.at_most(k.at_least(position, 0.0), extent - 1.0)
        else:
            moved = self._reflected(position, low, high)
        return k.select(beyond, moved, position)

    def _reflected(self, position: Value, low: Value, high: Value) -> Value:
        """Fold a position at both borders until it lies between them; in fp64, since positions may be far."""
        k = self.k
        wide, start, end = (k.convert("fpext", value, F64) for value in (position, low, high))
        extent = end - start
        period = k.select(k.compare("gt", extent, 0.0), extent * 2.0, k.const(F64, 1.0))
        offset = k.abs(wide - start)
        offset = offset - k.floor(offset / period) * period
        folded = start + k.select(k.compare("lt", period - offset, offset), period - offset, offset)
        return k.convert("fptrunc", k.select(k.compare("gt", extent, 0.0), folded, start), F32)

    def _tap(self, index: Value, weight: Value, extent: Value, size: Value) -> _Tap:
        """Return a tap whose index lies inside of the image; what lies outside weighs nothing where that is zeros."""
        k, code = self.k, self.code
        if code.outside == "zeros":
            beyond = k.compare("lt", index, 0.0) | k.compare("ge", index, extent)
            weight = k.select(beyond, k.const(F32, 0.0), weight)
        elif code.outside == "reflection":
            index = k.intrinsic("trunc", F32, self._inside(index, extent))
        whole = k.convert("fptosi", index, I64)
        return _Tap(k.most(k.least(whole, size - 1), k.const(I64, 0)), weight)

    def _cubic(self, distance: Value) -> Value:
        """Return the weight of a tap at a distance of up to 2 pixels, as OpenCV and PyTorch do."""
        k, a = self.k, _CUBIC_A
        near = (distance * (a + 2) - (a + 3)) * distance * distance + 1.0
        far = ((distance * a - 5 * a) * distance + 8 * a) * distance - 4 * a
        return k.select(k.compare("le", distance, 1.0), near, far)
