"""Depthwise convolution: lanes are channels, and every input vector that is loaded meets all the taps that want it.

    for each unit of a chunk = (image, block of V channel vectors, block of rows):
        for each row of the output, for each tile of P pixels along it:
            acc[P][V] = bias
            for each kernel plane that lies inside the volume:                 one, of images
                for each kernel row that lies inside the plane:
                    for each input column under the tile:                      unrolled, loaded once; zeros beside the image
                        for each pixel that the column meets: acc[p] += x[column] · w[row, p's kernel column]
            y = epilogue(acc)

With stride 1 a tile of P pixels loads P + k - 1 vectors a kernel row for P·k multiply–adds, so it is bound by arithmetic. The
code is decided by the tile, the kernel's columns with their stride and dilation, how channels lie, and the epilogue; all else is
numbers. The columns at a tile's edges are read from zeros where they lie outside of the image. The last tile of a row ends with
the row: pixels that the tile before it has stored are computed again, and not stored.

Packed weights: [block of V vectors][kernel row of all planes][kernel column][V·lanes]; the last block is filled up with zeros.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from kernels.expression import FLOAT
from kernels.native.emit.border import Border, ColumnLoad, Columns, Load, tile_start
from kernels.native.emit.builder import Function, Value
from kernels.native.emit.epilogue import Epilogue
from kernels.native.emit.floats import Floats
from kernels.native.emit.geometry import (
    Conv,
    aligned_copy,
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
from kernels.native.emit.types import I64
from kernels.native.errors import EmitError
from kernels.native.memory.image import Image
from kernels.native.target.isa import Isa
from kernels.record import record
from kernels.size import hinted
from kernels.spec import Array, DType

CHUNK_MACS = (32 << 10, 256 << 10)  # least and most of one chunk: up to about 5 µs
CHUNKS = 32
LEAST_MACS = 96 << 10  # of a chunk of several units: to begin one takes a thirtieth of it
# Tiles (pixels, vectors) by the number of registers: few, so that layers and models share kernels. By the port model all others
# would save 0.6 % over 117 layers of 37 models.
TILES: Mapping[int, Sequence[tuple[int, int]]] = {
    32: ((1, 1), (8, 1), (14, 1), (28, 1), (1, 2), (4, 2), (6, 2), (7, 2), (8, 2)),
    16: ((1, 1), (4, 1), (6, 1), (7, 1), (8, 1)),
}
LEAST_CHUNKS = 8  # of small images, however little each has to do


@record
class DepthwiseTile:
    """pixels × vectors: accumulators. rows: output rows of a unit. units: of a chunk."""

    pixels: int
    vectors: int
    rows: int
    units: int = 1

    def __str__(self) -> str:
        return f"{self.pixels}x{self.vectors}"


def pack_depthwise(conv: Conv, tile: DepthwiseTile, isa: Isa, weights: Array) -> Array:
    """Pack weights (channels, 1, kernel rows of all planes, columns) in the order in which the kernel reads them; tails are 0."""
    size, blocks = tile.vectors * isa.lanes, _blocks(conv, tile, isa)
    kernel = (conv.kernel_rows, conv.kernel[1])
    padded = np.zeros((blocks * size, *kernel), np.float32)
    padded[: len(weights)] = weights[:, 0]
    return aligned_copy(padded.reshape(blocks, size, *kernel).transpose(0, 2, 3, 1).ravel())


def pack_depthwise_bias(isa: Isa, bias: Array, vectors: int = 1) -> Array:
    """Pack a bias (channels,), filled up with 0 to whole blocks of so many vectors, a tile's."""
    return aligned_copy(np.pad(bias.astype(np.float32), (0, -len(bias) % (vectors * isa.lanes))))


