"""The code of direct convolutions and products with packed weights: one register tile, whose surroundings are data.

    for each chunk = (image, group, block of output channels, block of rows):
        for each row of the output, for each tile of P pixels along it:
            from = where the tile's pixels lie in x; at the border, a copy of them with zeros around
            acc[P][V] = bias
            for each entry of the table that lies inside the image:                 a kernel tap and a run of input channels
                for each channel of the run:
                    acc[p][v] += from[entry + pixel p + channel] · w[vector v]      w is read from end to end
            y = epilogue(acc)

What decides the code is a `ConvCode`: the tile, how channels lie, and the epilogue. Sizes, strides, padding, dilations, groups
and the window come as numbers and as the table, so that one kernel serves every convolution of its kind. The last tile of a row
may have fewer pixels and the last block fewer channels: it computes all the same, and stores only what there is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from kernels.expression import FLOAT, Expression
from kernels.native.emit.builder import Function, Operand, Value
from kernels.native.emit.epilogue import Epilogue
from kernels.native.emit.expression import evaluate, from_memory, is_long, memory_type
from kernels.native.emit.types import I32, I64
from kernels.native.errors import EmitError
from kernels.native.memory.image import Image
from kernels.spec import DType

Numbers = Mapping[str, Value]
ENTRY_COUNT_SHIFT = 32  # of a table's word: the offset in elements is below, the channels of the run above


@dataclass(frozen=True, slots=True)
class Channels:
    """How a kernel reaches the channels and pixels of an image.

    kind: "blocks" of one vector of channels; "rows": all channels of a pixel side by side; "planes": each channel apart from the
    others; "one": one element serves all channels. pixel: elements from one of a tile's pixels to the next; None where the kernel
    reads that when it runs.
    """

    kind: Literal["blocks", "rows", "planes", "one"]
    pixel: int | None

    @staticmethod
    def of(image: Image, lanes: int, step: int = 1) -> Channels:
        """Return how an image's channels lie. step: columns from one pixel of a tile to the next."""
        if image.block == lanes:
            return Channels("blocks", image.x_stride * step)
        if image.contiguous_channels:
            return Channels("rows", None)
        if image.one_for_all_channels:
            return Channels("one", None)
        if image.block == 1:
            return Channels("planes", step if image.x_stride == 1 else None)
        raise EmitError(f"conv: blocks of {image.block} channels, need {lanes}, all of them, or one")

    def __str__(self) -> str:
        return self.kind if self.pixel is None else f"{self.kind}{self.pixel}"


@dataclass(frozen=True, slots=True)
class ConvCode:
    """All that decides the code."""

    pixels: int
    vectors: int
    x: Channels
    y: Channels
    operands: tuple[Channels, ...]
    bias: bool
    expression: Expression

    @staticmethod
    def of(pixels: int, vectors: int, x: Channels, y: Image, epilogue: Epilogue[Image], lanes: int) -> ConvCode:
        """Return the code for an output and an epilogue that lie so. Raises EmitError for layouts that cannot be written."""
        into = Channels.of(y, lanes)
        if into.kind not in {"blocks", "rows"}:
            raise EmitError(f"conv: y has blocks of {y.block} channels, a tile writes vectors of {lanes}")
        operands = tuple(Channels.of(image, lanes) for image in epilogue.operands)
        if any(each.kind == "planes" for each in operands):
            raise EmitError("epilogue: an operand has its channels apart, need vectors of them or one for all")
        return ConvCode(pixels, vectors, x, into, operands, epilogue.bias, epilogue.expression)


