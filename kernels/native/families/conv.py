"""Direct convolution and matrix product: tiles, packed weights, a port model, and the numbers that a kernel's code reads.

The code is in `conv_kernel`. A 1×1 convolution without stride and a matrix product are the case of one long row. The input is
read one channel at a time and broadcast, so it may lie in any layout, NCHW included; the output is written in vectors of
channels. Where several groups share a vector of channels (`Conv.joined`), pixels are read in vectors too, and each lane picks a
channel of its group.

Packed weights: [group][block of V vectors][kernel row][kernel column][input channel][V·lanes], read from end to end; the last
block is filled up with zeros.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping

import numpy as np

from kernels.native.emit.builder import Function, Value
from kernels.native.emit.epilogue import Epilogue
from kernels.native.emit.geometry import Conv, aligned_copy, first_element, plane_numbers, plane_tables, row_table
from kernels.native.emit.kernel import SCRATCH, Bounds, NativeKernel, Table, emitted, kernel_name
from kernels.native.emit.names import name_epilogue, name_layouts
from kernels.native.emit.product import BUSY, FEW_REGISTERS, GROUP_TILES, LINE_ELEMENTS, TILES, most_rows, step_cycles
from kernels.native.emit.results import MOST_STEP, Channels, Results, result_numbers
from kernels.native.emit.words import WORD_BYTES, is_paired, products_at_once
from kernels.native.errors import EmitError
from kernels.native.families.conv_kernel import ENTRY_COUNT_SHIFT, ConvCode, ConvEmitter
from kernels.native.memory.buffers import aligned
from kernels.native.memory.image import Image
from kernels.native.target.isa import Isa
from kernels.record import record
from kernels.size import hint, hinted, surely_equal
from kernels.spec import Array

CHUNK_MACS = (256 << 10, 2 << 20)  # least and most of one chunk: 2 to 15 µs, against about 0.1 µs to take one
CHUNKS = 32  # wanted at least: the last one to finish then costs a few percent on a few cores
TIGHT = 1.06  # of a tile that leaves none of them for weights loaded early: 6×2 and 4×3 on AVX2 against 5×2, on Zen 3
SPLIT_LINES = 1.03  # of a tile that ends within a cache line of x, which the next one reads again: 5×2 against 4×2, on Zen 3
MIN_TILES_AHEAD = 3  # of a block, for weights to be asked for ahead: with fewer, memory is busy enough
WEIGHTS_INNER_BYTES = 1 << 20  # weights up to this are walked innermost, so that the pixels of a chunk stay where they are near
CHUNK_BYTES = 128 << 10  # of x that a chunk of such a product reads, at most: a quarter of L2


@record
class ConvTile:
    """The sizes by which a convolution is cut into chunks and register tiles.

    pixels × vectors: accumulators. rows: output rows of a chunk.
    row_pixels: where a long row is cut into rows of its own (a product's), else 0.
    weights_inner: consecutive chunks walk the channel blocks of the same rows, else the rows of the same channel block.
    """

    pixels: int
    vectors: int
    rows: int
    row_pixels: int
    weights_inner: bool

    def __str__(self) -> str:
        return f"{self.pixels}x{self.vectors}"


def pack_weights(conv: Conv, tile: ConvTile, isa: Isa, weights: Array, done: Callable[[Array], None] = lambda _: None) -> Array:
    """Pack weights (outputs, inputs of a group, kernel rows, columns) in the order in which the kernel reads them; tails are 0.

    They are float32, or words (`byte_words`, `half_words`).
    done: called with each part of the weights that is not read any more.
    """
    size, blocks = tile.vectors * isa.lanes, conv.output_blocks(tile.vectors, isa.lanes)
    packed = aligned(WORD_BYTES * conv.groups * blocks * size * weights[0].size).view(weights.dtype)  # zeroed; written in place
    places = packed.reshape(conv.groups, blocks, *weights.shape[2:], weights.shape[1], size)
    for group, place in zip(np.split(weights, conv.groups), places, strict=True):
        for number in range(blocks):
            rows = group[number * size : (number + 1) * size]
            place[number, ..., : len(rows)] = rows.transpose(2, 3, 1, 0)
            done(rows)
    return packed


def pack_bias(conv: Conv, isa: Isa, bias: Array, vectors: int = 1) -> Array:
    """Pack a bias (outputs,): each group is filled up with 0 to whole blocks of so many vectors, a tile's."""
    padded = np.zeros((conv.groups, _padded_outputs(conv, isa, vectors)), np.int32 if bias.dtype.kind == "i" else np.float32)
    padded[:, : conv.group_outputs] = bias.reshape(conv.groups, -1)
    return aligned_copy(padded.ravel())


def pack_zeros(conv: Conv, isa: Isa, weights: Array, vectors: int = 1) -> Array:
    """Pack what a convolution of bytes starts from instead of a bias: minus the products of the zero point.

    There is one for each range of kernel rows that may lie inside of x, since the others are left out.
    Columns outside are filled with the zero point.

    weights: (outputs, inputs of a group, kernel rows, columns) of int8.
    """
    count = conv.zero + conv.words.excess
    rows = weights.astype(np.int64).sum((1, 3))  # (outputs, kernel rows)
    before = np.concatenate([np.zeros((len(rows), 1), np.int64), rows.cumsum(1)], 1)
    if conv.is_product:  # which has one row, inside of x
        return pack_bias(conv, isa, (-count * before[:, -1]).astype(np.int32), vectors)
    places = range(before.shape[1])
    ranges = [-count * (before[:, high] - before[:, low]) for low in places for high in places]
    return aligned_copy(np.concatenate([pack_bias(conv, isa, each.astype(np.int32), vectors) for each in ranges]))


def _padded_outputs(conv: Conv, isa: Isa, vectors: int) -> int:
    """Return the outputs of a group, filled up to whole blocks of so many vectors."""
    return conv.output_blocks(vectors, isa.lanes) * vectors * isa.lanes


def conv_tiles(conv: Conv, isa: Isa, limit: int = 6) -> tuple[ConvTile, ...]:
    """Return tiles, the fastest by a port model first: the one to use without a measurement, then others worth measuring."""
    return _ranked_tiles(hinted(conv), isa, limit)


@functools.lru_cache(1024)
def _ranked_tiles(conv: Conv, isa: Isa, limit: int) -> tuple[ConvTile, ...]:
    flat = conv.flat()
    kind = _x_channels(conv, isa.lanes).kind
    paired = is_paired(conv.words, isa)
    spread = kind == "planes" or (kind == "rows" and isa.arch == "aarch64")  # needs a register more for pixels
    scored = []
    for pixels, vectors in GROUP_TILES if conv.within else TILES[isa.vector_registers]:
        if pixels > min(most_rows(vectors, isa, 2 if spread or paired else 1, 2 * paired), flat.y.width):
            continue
        tight = isa.vector_registers == FEW_REGISTERS and not paired and pixels > most_rows(vectors, isa, 2)
        splits = conv.x.block == isa.lanes and pixels * isa.lanes % LINE_ELEMENTS
        cycles = _estimate(flat, pixels, vectors, isa) * (TIGHT if tight else 1) * (SPLIT_LINES if splits else 1)
        scored.append((cycles, -pixels * vectors, pixels, vectors))
    return tuple(_made_tile(conv, isa, pixels, vectors) for _, _, pixels, vectors in sorted(scored)[:limit])


def _estimate(conv: Conv, pixels: int, vectors: int, isa: Isa) -> float:
    """Estimate the cycles for one output row per input channel and tap. The last tile and block take as long as the others."""
    step = max(pixels, BUSY / 2) if conv.within else step_cycles(pixels, vectors, isa)  # a shuffle for each multiply–add
    step *= conv.words.depth / products_at_once(conv.words, isa)
    return conv.output_blocks(vectors, isa.lanes) * -(-conv.y.width // pixels) * step


def conv_cycles(conv: Conv, tile: ConvTile, isa: Isa) -> float:
    """Estimate the cycles of one core for the whole convolution, by the port model."""
    flat = conv.flat()
    rows = flat.y.batch * flat.groups * flat.y.height * flat.taps * flat.group_inputs
    return rows * _estimate(flat, tile.pixels, tile.vectors, isa)


def conv_chunks(conv: Conv, tile: ConvTile, isa: Isa) -> int:
    """Return the number of chunks that threads share."""
    flat = conv.flat()
    return flat.y.batch * flat.groups * flat.output_blocks(tile.vectors, isa.lanes) * -(-_row_count(flat, tile) // tile.rows)


def _row_count(flat: Conv, tile: ConvTile) -> int:
    """Return the output rows, or the rows that a long one is cut into."""
    return -(-flat.y.width // tile.row_pixels) if tile.row_pixels else flat.y.height


def make_tile(conv: Conv, isa: Isa, pixels: int, vectors: int) -> ConvTile:
    """Make a tile of these sizes; the rest follows by rule."""
    return _made_tile(hinted(conv), isa, pixels, vectors)


def _made_tile(conv: Conv, isa: Isa, pixels: int, vectors: int) -> ConvTile:
    flat = conv.flat()
    row_macs = flat.y.width * min(vectors * isa.lanes, conv.group_outputs) * conv.macs // (
        conv.y.batch * conv.y.height * conv.y.width * conv.y.channels
    )  # fmt: skip
    chunk_macs = min(max(conv.macs // CHUNKS, CHUNK_MACS[0]), CHUNK_MACS[1])
    rows, row_pixels = max(1, min(flat.y.height, chunk_macs // max(row_macs, 1))), 0
    weights_inner = 4 * conv.y.channels * conv.group_inputs * conv.taps <= WEIGHTS_INNER_BYTES
    if conv.is_product and flat.y.height == 1:
        wanted = chunk_macs * flat.y.width // max(row_macs, 1)
        if weights_inner:
            wanted = min(wanted, CHUNK_BYTES // (4 * conv.group_inputs))
        wanted = max(1, wanted // pixels) * pixels
        row_pixels = wanted if wanted < flat.y.width else 0
    return ConvTile(pixels, vectors, rows, row_pixels, weights_inner)


def _x_channels(conv: Conv, lanes: int) -> Channels:
    """Return how the channels of x lie; one alone is a plane, whose columns are read side by side."""
    x, step = conv.x, conv.strides[1]
    if (x.channels, x.x_stride) == (1, 1) and step <= MOST_STEP:
        return Channels("planes", step)
    return Channels.of(x, lanes // conv.words.depth, step, conv.groups)


def _runs(conv: Conv) -> list[int]:
    """Return the lengths of the runs of input channels that lie side by side, in order."""
    count = conv.group_inputs
    size = count if conv.x.contiguous_channels else conv.x.block
    return [min(size, count - start) for start in range(0, count, size)]


def _row_runs(conv: Conv, column: int) -> list[int]:
    """Return the lengths of the runs of one row of the kernel: a single one where its columns follow one another.

    column: from one column to the next in a copy of the pixels.
    """
    runs, step = _runs(conv), conv.dilations[1] * conv.x.x_stride
    together = len(runs) == 1 and not conv.within and surely_equal([step, conv.dilations[1] * column], [runs[0]] * 2)
    return [conv.kernel[1] * runs[0]] if together else runs * conv.kernel[1]


def emit_conv(conv: Conv, tile: ConvTile, epilogue: Epilogue[Image], isa: Isa) -> NativeKernel:
    """Emit the kernel. Its arguments are "x", "w" (`pack_weights`), "b" (`pack_bias`, of bytes `pack_zeros`), those of the
    epilogue, and "y".

    Raises EmitError for layouts it cannot address.
    """
    flat = conv.flat()
    if flat is not conv:
        epilogue = epilogue.laid(Image.flat)
    _check(flat, epilogue)
    words = conv.words
    epilogue.require("conv", words.sums)
    x = _x_channels(flat, isa.lanes)
    results = Results.of(tile.pixels, tile.vectors, flat.y, epilogue, isa.lanes, flat.groups)
    code = ConvCode(x, results, flat.within, words)
    _check_within(flat, code, isa)
    deep = flat.depth is not None
    stem = f"{words}_conv{3 if deep else 2}d_{tile.pixels}x{tile.vectors * isa.lanes}"
    stride = (f"s{flat.strides[1]}",) if code.x.pixel is not None and flat.strides[1] > 1 else ()
    readable = (name_layouts(flat.x, flat.y), *stride, *name_epilogue(epilogue))
    numbers = _numbers(flat, tile, epilogue, isa)
    if words.are_bytes:
        numbers |= _byte_numbers(flat, tile, isa)
    copied = flat.kernel_rows * len(_runs(flat)) * numbers["copy_row"]
    scratch_bytes = code.results.buffer_bytes(isa.lanes) + 4 * -(-copied // isa.lanes) * isa.lanes

    def body(k: Function, pointers: Mapping[str, Value], sizes: Mapping[str, Value], chunks: Bounds) -> None:
        ConvEmitter(k, code, sizes, pointers).emit(*chunks)

    return emitted(
        isa,
        kernel_name(stem, (code, deep) if deep else code, isa, readable),
        ("x", "w", "b", *epilogue.arguments, "y", SCRATCH),
        conv_chunks(conv, tile, isa),
        body,
        numbers,
        _tables(flat, numbers),
        scratch_bytes,
    )


def _check(conv: Conv, epilogue: Epilogue[Image]) -> None:
    operands = [(image, conv.group_outputs, f"operand {n}") for n, image in enumerate(epilogue.operands)]
    for image, size, what in ((conv.x, conv.group_inputs, "x"), (conv.y, conv.group_outputs, "y"), *operands):
        if conv.groups > 1 and not image.contiguous_channels and size % image.block:
            raise EmitError(f"conv: {what} has blocks of {image.block} channels, groups of {size} begin inside them")
        if image.elements >= 1 << 31:
            raise EmitError(f"conv: {what} spans {image.elements} elements, a kernel addresses {1 << 31}")
    if conv.x.channels % conv.groups or conv.y.channels % conv.groups:
        raise EmitError(f"conv: {conv.x.channels} and {conv.y.channels} channels do not make {conv.groups} groups")


def _check_within(conv: Conv, code: ConvCode, isa: Isa) -> None:
    size = conv.within
    if size and (code.x.kind != "blocks" or code.results.vectors > 1 or isa.lanes % size or conv.y.channels % size):
        raise EmitError(
            f"conv: groups of {size} of {conv.y.channels} channels in {code.x.kind}, need blocks and tiles of one vector"
        )


def _byte_numbers(conv: Conv, tile: ConvTile, isa: Isa) -> dict[str, int]:
    """Return the numbers that code for bytes reads beside the others.

    padding: the word that stands for pixels outside of x. b_low, b_high: sums from one `pack_zeros` to the next.
    """
    size = conv.groups * _padded_outputs(conv, isa, tile.vectors) * (not conv.is_product)
    return {"padding": conv.words.filled(conv.zero), "b_low": size * (conv.kernel[0] + 1), "b_high": size}


def _numbers(conv: Conv, tile: ConvTile, epilogue: Epilogue[Image], isa: Isa) -> dict[str, int]:
    """Return the numbers that the code reads, by name. Strides count elements, those of x words.

    blocks, row_chunks, chunk_rows, rows, groups, weights_inner: how chunks are numbered. outputs: channels of a group.
    row_pixels, all_pixels: of an output row, and how many there are where one long row is cut into rows; x_width and x_all, of
    x. x_image, x_group, x_row, x_pixel: between images, groups, and what neighbouring output rows and pixels read. x_first:
    from x to the first column of the first window, which may lie outside. column_step, left, reach: columns between
    neighbouring windows, columns left of the image in the first one, columns of all windows of a tile. block_weights,
    row_weights: elements of a block of weights and of one kernel row in it. row_tiles: tiles of a row. ahead_tile, ahead_step:
    bytes of the next block's weights that a tile prefetches, and each of its channels. row_entries: of the tables, for one
    kernel row. copy_*, x_kernel_row, x_block, x_blocks, x_column, run: of the copy at the border. y_* and r0_*…:
    of the output and the operands; a block is what a tile writes, a vector a part of it. x_vector: from one vector of channels
    to the next, where groups share them. kernel_rows, plane_weights,
    plane_entries, x_kernel_plane: of a plane of a kernel over volumes, its rows, weights and entries, and where it lies in x.
    """
    x, y, lanes, rows, columns = conv.x, conv.y, isa.lanes, conv.kernel_rows, conv.kernel[1]
    runs, cut = _runs(conv), tile.row_pixels
    row_count = _row_count(conv, tile)
    window = (columns - 1) * conv.dilations[1] + 1
    reach = (tile.pixels - 1) * conv.strides[1] + window
    kind = _x_channels(conv, lanes).kind
    column = {"blocks": x.x_stride, "planes": 1}.get(kind, -(-runs[0] // lanes) * lanes)
    row_tiles, blocks = -(-(cut or y.width) // tile.pixels), conv.output_blocks(tile.vectors, lanes)
    tiles, row_weights = row_count * row_tiles, columns * conv.group_inputs * tile.vectors * lanes
    is_ahead = conv.groups * blocks > 1 and hint(tiles) >= MIN_TILES_AHEAD
    share_bytes = -(-4 * rows * row_weights // tiles) if is_ahead else 0
    numbers = {
        "row_tiles": row_tiles, "ahead_tile": share_bytes,
        "ahead_step": -(-share_bytes // (rows * columns * conv.group_inputs)),
        "blocks": blocks, "row_chunks": -(-row_count // tile.rows), "chunk_rows": tile.rows,
        "rows": row_count, "groups": conv.groups, "weights_inner": int(tile.weights_inner), "outputs": conv.group_outputs,
        "row_pixels": cut or y.width, "all_pixels": y.width if cut else y.width * row_count,
        "x_width": cut or x.width, "x_all": x.width if cut else x.width * row_count,
        "x_image": x.n_stride, "x_group": x.offset(conv.group_inputs) if conv.groups > 1 else 0,
        "x_row": cut * x.x_stride if cut else conv.strides[0] * x.y_stride, "x_pixel": conv.strides[1] * x.x_stride,
        "x_first": first_element(conv),
        "column_step": conv.strides[1], "left": conv.left, "reach": reach,
        "block_weights": rows * row_weights, "row_weights": row_weights,
        "row_entries": len(_row_runs(conv, column)),
        "copy_columns": reach, "copy_column": column, "copy_pixel": column * conv.strides[1], "copy_row": reach * column,
        "x_kernel_row": conv.dilations[0] * x.y_stride, "x_block": x.block_stride, "x_blocks": len(runs), "x_column": x.x_stride,
        "run": runs[0],
    }  # fmt: skip
    if conv.within:
        numbers["x_vector"] = x.block_stride
    if conv.depth is not None:
        row_entries, within = numbers["row_entries"], conv.kernel[0]
        by_plane = {"kernel_rows": within, "plane_weights": within * row_weights, "plane_entries": within * row_entries}
        numbers |= by_plane | plane_numbers(conv)
    group = conv.group_outputs if conv.groups > 1 else 0
    for name, image in (("y", y), *zip(epilogue.arguments, epilogue.operands, strict=True)):
        numbers |= result_numbers(name, image, tile.vectors, lanes, group)
        if cut:
            numbers[f"{name}_row"] = cut * image.x_stride
    return numbers


def _tables(conv: Conv, numbers: Mapping[str, int]) -> dict[str, Table]:
    """Return a tile's entries in x and in a copy of its pixels, and the `row_table`; a product's long row may be several."""
    runs, copied = _runs(conv), numbers["copy_row"]
    plane, blocks = numbers.get("x_kernel_plane", 0), len(runs) * copied
    along = _row_runs(conv, numbers["copy_column"])
    columns, taken = (conv.kernel[1], runs) if len(along) > 1 else (1, along)
    steps = {
        "entries": (plane, numbers["x_kernel_row"], conv.dilations[1] * conv.x.x_stride, conv.x.block_stride),
        "copy_entries": (conv.kernel[0] * blocks, blocks, conv.dilations[1] * numbers["copy_column"], copied),
    }
    rows = row_table(conv) if surely_equal([numbers["rows"]], [conv.y.height]) else Table(_whole_rows, (numbers["rows"],))
    kernel = (1 if conv.depth is None else conv.depth.kernel, conv.kernel[0], columns)
    entries = {name: Table(_entries, (*kernel, *each, *taken)) for name, each in steps.items()}
    return {"row_table": rows, **entries, **plane_tables(conv)}


def _entries(
    planes: int, rows: int, columns: int, plane_step: int, row_step: int, column_step: int, block_step: int, *runs: int
) -> list[int]:
    """Return the entry of each tap of the kernel and run of channels: where it begins, and how many channels it has."""
    return [
        (plane * plane_step + row * row_step + column * column_step + number * block_step) | run << ENTRY_COUNT_SHIFT
        for plane, row, column, (number, run) in itertools.product(range(planes), range(rows), range(columns), enumerate(runs))
    ]


def _whole_rows(rows: int) -> list[int]:
    """Return the `row_table` of a kernel of one row that is always inside of the image."""
    return [1 << 32] * rows
