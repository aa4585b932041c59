"""The code of direct convolutions and products with packed weights: one register tile, whose surroundings are data.

    for each chunk = (image, group, block of output channels, block of rows):         of volumes: rows of all planes
        for each row of the output, for each tile of P pixels along it:
            from = where the tile's pixels lie in x; at the border, a copy of them with zeros around
            acc[P][V] = bias
            for each plane of the kernel that lies inside the volume:             one, of images
                for each entry of a table that lies inside the plane:             a kernel tap and a run of input channels
                    for each channel of the run:                                      of each group, where groups share vectors
                        acc[p][v] += from[entry + pixel p + channel] · w[vector v]    w is read from end to end
            y = epilogue(acc)

What decides the code is a `ConvCode`: the tile, how channels lie, and the epilogue. Sizes, strides, padding, dilations, groups
and the window come as numbers and tables, so that one kernel serves every convolution of its kind. The last tile of a row
may have fewer pixels and the last block fewer channels: it computes all the same, and stores only what there is.
"""

from __future__ import annotations

from collections.abc import Mapping

from kernels.native.emit.builder import Function, Value
from kernels.native.emit.geometry import plane_range, row_range, row_start
from kernels.native.emit.kernel import SCRATCH, Bounds
from kernels.native.emit.product import multiply_channel, multiply_groups
from kernels.native.emit.results import Channels, Numbers, Results, ResultsEmitter, Spots
from kernels.native.emit.types import I8, I32, I64, Type
from kernels.native.emit.words import F32_WORDS, Words
from kernels.record import record

ENTRY_COUNT_SHIFT = 32  # of a table's word: the offset in elements is below, the channels of the run above


@record
class ConvCode:
    """All that decides the code. x: how the channels and the pixels of a tile lie in x. within: as that of `Conv`.

    words: what is multiplied; channels of x, and what lies between its elements, count in words.
    """

    x: Channels
    results: Results
    within: int = 0
    words: Words = F32_WORDS