@dataclass(frozen=True, slots=True)
class _Spot:
    """Where the output or an operand is written or read: an address, and how far vectors and pixels lie apart there."""

    channels: Channels
    dtype: DType
    address: Value
    vector: Operand
    pixel: Operand

    def move(self, k: Function, elements: Operand) -> _Spot:
        return replace(self, address=k.offset(self.address, elements, memory_type(self.dtype)))

    def at(self, k: Function, pixel: Operand, vector: Operand) -> Value:
        """Return the address of a vector of a pixel."""
        along = k.coerce(pixel, I64) * self.pixel + k.coerce(vector, I64) * self.vector
        return k.offset(self.address, along, memory_type(self.dtype))

    def load(self, k: Function, pixel: Operand, vector: Operand, lanes: Value | None) -> Value:
        """Read a vector; lanes: how many of it there are, None for all."""
        kind, at = memory_type(self.dtype).by(k.isa.lanes), self.at(k, pixel, vector)
        if self.channels.kind == "one":
            return from_memory(k, k.broadcast(kind, at), self.dtype)
        return from_memory(k, k.load(kind, at) if lanes is None else k.load_first(kind, at, lanes), self.dtype)


class ConvEmitter:
    """Emits the code; the methods are the loops of the module's docstring, from the outside in.

    n: the numbers by name, as `kernels.native.families.conv` fills them.
    """

    def __init__(self, k: Function, code: ConvCode, n: Numbers, table: Value, scratch: Value) -> None:
        self.k, self.code, self.n, self.table, self.lanes = k, code, n, table, k.isa.lanes
        self.buffer, self.copy = scratch, k.offset(scratch, code.pixels * code.vectors * self.lanes)

    def emit(self, pointers: Mapping[str, Value], begin: Value, end: Value) -> None:
        """Emit the loop over the chunks of a call."""
        k, n, code = self.k, self.n, self.code
        dtypes = (FLOAT, *code.expression.operands[1:])
        names = ("y", *(f"r{at}" for at in range(len(code.operands))))
        spots = [self._spot(*each, pointers) for each in zip(names, (code.y, *code.operands), dtypes, strict=True)]
        inner, outer = (k.select(k.compare("ne", n["weights_inner"], 0), *pair) for pair in (
            (n["blocks"], n["row_chunks"]), (n["row_chunks"], n["blocks"]),
        ))  # fmt: skip
        with k.loop("chunk", begin, end) as chunk:
            slow, fast = chunk // inner, chunk % inner
            image_group, middle = slow // outer, slow % outer
            weights_inner = k.compare("ne", n["weights_inner"], 0)
            number, rows = k.select(weights_inner, fast, middle), k.select(weights_inner, middle, fast)
            image, group = image_group // n["groups"], image_group % n["groups"]
            x = k.offset(pointers["x"], image * n["x_image"] + group * n["x_group"] + n["x_first"])
            block = group * n["blocks"] + number
            w, b = (
                k.offset(pointers["w"], block * n["block_weights"]),
                k.offset(pointers["b"], block * (code.vectors * self.lanes)),
            )
            to = [
                spot.move(k, image * n[f"{name}_image"] + group * n[f"{name}_group"] + number * n[f"{name}_block"])
                for name, spot in zip(names, spots, strict=True)
            ]
            left = n["outputs"] - number * (code.vectors * self.lanes)  # channels from this block on
            first = rows * n["chunk_rows"]
            with k.loop("row", first, k.least(first + n["chunk_rows"], n["rows"])) as row:
                moved = [spot.move(k, row * n[f"{name}_row"]) for name, spot in zip(names, to, strict=True)]
                self._row(row, k.offset(x, row * n["x_row"]), w, b, moved, left)

    def _spot(self, name: str, channels: Channels, dtype: DType, pointers: Mapping[str, Value]) -> _Spot:
        vector = self.k.const(I64, self.lanes) if channels.kind == "rows" else self.n[f"{name}_vector"]
        pixel = self.n[f"{name}_pixel"] if channels.pixel is None else self.k.const(I64, channels.pixel)
        return _Spot(channels, dtype, pointers[name], vector, pixel)

    def _row(self, row: Value, x: Value, w: Value, b: Value, to: Sequence[_Spot], left: Value) -> None:
        """Emit the tiles along one row. x: the address of the row's first column, which may lie outside of the image."""
        k, n, code = self.k, self.n, self.code
        width = k.least(n["row_pixels"], n["all_pixels"] - row * n["row_pixels"])
        x_width = k.least(n["x_width"], n["x_all"] - row * n["x_width"])
        low, high = self._kernel_rows(row)
        w = k.offset(w, low * n["row_weights"])
        with k.loop("tile", 0, width, code.pixels) as column:
            start = column * n["column_step"] - n["left"]
            outside = (start < 0) | (start + n["reach"] > x_width)
            at = k.offset(x, column * self._x_pixel())
            with k.when(outside, "border"):
                self._copy(at, start, x_width, low, high)
            base = k.select(outside, self.copy, at)
            entries = k.select(outside, k.offset(self.table, n["entries"], I64), self.table)
            pixel = self._x_pixel() if code.x.pixel is not None else k.select(outside, n["copy_pixel"], n["x_pixel"])
            first = k.offset(entries, low * n["row_entries"], I64)
            values = self._multiply(base, first, (high - low) * n["row_entries"], pixel, w, b)
            here = [spot.move(k, column * spot.pixel) for spot in to]
            self._finish(values, here, k.least(width - column, k.const(I64, code.pixels)), left)

    def _x_pixel(self) -> Value:
        pixel = self.code.x.pixel
        return self.n["x_pixel"] if pixel is None else self.k.const(I64, pixel)

    def _kernel_rows(self, row: Value) -> tuple[Value, Value]:
        """Return the first kernel row that lies inside the image for an output row, and one after the last."""
        k, n = self.k, self.n
        start = row * n["row_step"] - n["top"]
        zero, dilation = k.const(I64, 0), n["row_dilation"]
        before = k.most(zero - start + (dilation - 1), zero)
        after = k.most(n["x_rows"] - 1 + dilation - start, zero)
        high = k.least(after // dilation, n["kernel_rows"])
        return k.least(before // dilation, high), high

    def _multiply(self, base: Value, entries: Value, count: Value, pixel: Value, w: Value, b: Value) -> list[Value]:
        """Emit the accumulators of a tile: the bias, and the products of all entries added to it."""
        k, code = self.k, self.code
        zero = k.zero(k.f32)
        starts = [k.load(k.f32, b, v * self.lanes) if code.bias else zero for v in range(code.vectors)]
        with k.fold("entry", 0, count, 1, [*starts * code.pixels, w]) as taps:
            word = k.offset(entries, taps.index, I64)
            along = k.convert("sext", k.load(I32, word), I64)
            run = k.convert("zext", k.load(I32, word, 1), I64)
            at = k.offset(base, along)
            with k.fold("channel", 0, run, 1, taps.values, runs=True) as fold:
                fold.values = self._turn(k.offset(at, fold.index), pixel, fold.values)
            taps.values = fold.values
        return taps.values[:-1]

    def _turn(self, x: Value, pixel: Value, values: Sequence[Value]) -> list[Value]:
        """Emit the multiply–adds of one channel. Of several, LLVM would load all weights first, and spill."""
        k, code = self.k, self.code
        *sums, w = values
        weights = [k.load(k.f32, w, v * self.lanes) for v in range(code.vectors)]
        for p in range(code.pixels):
            one = k.broadcast(k.f32, x, pixel * p)
            for v in range(code.vectors):
                sums[p * code.vectors + v] = k.fma(one, weights[v], sums[p * code.vectors + v])
        return [*sums, k.offset(w, code.vectors * self.lanes)]

    # The border

    def _copy(self, at: Value, start: Value, x_width: Value, low: Value, high: Value) -> None:
        """Emit a copy of the pixels that a tile reads, with zeros for those outside of the image.

        at: the address of column `start`. A row of the copy has `copy_columns` pixels for each kernel row and block of channels.
        """
        k, n, zero = self.k, self.n, self.k.const(I64, 0)
        first = k.least(k.most(zero - start, zero), n["copy_columns"])
        last = k.most(k.least(x_width - start, n["copy_columns"]), first)
        with k.loop("copy.row", low, high) as row, k.loop("copy.block", 0, n["x_blocks"]) as block:
            source = k.offset(at, row * n["x_kernel_row"] + block * n["x_block"])
            target = k.offset(self.copy, (row * n["x_blocks"] + block) * n["copy_row"])
            for begin, end in ((zero, first), (last, n["copy_columns"])):
                with k.loop("copy.zero", begin, end) as column:
                    self._copy_pixel(None, k.offset(target, column * n["copy_column"]))
            with k.loop("copy.pixel", first, last) as column:
                self._copy_pixel(k.offset(source, column * n["x_column"]), k.offset(target, column * n["copy_column"]))

    def _copy_pixel(self, source: Value | None, target: Value) -> None:
        """Copy the channels of a pixel that lie side by side, or zeros."""
        k, kind = self.k, self.code.x.kind
        if kind == "planes":
            k.store(k.load(k.f32.element, source) if source else k.zero(k.f32.element), target)
        elif kind == "blocks":
            k.store(k.load(k.f32, source) if source else k.zero(k.f32), target)
        else:
            with k.loop("copy.channel", 0, self.n["run"], self.lanes) as channel:
                some = k.least(self.n["run"] - channel, k.const(I64, self.lanes))
                k.store(k.load_first(k.f32, k.offset(source, channel), some) if source else k.zero(k.f32), target, channel)

    # The end of a tile

    def _finish(self, values: Sequence[Value], to: Sequence[_Spot], pixels: Value, left: Value) -> None:
        """Emit the epilogue and the stores of a tile. pixels: how many of it there are. left: channels from its first one on.

        A whole tile is finished in registers, unless the epilogue is long. Others go through memory, vector by vector.
        """
        k, code = self.k, self.code
        most = k.const(I64, code.pixels)
        in_rows = any(spot.channels.kind == "rows" for spot in to)  # others have memory for all lanes of a block
        some_lanes = left if in_rows else (left + (self.lanes - 1)) // self.lanes * self.lanes
        whole = k.compare("ge", some_lanes, code.vectors * self.lanes)
        if is_long(code.expression):
            with k.when(whole, "whole"):
                self._through_memory(values, to, pixels, None)
        else:
            whole = whole & k.compare("eq", pixels, most)
            with k.when(whole, "whole"):
                for at, value in enumerate(values):
                    self._store(value, to, *divmod(at, code.vectors))
        with k.when(whole ^ k.const(whole.type, 1), "part"):
            self._through_memory(values, to, pixels, left)

    def _through_memory(self, values: Sequence[Value], to: Sequence[_Spot], pixels: Value, left: Value | None) -> None:
        """Emit a loop that finishes the vectors of a tile. left: channels from the first one on, None for whole vectors."""
        k, code = self.k, self.code
        for number, value in enumerate(values):
            k.store(value, self.buffer, number * self.lanes)
        with k.loop("part.pixel", 0, pixels) as p:
            mine = k.offset(self.buffer, p * (code.vectors * self.lanes))
            if left is None:
                for v in range(code.vectors):
                    self._store(k.load(k.f32, mine, v * self.lanes), to, p, v)
                return
            with k.loop("part.vector", 0, self._vectors(left)) as vector:
                first = vector * self.lanes
                self._store(k.load(k.f32, mine, first), to, p, vector, k.least(left - first, k.const(I64, self.lanes)))

    def _vectors(self, left: Value) -> Value:
        return self.k.least((left + (self.lanes - 1)) // self.lanes, self.k.const(I64, self.code.vectors))

    def _store(self, value: Value, to: Sequence[_Spot], pixel: Operand, vector: Operand, lanes: Value | None = None) -> None:
        """Apply the epilogue to one vector and store it. lanes: how many of it there are; None for all."""
        k, (y, *operands) = self.k, to
        loads = [partial(spot.load, k, pixel, vector, lanes) for spot in operands]
        result = evaluate(k, self.code.expression, [lambda: value, *loads], self.lanes)
        if lanes is None or y.channels.kind == "blocks":  # a block has memory for all of its lanes
            k.store(result, y.at(k, pixel, vector))
        else:
            k.store_first(result, y.at(k, pixel, vector), lanes)
