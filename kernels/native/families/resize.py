"""Resizing of images: every row, and every pixel of a row, is a weighted sum of a few of the input's; lanes are channels.

    for each chunk = (image, block of rows, block of V channel vectors):
        for each row of the output:
            separable:  line[column] = Σ row weight · x[row of the tap, column]        once for every column of x, in scratch
            for each pixel along it, P at a time:
                separable:  y = epilogue(Σ column weight · line[column of the tap])
                direct:     y = epilogue(Σ row weight · Σ column weight · x[row of the tap, column of the tap])

Separable reads less where the output is wider than the input or there are many taps, direct where it is narrower, and where one
input row makes an output row. Rows and pixels that lie outside are filled with a number instead.

The code is decided by the tile, the form, how many taps there are where they are few, how channels lie, and the epilogue; all
else is numbers and two tables. A last block of fewer than V vectors is computed one vector at a time.

Table of a side: the range of outputs that lie inside; [output][tap] how far the tap is from the first row or column, in
elements; then [output][tap] weights, two fp32 a word. One look-up serves V vectors, so nearest neighbours are copies whose speed
is bound by their stores at every scale.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

from kernels.expression import FLOAT
from kernels.native.emit.builder import Function, Operand, Value
from kernels.native.emit.epilogue import Epilogue
from kernels.native.emit.expression import is_long
from kernels.native.emit.geometry import even_rows
from kernels.native.emit.kernel import SCRATCH, Bounds, NativeKernel, Table, emitted, kernel_name
from kernels.native.emit.names import name_epilogue, name_layouts
from kernels.native.emit.product import unrolled
from kernels.native.emit.results import Channels, Numbers, Results, ResultsEmitter, Spots, result_numbers
from kernels.native.emit.types import F32, I32, I64
from kernels.native.errors import EmitError
from kernels.native.memory.image import Image
from kernels.native.target.isa import Isa
from kernels.record import record
from kernels.resampling import Pass
from kernels.size import hinted

MOST_TAPS = 8  # looked up once and unrolled; more are a loop
MOST_LOADS = 8  # unrolled in the innermost loop; with 16 the code doubles and is 3 % slower
PIXELS = 4  # at a time at most
CHUNK_CYCLES = 8192  # about 2 µs
LINE_BYTES = 24 << 10  # of scratch that stays in L1 beside what is read and written
RANGE_WORDS = 2  # of a table, before the distances

_Vectors = Callable[[Value], Sequence[Value]]  # the V vectors at an address or a distance


@record
class Side:
    """The resizing of one side: which inputs each output is made of.

    taps: inputs of every output. weighted: whether they have weights; one tap may have none. make: returns these inputs, a pure
    function of `sizes`. Outputs that lie outside must be at the ends.
    """

    taps: int
    weighted: bool
    make: Callable[..., Pass]
    sizes: tuple[int, ...]

    def table(self, step: int) -> Table:
        """Return the table that a kernel reads. step: elements from one row or column of the input to the next."""
        return Table(_Words(self.make), (step, *self.sizes))


@record
class _Words:
    """A pure function of a step and a side's sizes, which returns the words of the side's table."""

    make: Callable[..., Pass]

    def __call__(self, step: int, *sizes: int) -> list[int]:
        side = self.make(*sizes)
        inside = np.flatnonzero(~side.outside)
        begin, end = (int(inside[0]), int(inside[-1]) + 1) if inside.size else (0, 0)
        words: list[int] = [begin, end, *(side.index * step).ravel().tolist()]
        if side.weights is not None:
            weights = side.weights.astype(np.float32).ravel()
            words += np.pad(weights, (0, len(weights) % 2)).view(np.int64).tolist()
        return words


@record
class Resizing:
    """A resizing of an image. fill: the value of outputs that lie outside of the input; None where no output can."""

    x: Image
    y: Image
    rows: Side
    columns: Side
    fill: float | None = None


@record
class ResizeTile:
    """pixels × vectors: worked on at a time. rows: output rows of a chunk. separable: by way of a line of all input columns."""

    pixels: int
    vectors: int
    rows: int
    separable: bool

    def __str__(self) -> str:
        return f"{self.pixels}x{self.vectors}"


def resize_tiles(resizing: Resizing, isa: Isa, limit: int = 6) -> tuple[ResizeTile, ...]:
    """Return the tiles that a port model estimates to be fastest, the best first."""
    return _ranked_tiles(hinted(resizing), isa, limit)


@functools.lru_cache(1024)
def _ranked_tiles(resizing: Resizing, isa: Isa, limit: int) -> tuple[ResizeTile, ...]:
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
    resizing = hinted(resizing)
    taps = resizing.columns.taps * (1 if separable else resizing.rows.taps)
    pixels = max(1, min(pixels, MOST_LOADS // (vectors * taps)))
    tile = ResizeTile(pixels, vectors, 1, separable)
    blocks = -(-resizing.y.channels // (vectors * isa.lanes))
    wanted = int(CHUNK_CYCLES * blocks / _row_cycles(resizing, tile, isa))
    return ResizeTile(pixels, vectors, even_rows(resizing.y.height, wanted), separable)


def _row_cycles(resizing: Resizing, tile: ResizeTile, isa: Isa) -> float:
    """Estimate the cycles of one output row of all channels: two loads, two multiply–adds and one store a cycle.

    Lines that do not stay in L1 take half as long again to store and load.
    """
    rows, columns, total = resizing.rows.taps, resizing.columns.taps, 0.0
    width, x_width, channels = resizing.y.width, resizing.x.width, resizing.y.channels
    looks = columns * (1 + resizing.columns.weighted)
    full, rest = divmod(-(-channels // isa.lanes), tile.vectors)
    for v, count in ((tile.vectors, full), (1, rest)):
        line = 0.0
        if tile.separable:
            spill = 1.5 if 4 * x_width * tile.vectors * isa.lanes > LINE_BYTES else 1.0
            line = spill * x_width * v * max(rows / 2, 1)
            pixel = spill * max((v * columns + looks) / 2, v)
        else:
            pixel = max((v * rows * columns + looks) / 2, v, v * rows * (columns + 1) / 2 if rows > 1 else 0)
        total += count * (line + width * (pixel + 1 / tile.pixels))
    return total


@record
class _Taps:
    """What decides the code of a side. count: inputs of every output, None where the kernel reads that when it runs."""

    count: int | None
    weighted: bool

    @staticmethod
    def of(side: Side) -> _Taps:
        return _Taps(side.taps if side.taps <= MOST_TAPS else None, side.weighted)


@record
class _Code:
    """All that decides the code. fills: whether outputs may lie outside. x: how its channels lie."""

    separable: bool
    rows: _Taps
    columns: _Taps
    fills: bool
    x: Channels
    results: Results

    @property
    def masked(self) -> bool:
        """Whether a last vector has memory for the channels alone that there are, somewhere."""
        return any(each.kind == "rows" for each in (self.x, self.results.y, *self.results.operands))


def emit_resize(resizing: Resizing, tile: ResizeTile, epilogue: Epilogue[Image], isa: Isa) -> NativeKernel:
    """Emit the kernel. Its arguments are "x", those of the epilogue, "y" and "scratch".

    Raises EmitError for images whose channels do not come in vectors, and for a bias.
    """
    _check(resizing, tile, epilogue, isa)
    epilogue.require("resize", FLOAT)
    x, y = resizing.x, resizing.y
    pixels = 1 if is_long(epilogue.expression) else tile.pixels
    results = Results.of(pixels, tile.vectors, y, epilogue, isa.lanes)
    taps = _Taps.of(resizing.rows), _Taps.of(resizing.columns)
    code = _Code(tile.separable, *taps, resizing.fill is not None, Channels.of(x, isa.lanes), results)
    words = (
        "separable" if tile.separable else "direct", name_layouts(x, y), "x".join(str(each.count or "n") for each in taps),
        *name_epilogue(epilogue),
    )  # fmt: skip
    blocks, row_chunks = -(-y.channels // (tile.vectors * isa.lanes)), -(-y.height // tile.rows)
    step = tile.vectors * isa.lanes

    def body(k: Function, pointers: Mapping[str, Value], sizes: Mapping[str, Value], chunks: Bounds) -> None:
        _ResizeEmitter(k, code, sizes, pointers).emit(*chunks)

    return emitted(
        isa,
        kernel_name(f"f32_resize_{pixels}x{step}", code, isa, words),
        ("x", *epilogue.arguments, "y", SCRATCH),
        y.batch * row_chunks * blocks,
        body,
        {"blocks": blocks, "row_chunks": row_chunks, "chunk_rows": tile.rows, **_numbers(resizing, tile, epilogue, isa)},
        {
            "row_table": resizing.rows.table(x.y_stride),
            "column_table": resizing.columns.table(step if tile.separable else x.x_stride),
        },
        4 * x.width * step if tile.separable else 0,
    )


def _numbers(resizing: Resizing, tile: ResizeTile, epilogue: Epilogue[Image], isa: Isa) -> dict[str, int]:
    """Return the numbers that the code reads, by name, but for those of chunks. Strides count elements.

    rows, channels, width: of y. x_width: of x. x_image, x_block, x_vector, x_pixel: between neighbours of each kind in x.
    row_taps, column_taps: of every output. row_weights, column_weights: words of a table before its weights. fill: bits of the
    number that outputs outside are filled with.
    """
    x, y, lanes = resizing.x, resizing.y, isa.lanes
    vector = lanes if x.block > lanes else x.block_stride
    rows, columns = resizing.rows.taps, resizing.columns.taps
    numbers = {
        "rows": y.height, "channels": y.channels, "width": y.width, "x_width": x.width, "x_image": x.n_stride,
        "x_block": tile.vectors * vector, "x_vector": vector, "x_pixel": x.x_stride, "row_taps": rows, "column_taps": columns,
        "row_weights": RANGE_WORDS + y.height * rows, "column_weights": RANGE_WORDS + y.width * columns,
        "fill": int(np.float32(resizing.fill or 0.0).view(np.int32)),
    }  # fmt: skip
    for name, image in (("y", y), *zip(epilogue.arguments, epilogue.operands, strict=True)):
        numbers |= result_numbers(name, image, tile.vectors, lanes, 0)
    return numbers


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
    if Channels.of(x, isa.lanes).kind not in {"blocks", "rows"}:
        raise EmitError(f"resize: x has blocks of {x.block} channels, a tile takes vectors of {isa.lanes}")


@record
class _Group:
    """Some vectors of channels. count: how many. lanes: of the only vector that exist, None for all. x, to: their addresses."""

    count: int
    lanes: Value | None
    x: Value
    to: Spots


class _ResizeEmitter:
    """Emits the code; the methods are the loops of the module docstring, from the outside in."""

    def __init__(self, k: Function, code: _Code, n: Numbers, pointers: Mapping[str, Value]) -> None:
        self.k, self.code, self.n, self.pointers, self.lanes = k, code, n, pointers, k.isa.lanes
        self.tile, self.line = code.results, pointers[SCRATCH]
        self.results = ResultsEmitter(k, code.results, n, self.line)
        self.pixel = n["x_pixel"] if code.x.pixel is None else k.const(I64, code.x.pixel)
        vector = k.const(I64, self.lanes) if code.x.kind == "rows" else n["x_vector"]
        self.vectors = [vector * v for v in range(code.results.vectors)]  # from the first one
        self.step = code.results.vectors * self.lanes  # elements of a column of the line

    def emit(self, begin: Value, end: Value) -> None:
        """Emit the loop over the chunks of a call."""
        k, n, vectors = self.k, self.n, self.tile.vectors
        with k.loop("chunk", begin, end) as chunk:
            number, slow = chunk % n["blocks"], chunk // n["blocks"]
            first, image = slow % n["row_chunks"] * n["chunk_rows"], slow // n["row_chunks"]
            rows = first, k.least(first + n["chunk_rows"], n["rows"])
            x = k.offset(self.pointers["x"], image * n["x_image"] + number * n["x_block"])
            to, left = self.results.start(self.pointers, image, None, number), n["channels"] - number * self.step
            whole, vector = _Group(vectors, None, x, to), self.vectors[1] if vectors > 1 else k.const(I64, 0)
            if vectors == 1 and not self.code.masked:
                self._rows(whole, *rows)
                return
            all_exist = k.compare("ge", left, self.step if self.code.masked else self.step - self.lanes + 1)
            with k.when(all_exist, "whole"):
                self._rows(whole, *rows)
            parts = k.select(all_exist, k.const(I64, 0), (left + (self.lanes - 1)) // self.lanes)
            with k.loop("part", 0, parts) as v:
                some = k.least(left - v * self.lanes, k.const(I64, self.lanes)) if self.code.masked else None
                self._rows(_Group(1, some, k.offset(x, v * vector), [s.move(k, v * s.vector) for s in to]), *rows)

    def _rows(self, group: _Group, first: Value, stop: Value) -> None:
        """Emit the rows of a chunk: the pixels that lie inside are sums, the others are filled."""
        k, n = self.k, self.n
        with k.loop("row", first, stop) as row:
            by_row = self._sum("row", row, group.x)
            to, begin, end, x_width = self.results.row(group.to, row), k.const(I64, 0), n["width"], n["x_width"]
            if self.code.fills:
                begin, end, x_width = self._inside(row)
            if self.code.separable:
                self._line(group, by_row, x_width)
            self._pixels(group, by_row, begin, end, to)
            if self.code.fills:
                self._fill(group, (begin, end), to)

    def _inside(self, row: Value) -> tuple[Value, Value, Value]:
        """Return the range of a row's pixels that lie inside, and how many columns of x they need."""
        k, n, (rows, columns) = self.k, self.n, (self.pointers[name] for name in ("row_table", "column_table"))
        inside = k.compare("ge", row, k.load(I64, rows)) & (row < k.load(I64, rows, 1))
        begin, end = (k.select(inside, k.load(I64, columns, at), n["width"]) for at in range(RANGE_WORDS))
        return begin, end, k.select(inside, n["x_width"], k.const(I64, 0))

    def _sum(self, side: str, number: Value, base: Value | None) -> _Sum:
        """Return the sum that a row or a column is. base: what distances count from."""
        n, table, taps = self.n, self.pointers[f"{side}_table"], self.code.rows if side == "row" else self.code.columns
        return _Sum(self.k, taps, n[f"{side}_taps"], table, n[f"{side}_weights"], number, base)

    def _line(self, group: _Group, by_row: _Sum, width: Value) -> None:
        """Every input column's sum over rows."""
        k = self.k

        def body(column: Value, turns: int, _: list[Value]) -> list[Value]:
            def taken(row: Value) -> list[Value]:
                each = [k.offset(row, (column + n) * self.pixel) for n in range(turns)]
                return [vector for at in each for vector in self._vectors(group, at)]

            for number, value in enumerate(by_row.over(taken)):
                n, v = divmod(number, group.count)
                k.store(value, self.line, (column + n) * self.step + v * self.lanes)
            return []

        taps = self.code.rows.count or 1
        unrolled(k, "line", width, self._turns(group, min(PIXELS, MOST_LOADS // (self.tile.vectors * taps))), [], body)

    def _turns(self, group: _Group, most: int) -> int:
        """Return how many pixels to work on at a time: one in a last block, whose code would be as long again."""
        return max(1, most) if group.count == self.tile.vectors and group.lanes is None else 1

    def _pixels(self, group: _Group, by_row: _Sum, begin: Value, end: Value, to: Spots) -> None:
        """The pixels that lie inside."""

        def body(index: Value, turns: int, _: list[Value]) -> list[Value]:
            for n in range(turns):
                column = begin + index + n
                by_column = self._sum("column", column, self.line if self.code.separable else None)
                self._store(group, column, self._pixel(group, by_row, by_column), to)
            return []

        unrolled(self.k, "pixel", end - begin, self._turns(group, self.tile.pixels), [], body)

    def _pixel(self, group: _Group, by_row: _Sum, by_column: _Sum) -> list[Value]:
        """The sums of one pixel, over columns of the line or of x."""
        if self.code.separable:
            return by_column.over(partial(self._line_vectors, group))
        return by_row.over(lambda row: by_column.over(lambda far: self._vectors(group, self.k.offset(row, far))))

    def _fill(self, group: _Group, inside: tuple[Value, Value], to: Spots) -> None:
        """Fill the pixels before and behind those that lie inside."""
        k, n = self.k, self.n
        bits = k.convert("bitcast", k.convert("trunc", n["fill"], I32), F32)
        with k.loop("end", 0, 2) as after:
            before = k.compare("eq", after, 0)
            start, stop = k.select(before, k.const(I64, 0), inside[1]), k.select(before, inside[0], n["width"])
            with k.loop("fill", start, stop) as column:
                self._store(group, column, [k.splat(bits, k.f32)] * group.count, to)

    def _store(self, group: _Group, column: Value, values: Sequence[Value], to: Spots) -> None:
        """Finish and write a pixel. to: the row."""
        here = self.results.column(to, column)
        for v, value in enumerate(values):
            self.results.store(value, here, 0, v, group.lanes)

    def _vectors(self, group: _Group, at: Value) -> list[Value]:
        """The vectors of a pixel of x."""
        k = self.k
        if group.lanes is not None and self.code.x.kind == "rows":
            return [k.load_first(k.f32, at, group.lanes)]
        return [k.load(k.f32, at, self.vectors[v]) for v in range(group.count)]

    def _line_vectors(self, group: _Group, at: Value) -> list[Value]:
        """The vectors of a column of the line."""
        return [self.k.load(self.k.f32, at, v * self.lanes) for v in range(group.count)]


class _Sum:
    """The weighted sum that one output of a side is; where it has few taps they are looked up when this is made.

    count: of its taps. weights: words of the table before its weights. base: the address that distances count from; None where
    the caller knows several, and moves each by the distance.
    """

    def __init__(
        self, k: Function, taps: _Taps, count: Value, table: Value, weights: Value, number: Value, base: Value | None
    ) -> None:
        self.k, self.taps, self.count, self.base = k, taps, count, base
        self.first = number * (count if taps.count is None else taps.count)
        self.distances, self.weights = k.offset(table, RANGE_WORDS, I64), k.offset(table, weights, I64)
        self.known = [self._tap(at) for at in range(taps.count or 0)]

    def _tap(self, tap: Operand) -> tuple[Value, Value | None]:
        """The address or the distance of a tap, and its weight in every lane."""
        k, at = self.k, self.first + tap
        place = k.load(I64, self.distances, at)
        place = place if self.base is None else k.offset(self.base, place)
        return place, k.broadcast(k.f32, self.weights, at) if self.taps.weighted else None

    def over(self, vectors: _Vectors) -> list[Value]:
        """Emit the weighted sums of the elements at the taps' addresses or distances."""
        first = self._add(None, self.known[0] if self.known else self._tap(0), vectors)
        if self.known:
            return functools.reduce(lambda sums, tap: self._add(sums, tap, vectors), self.known[1:], first)
        with self.k.fold("tap", 1, self.count, 1, first) as fold:
            fold.values = self._add(fold.values, self._tap(fold.index), vectors)
        return fold.values

    def _add(self, sums: list[Value] | None, tap: tuple[Value, Value | None], vectors: _Vectors) -> list[Value]:
        place, weight = tap
        taken = list(vectors(place))
        if weight is None:
            return taken
        if sums is None:
            return [value * weight for value in taken]
        return [self.k.fma(value, weight, total) for value, total in zip(taken, sums, strict=True)]