def _blocks(conv: Conv, tile: DepthwiseTile, isa: Isa) -> int:
    """Return the number of blocks of channels that a tile's vectors hold."""
    return -(-conv.y.channels // (tile.vectors * isa.lanes))


def depthwise_tiles(conv: Conv, isa: Isa, limit: int = 4) -> tuple[DepthwiseTile, ...]:
    """Return the tiles that a port model estimates to be fastest, the best first, of equal ones the longer row of pixels."""
    return _ranked_tiles(hinted(conv), isa, limit)


@functools.lru_cache(1024)
def _ranked_tiles(conv: Conv, isa: Isa, limit: int) -> tuple[DepthwiseTile, ...]:
    scored = []
    for pixels, vectors in TILES[isa.vector_registers]:
        scratch = 2 * vectors + (2 if isa.fma else 4)  # input vectors and what LLVM keeps; without FMA products too
        fits = (pixels + conv.kernel[1]) * vectors + scratch <= max(isa.vector_registers, conv.kernel[1] + scratch + 2)
        if not fits or pixels > conv.y.width:
            continue
        scored.append((_estimate(conv, pixels, vectors, isa), pixels * vectors, vectors, pixels))
    return tuple(make_depthwise_tile(conv, isa, pixels, vectors) for _, _, vectors, pixels in sorted(scored)[:limit])


def _estimate(conv: Conv, pixels: int, vectors: int, isa: Isa) -> float:
    """Estimate the cycles of one row of all channels and one kernel row: two multiply–adds and two loads a cycle, latency 4."""
    taps, blocks = conv.kernel[1], -(-conv.y.channels // (vectors * isa.lanes))
    loads = vectors * (min((pixels - 1) * conv.strides[1] + taps, pixels * taps) + taps)
    return blocks * -(-conv.y.width // pixels) * (max(pixels * vectors * taps / 2, loads / 2, 4 * taps) + 1)


def depthwise_cycles(conv: Conv, tile: DepthwiseTile, isa: Isa) -> float:
    """Estimate the cycles of one core for the whole convolution, by the port model."""
    return conv.y.batch * conv.y.height * conv.kernel_rows * _estimate(conv, tile.pixels, tile.vectors, isa)


def depthwise_chunks(conv: Conv, tile: DepthwiseTile, isa: Isa) -> int:
    """Return the number of chunks that threads share."""
    return -(-_units(conv, tile, isa) // tile.units)


def _units(conv: Conv, tile: DepthwiseTile, isa: Isa) -> int:
    return conv.y.batch * _blocks(conv, tile, isa) * -(-conv.y.height // tile.rows)


def make_depthwise_tile(conv: Conv, isa: Isa, pixels: int, vectors: int) -> DepthwiseTile:
    """Make a tile of these sizes; the rest follows by rule."""
    conv = hinted(conv)
    row_macs = conv.y.width * vectors * isa.lanes * conv.taps
    chunk_macs = min(max(conv.macs // CHUNKS, CHUNK_MACS[0]), CHUNK_MACS[1])
    tile = DepthwiseTile(pixels, vectors, even_rows(conv.y.height, chunk_macs // row_macs))
    units = min(LEAST_MACS // (tile.rows * row_macs), _units(conv, tile, isa) // LEAST_CHUNKS)
    return replace(tile, units=max(1, units))


@record
class _Code:
    """All that decides the code. columns: under a tile. x: how channels lie in it. dtype: of its elements."""

    columns: Columns
    x: Channels
    results: Results
    dtype: DType = FLOAT


def emit_depthwise(conv: Conv, tile: DepthwiseTile, epilogue: Epilogue[Image], isa: Isa) -> NativeKernel:
    """Emit the kernel. Its arguments: "x", "w" (`pack_depthwise`), "b" (`pack_depthwise_bias`), those of the epilogue, and "y".

    Raises EmitError where a group has more than one input or output channel, and for layouts it cannot address.
    """
    if not conv.groups == conv.x.channels == conv.y.channels:
        raise EmitError(f"depthwise: {conv.x.channels} to {conv.y.channels} channels in {conv.groups} groups, need one each")
    x = Channels.of(conv.x, isa.lanes)
    if x.kind not in {"blocks", "rows"}:
        raise EmitError(f"depthwise: x has blocks of {conv.x.block} channels, a tile takes vectors of {isa.lanes}")
    results = Results.of(tile.pixels, tile.vectors, conv.y, epilogue, isa.lanes)
    if tile.pixels > conv.y.width:
        raise EmitError(f"depthwise: a tile has {tile.pixels} pixels, y is {conv.y.width} wide, need as many at least")
    code = _Code(Columns.of(conv, tile.pixels), x, results, conv.words.x)
    epilogue.require("depthwise", conv.words.sums)
    window = name_window(
        replace(conv, kernel=(1, conv.kernel[1]), strides=(1, conv.strides[1]), dilations=(1, conv.dilations[1]))
    )
    words, deep = (name_layouts(conv.x, conv.y), window, *name_epilogue(epilogue)), conv.depth is not None
    stem = f"{conv.words}_dwconv{3 if deep else 2}d_{tile.pixels}x{tile.vectors * isa.lanes}"

    def body(k: Function, pointers: Mapping[str, Value], sizes: Mapping[str, Value], chunks: Bounds) -> None:
        _DepthwiseEmitter(k, code, sizes, pointers).emit(*chunks)

    return emitted(
        isa,
        kernel_name(stem, (code, deep) if deep else code, isa, words),
        ("x", "w", "b", *epilogue.arguments, "y", SCRATCH),
        depthwise_chunks(conv, tile, isa),
        body,
        _numbers(conv, tile, epilogue, isa),
        {"row_table": row_table(conv), **plane_tables(conv)},
        results.buffer_bytes(isa.lanes),
    )


def _numbers(conv: Conv, tile: DepthwiseTile, epilogue: Epilogue[Image], isa: Isa) -> dict[str, int]:
    """Return the numbers that the code reads, by name. Strides count elements.

    chunk_units, units: of a chunk, and in all. blocks, row_chunks, chunk_rows, rows: how they are numbered. channels, width,
    tiles: of y, and of a row of it. x_width: of x. x_image, x_block, x_vector, x_row, x_pixel: between neighbours of each kind
    in x; rows are those of neighbouring outputs. x_first: from x to the first column of the first window, which may lie
    outside. left: columns of the first window outside. kernel_rows, x_kernel_row: the kernel's rows, and elements between what
    they read. plane_rows, x_kernel_plane: of a plane of a kernel over volumes.
    """
    x, y, lanes = conv.x, conv.y, isa.lanes
    vector = lanes if x.block > lanes else x.block_stride
    numbers = {
        "chunk_units": tile.units, "units": _units(conv, tile, isa), "blocks": _blocks(conv, tile, isa),
        "row_chunks": -(-y.height // tile.rows), "chunk_rows": tile.rows, "rows": y.height,
        "channels": y.channels, "width": y.width,
        "tiles": -(-y.width // tile.pixels), "x_width": x.width, "x_image": x.n_stride,
        "x_block": tile.vectors * vector, "x_vector": vector, "x_row": conv.strides[0] * x.y_stride, "x_pixel": x.x_stride,
        "x_first": first_element(conv), "left": conv.left, "kernel_rows": conv.kernel_rows,
        "x_kernel_row": conv.dilations[0] * x.y_stride, **({"plane_rows": conv.kernel[0]} if conv.depth else {}),
        **plane_numbers(conv),
    }  # fmt: skip
    if conv.words.are_bytes:
        numbers["zero"] = conv.zero
    for name, image in (("y", y), *zip(epilogue.arguments, epilogue.operands, strict=True)):
        numbers |= result_numbers(name, image, tile.vectors, lanes, 0)
    return numbers


class _DepthwiseEmitter:
    """Emits the code; the methods are the loops of the module docstring, from the outside in."""

    def __init__(self, k: Function, code: _Code, n: Numbers, pointers: Mapping[str, Value]) -> None:
        self.k, self.code, self.n, self.pointers, self.lanes = k, code, n, pointers, k.isa.lanes
        self.tile, self.results = code.results, ResultsEmitter(k, code.results, n, pointers[SCRATCH])
        zero = n.get("zero")  # of bytes
        self.x = Floats(k, code.dtype, zero)
        self.outside = self.x.outside(0.0 if zero is None else zero)
        self.pixel = n["x_pixel"] if code.x.pixel is None else k.const(I64, code.x.pixel)
        self.vector = k.const(I64, self.lanes) if code.x.kind == "rows" else n["x_vector"]

    def emit(self, begin: Value, end: Value) -> None:
        """Emit the loop over the chunks of a call."""
        k, n, size = self.k, self.n, self.tile.vectors * self.lanes
        with k.loop("unit", begin * n["chunk_units"], k.least(end * n["chunk_units"], n["units"])) as unit:
            number, slow = unit % n["blocks"], unit // n["blocks"]  # rows outermost, as products share them out
            rows, image = slow % n["row_chunks"], slow // n["row_chunks"]
            along = image * n["x_image"] + number * n["x_block"] + n["x_first"]
            x = self.x.offset(self.pointers["x"], along)
            weights = number * n["kernel_rows"] * (self.code.columns.count * size)
            w, b = k.offset(self.pointers["w"], weights), k.offset(self.pointers["b"], number * size)
            to, left = self.results.start(self.pointers, image, None, number), n["channels"] - number * size
            first = rows * n["chunk_rows"]
            with k.loop("row", first, k.least(first + n["chunk_rows"], n["rows"])) as row:
                start = row_start(k, self.pointers, row, n["x_row"])
                self._row(row, self.x.offset(x, start), w, b, self.results.row(to, row), left)

    def _row(self, row: Value, x: Value, w: Value, b: Value, to: Spots, left: Value) -> None:
        """Emit the tiles along one row.

        x: the address of the row's first column, which may lie outside of the image. left: channels from the block's first on.
        """
        k, n, columns, size = self.k, self.n, self.code.columns, self.tile.vectors * self.lanes
        bounds, planes = row_range(k, self.pointers["row_table"], row), plane_range(k, self.pointers, row)
        with k.loop("tile", 0, n["tiles"]) as number:
            column, before = tile_start(k, number, self.tile.pixels, n["width"])
            start, here = column * columns.stride - n["left"], self.results.column(to, column)
            at = self.x.offset(x, column * (self.pixel * columns.stride))
            outside = Border(k, columns, start, n["x_width"], self.outside)

            def finish(loads: Sequence[Load]) -> None:
                values = self._tile(at, w, b, planes, bounds, [outside.loads(load) for load in loads])
                if "zero" in n:  # of bytes: they are whole numbers below 2²⁴, which products of bytes by bytes allow
                    values = [k.convert("fptosi", value, self.results.sums) for value in values]
                self.results.finish(values, here, k.const(I64, self.tile.pixels), left, before)

            if self.code.x.kind == "blocks":
                finish([self.x.load] * self.tile.vectors)
                return
            few = left < size  # the last vectors have fewer lanes than are safe to read
            with k.when(few, "few"):
                finish([partial(self._load_few, left - v * self.lanes) for v in range(self.tile.vectors)])
            with k.when(few ^ k.const(few.type, 1), "many"):
                finish([self.x.load] * self.tile.vectors)

    def _load_few(self, left: Value, address: Value) -> Value:
        """Load the lanes of a vector that there are. left: channels from its first one on, if any."""
        k = self.k
        return self.x.load_first(address, k.most(k.least(left, k.const(I64, self.lanes)), k.const(I64, 0)))

    def _tile(self, x: Value, w: Value, b: Value, planes: Bounds, bounds: Bounds, loads: Sequence[ColumnLoad]) -> list[Value]:
        """Emit the accumulators of a tile. loads: of each of its vectors, what reads a column at an address.

        planes, bounds: of the kernel's planes, and of the rows of each.
        """
        k, columns, n, vectors = self.k, self.code.columns, self.n, self.tile.vectors
        met: dict[int, list[tuple[int, int]]] = {}  # by column: the pixels that it meets, each with its kernel column
        for p in range(self.tile.pixels):
            for s, column in enumerate(columns.of_pixel(p)):
                met.setdefault(column, []).append((p, s))
        starts = [k.load(k.f32, b, v * self.lanes) if self.tile.bias else k.zero(k.f32) for v in range(vectors)]
        with k.fold("plane", *planes, 1, starts * self.tile.pixels) as over:
            x, w = self._at_plane(over.index, x, w)
            with k.fold("kr", *bounds, 1, over.values) as fold:
                values, at = list(fold.values), self.x.offset(x, fold.index * n["x_kernel_row"])
                here = k.offset(w, fold.index * (columns.count * vectors * self.lanes))
                weights = [k.load(k.f32, here, at * self.lanes) for at in range(columns.count * vectors)]
                for column, pixels in sorted(met.items()):
                    for v, load in enumerate(loads):
                        taken = load(self.x.offset(at, self.pixel * column + self.vector * v), column)
                        for p, s in pixels:
                            values[p * vectors + v] = k.fma(taken, weights[s * vectors + v], values[p * vectors + v])
                fold.values = values
            over.values = fold.values
        return over.values

    def _at_plane(self, plane: Value, x: Value, w: Value) -> tuple[Value, Value]:
        """Return the addresses that a plane of the kernel reads and has its weights at, from those of the first plane."""
        if plane.known == 0:
            return x, w
        k, n = self.k, self.n
        rows = plane * n["plane_rows"]
        weights = rows * (self.code.columns.count * self.tile.vectors * self.lanes)
        return self.x.offset(x, plane * n["x_kernel_plane"]), k.offset(w, weights)