class ConvEmitter:
    """Emits the code; the methods are the loops of the module's docstring, from the outside in.

    n: the numbers by name, as `kernels.native.families.conv` fills them.
    """

    def __init__(self, k: Function, code: ConvCode, n: Numbers, pointers: Mapping[str, Value]) -> None:
        self.k, self.x, self.n, self.pointers, self.lanes = k, code.x, n, pointers, k.isa.lanes
        self.within, self.words = code.within, code.words
        self.vector = code.words.type(k.isa.lanes)
        self.tile, self.results = code.results, ResultsEmitter(k, code.results, n, pointers[SCRATCH])
        self.copy = k.offset(pointers[SCRATCH], code.results.pixels * code.results.vectors * self.lanes)

    def emit(self, begin: Value, end: Value) -> None:
        """Emit the loop over the chunks of a call."""
        k, n, pointers, size = self.k, self.n, self.pointers, self.tile.vectors * self.lanes
        weights_inner = k.compare("ne", n["weights_inner"], 0)
        inner = k.select(weights_inner, n["blocks"], n["row_chunks"])
        outer = k.select(weights_inner, n["row_chunks"], n["blocks"])
        with k.loop("chunk", begin, end) as chunk:
            slow, fast = chunk // inner, chunk % inner
            image_group, middle = slow // outer, slow % outer
            number, rows = k.select(weights_inner, fast, middle), k.select(weights_inner, middle, fast)
            image, group = image_group // n["groups"], image_group % n["groups"]
            x = k.offset(pointers["x"], image * n["x_image"] + group * n["x_group"] + n["x_first"])
            block = group * n["blocks"] + number
            if self.within:
                x = k.offset(x, number * n["x_vector"])
            w, b = k.offset(pointers["w"], block * n["block_weights"]), k.offset(pointers["b"], block * size)
            to, left = self.results.start(pointers, image, group, number), n["outputs"] - number * size
            first = rows * n["chunk_rows"]
            with k.loop("row", first, k.least(first + n["chunk_rows"], n["rows"])) as row:
                self._row(row, k.offset(x, row_start(k, pointers, row, n["x_row"])), w, b, self.results.row(to, row), left)

    def _row(self, row: Value, x: Value, w: Value, b: Value, to: Spots, left: Value) -> None:
        """Emit the tiles along one row.

        x: the address of the row's first column, which may lie outside of the image. left: channels from the block's first on.
        """
        k, n, pixels = self.k, self.n, self.tile.pixels
        width = k.least(n["row_pixels"], n["all_pixels"] - row * n["row_pixels"])
        x_width = k.least(n["x_width"], n["x_all"] - row * n["x_width"])
        low, high = row_range(k, self.pointers["row_table"], row)
        planes = plane_range(k, self.pointers, row)
        block, w, bias = w, k.offset(w, low * n["row_weights"]), b
        if "b_low" in n:  # less for the kernel rows that lie outside, whose pixels are not the zero point
            bias = k.offset(b, low * n["b_low"] + high * n["b_high"])
        with k.loop("tile", 0, width, pixels) as column:
            tile = row * n["row_tiles"] + column // pixels
            ahead = k.offset(k.offset(block, n["block_weights"]), tile * n["ahead_tile"], I8)
            start = column * n["column_step"] - n["left"]
            outside = (start < 0) | (start + n["reach"] > x_width)
            at = k.offset(x, column * self._x_pixel())
            with k.when(outside, "border"):
                self._copy(at, start, x_width, planes, (low, high))
            base = k.select(outside, self.copy, at)
            entries = k.select(outside, self.pointers["copy_entries"], self.pointers["entries"])
            pixel = self._x_pixel() if self.x.pixel is not None else k.select(outside, n["copy_pixel"], n["x_pixel"])
            first = k.offset(entries, low * n["row_entries"], I64)
            count = (high - low) * n["row_entries"]
            values = self._multiply(base, planes, first, count, pixel, w, ahead, bias)
            here = self.results.column(to, column)
            self.results.finish(values, here, k.least(width - column, k.const(I64, pixels)), left)

    def _x_pixel(self) -> Value:
        pixel = self.x.pixel
        return self.n["x_pixel"] if pixel is None else self.k.const(I64, pixel)

    def _by_plane(self, plane: Value, name: str) -> Value:
        """Return the distance from the kernel's first plane to another one, in units that the number of this name counts."""
        return plane * (plane if plane.known == 0 else self.n[name])

    def _multiply(
        self, base: Value, planes: Bounds, entries: Value, count: Value, pixel: Value, w: Value, ahead: Value, b: Value
    ) -> list[Value]:
        """Emit the accumulators of a tile: the bias, and the products of all entries added to it.

        entries, count, w: of each plane; the addresses are those of the first. ahead: from where weights of the next block are
        prefetched, a share of them by each tile of a block.
        """
        k, code = self.k, self.tile
        zero = k.zero(self.vector)
        starts = [k.load(self.vector, b, v * self.lanes) if code.bias else zero for v in range(code.vectors)]
        with k.fold("plane", *planes, 1, [*starts * code.pixels, ahead]) as over:
            here = k.offset(w, self._by_plane(over.index, "plane_weights"))
            among = k.offset(entries, self._by_plane(over.index, "plane_entries"), I64)
            with k.fold("entry", 0, count, 1, [*over.values[:-1], here, over.values[-1]]) as taps:
                word = k.offset(among, taps.index, I64)
                along = k.convert("sext", k.load(I32, word), I64)
                run = k.convert("zext", k.load(I32, word, 1), I64)
                at, tile = k.offset(base, along), (code.pixels, code.vectors)
                if self.within:
                    ahead_step = self.n["ahead_step"]
                    taps.values = multiply_groups(k, code.pixels, self.within, at, pixel, taps.values, ahead_step, self.words)
                else:
                    with k.fold("channel", 0, run, 1, taps.values, runs=True) as fold:
                        x = k.offset(at, fold.index)
                        values, ahead_step = fold.values, self.n["ahead_step"]
                        if self.x.kind == "planes":
                            values, ahead_step = [*values[:-1], self._soon(at, pixel, taps.index)], k.const(I64, 0)
                        fold.values = multiply_channel(k, tile, x, pixel, values, ahead_step, self.words)
                    taps.values = fold.values
            *sums, _, ahead = taps.values
            over.values = [*sums, ahead]
        return over.values[:-1]

    def _soon(self, at: Value, pixel: Value, entry: Value) -> Value:
        """Return which pixel of planes to prefetch: the first and the last of the next tile in turns, one row further down.

        There are few weights to prefetch where channels are planes, and many pixels, each of which a tile reads once.
        """
        last = pixel * (self.tile.pixels - 1)
        return self.k.offset(at, self.n["x_row"] + pixel * self.tile.pixels + (entry & 1) * last)

    # The border

    def _copy(self, at: Value, start: Value, x_width: Value, planes: Bounds, rows: Bounds) -> None:
        """Emit a copy of the pixels that a tile reads, with zeros for those outside of the image.

        at: the address of column `start`. planes, rows: of the kernel, that lie inside of x. A row of the copy has
        `copy_columns` pixels for each kernel row and block of channels.
        """
        k, n, zero = self.k, self.n, self.k.const(I64, 0)
        first = k.least(k.most(zero - start, zero), n["copy_columns"])
        last = k.most(k.least(x_width - start, n["copy_columns"]), first)
        with (
            k.loop("copy.plane", *planes) as plane,
            k.loop("copy.row", *rows) as row,
            k.loop("copy.block", 0, n["x_blocks"]) as block,
        ):
            along = row * n["x_kernel_row"] + block * n["x_block"] + self._by_plane(plane, "x_kernel_plane")
            source = k.offset(at, along)
            kernel_row = row + self._by_plane(plane, "kernel_rows")
            target = k.offset(self.copy, (kernel_row * n["x_blocks"] + block) * n["copy_row"])
            if self.x.kind == "planes" and self.x.pixel is not None:
                self._copy_columns(source, target, first, last)
            else:
                for begin, end in ((zero, first), (last, n["copy_columns"])):
                    with k.loop("copy.zero", begin, end) as column:
                        self._copy_pixel(None, k.offset(target, column * n["copy_column"]))
                with k.loop("copy.pixel", first, last) as column:
                    self._copy_pixel(k.offset(source, column * n["x_column"]), k.offset(target, column * n["copy_column"]))

    def _copy_columns(self, source: Value, target: Value, first: Value, last: Value) -> None:
        """Copy the columns of a channel that lie side by side, from `first` to before `last`, with zeros around them."""
        k, zero = self.k, self.k.const(I64, 0)
        for begin, end, inside in ((zero, first, False), (first, last, True), (last, self.n["copy_columns"], False)):
            with k.loop("copy.columns", begin, end, self.lanes) as column:
                some = k.least(end - column, k.const(I64, self.lanes))
                value = k.load_first(self.vector, k.offset(source, column), some) if inside else self._padding(self.vector)
                k.store_first(value, k.offset(target, column), some)

    def _copy_pixel(self, source: Value | None, target: Value) -> None:
        """Copy the channels of a pixel that lie side by side, or what stands for zeros."""
        k, kind = self.k, self.x.kind
        if kind == "rows":
            with k.loop("copy.channel", 0, self.n["run"], self.lanes) as channel:
                some = k.least(self.n["run"] - channel, k.const(I64, self.lanes))
                value = k.load_first(self.vector, k.offset(source, channel), some) if source else self._padding(self.vector)
                k.store(value, target, channel)
            return
        block = self.words.type(1 if kind == "planes" else self.lanes // self.words.depth)
        k.store(k.load(block, source) if source else self._padding(block), target)

    def _padding(self, kind: Type) -> Value:
        """Return what pads an image: zeros, or words of the zero point."""
        if "padding" not in self.n:
            return self.k.zero(kind)
        return self.k.splat(self.k.convert("trunc", self.n["padding"], kind.element), kind)
