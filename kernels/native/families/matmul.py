"""Matrix products of two tensors that are both computed at run time, in any layout, for all batches: tiles and numbers.

The code is in `matmul_kernel`. A few rows times a b whose columns are contiguous ("dots"): lanes run along the depth, and the
sums of a vector of columns are transposed into the lanes of one result. A product whose y is contiguous along its rows is done
as yᵀ = bᵀ·aᵀ, by the same code.
Where b is a constant, `kernels.native.families.conv` packs it once and is faster.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from kernels.expression import FLOAT
from kernels.native.emit.builder import Function, Value
from kernels.native.emit.epilogue import PLAIN, Epilogue
from kernels.native.emit.kernel import SCRATCH, Bounds, NativeKernel, emitted, kernel_name
from kernels.native.emit.names import name_epilogue
from kernels.native.emit.product import even, most_rows, rest_rows, steps_in_vectors
from kernels.native.emit.results import Channels, Results
from kernels.native.emit.walk import Axis, axes_of, joined
from kernels.native.errors import EmitError
from kernels.native.families.matmul_kernel import FEW_ROWS, MatMulCode, MatMulEmitter, Method, Order, part_tile
from kernels.native.memory.buffers import LINE_BYTES
from kernels.native.memory.view import View
from kernels.native.target.isa import Isa
from kernels.record import record
from kernels.size import hint, hinted

CHUNKS = 32  # wanted at least: the last one to finish then costs a few percent on a few cores
CHUNK_MACS = (128 << 10, 2 << 20)  # least and most of one chunk: 1 to 15 µs
DOT_ROWS = 3  # most rows of "dots": turning b costs about as much as three of them
PACKED_TILES = 4  # tiles of rows from which on packing a b with long rows pays
PACKED_ROWS = 96  # least of a unit: then packing costs a few percent
PACKED_BYTES = 512 << 10  # wanted at most, to stay in L2
NEAR = 128  # elements from row to row of b up to which its rows are read like packed ones
FEW_REGISTERS = 16
LOW_TILES = (4, 8, 16)  # rows of tiles for few rows
PART_CYCLES = 0.2  # to read a part of a vector instead of a whole one, with masks; else a cycle for each lane
BATCHES = 2  # least loops over batches, so that ranks share code


@record
class MatMul:
    """y = epilogue(alpha·a·b): a (…, m, k), b (…, k, n), y (…, m, n), of one rank; a and b may have 1 in place of a batch size.

    y is contiguous along its rows or its columns; operands of the epilogue are along the same dimension, or repeat. It takes
    no bias.
    """

    a: View
    b: View
    y: View
    alpha: float = 1.0
    epilogue: Epilogue[View] = PLAIN

    @property
    def arguments(self) -> tuple[str, ...]:
        """The names of the pointers that its kernel takes."""
        return ("a", "b", *self.epilogue.arguments, "y", SCRATCH)

    @property
    def macs(self) -> int:
        """Multiply–accumulates."""
        return self.y.size * self.a.shape[-1]

    def oriented(self) -> MatMul:
        """Return an equal product whose y is contiguous along its last dimension. Raises EmitError where y is along neither."""
        columns = self.y.shape[-1]
        row, column = self.y.strides[-2:]
        if column == 1 and (hint(columns) > 1 or row != 1):
            return self
        if row == 1:
            return MatMul(_turned(self.b), _turned(self.a), _turned(self.y), self.alpha, self.epilogue.laid(_turned))
        if columns > 1:
            raise EmitError(f"matmul: y is {self.y}, need rows or columns without gaps")
        return self


def _turned(view: View) -> View:
    last = len(view.shape) - 1
    return view.transposed((*range(last - 1), last, last - 1))


@record
class MatMulTile:
    """rows × vectors: accumulators. chunk_rows: of a unit. units: of a chunk. method: how b is read; "dots" has no tile.

    blocks: of columns that the tile is wide, of a unit; 1 where the method is not "dots".
    """

    rows: int
    vectors: int
    chunk_rows: int
    units: int
    method: Method
    blocks: int = 1

    def __str__(self) -> str:
        return f"{self.rows}x{self.vectors}_{self.method}"


@record
class _Loops:
    """The loops of a product over the tensors a, b, the operands and y. batches: outermost first."""

    batches: list[Axis]
    rows: Axis
    columns: Axis
    depth: Axis


def _loops(matmul: MatMul) -> _Loops:
    """Return the loops of an oriented product; batches that share b count as more rows of one batch."""
    a, b, y, operands = matmul.a, matmul.b, matmul.y, matmul.epilogue.operands
    rank = len(y.shape)
    fits = rank >= 2 and len(a.shape) == len(b.shape) == rank and a.shape[-1] == b.shape[-2]
    if not fits or 0 in (*a.shape, *b.shape) or y.shape[-2:] != (a.shape[-2], b.shape[-1]):
        raise EmitError(f"matmul: a is {a.shape}, b is {b.shape}, y is {y.shape}, need (…, m, k), (…, k, n) and (…, m, n), no 0")
    rows_of_a = replace(a, shape=(*a.shape[:-1], 1))
    columns_of_b = replace(b, shape=(*b.shape[:-2], 1, b.shape[-1]))
    *batches, rows, columns = axes_of("matmul", [rows_of_a, columns_of_b, *operands, y], y.shape)
    # a factor's stride says how it lies even where it has one row or column
    rows = replace(rows, strides=(a.strides[-2], *rows.strides[1:]))
    columns = replace(columns, strides=(0, b.strides[-1], *columns.strides[2:]))
    depth = Axis(a.shape[-1], (a.strides[-1], b.strides[-2], *[0] * (len(operands) + 1)))
    found = joined([*batches, rows])
    if found and (rows.size > 1 or found[-1].strides[1] == 0):
        rows = found.pop()
    return _Loops(found, rows, columns, depth)


def matmul_tiles(matmul: MatMul, isa: Isa, limit: int = 6) -> list[MatMulTile]:
    """Return the tiles that a port model estimates to be fastest, the best first."""
    loops = _loops(hinted(matmul).oriented())
    if _takes_dots(loops):
        return [make_matmul_tile(matmul, isa, 1, 1)]
    most = -(-loops.columns.size // isa.lanes)
    scored = []
    for vectors in range(1, min(most, 12) + 1):
        if 2 * vectors + 1 > isa.vector_registers:
            break
        tallest = most_rows(vectors, isa)
        if (tallest + 1) * vectors + 1 == isa.vector_registers == FEW_REGISTERS:
            tallest -= 1  # with all registers taken, LLVM spills
        for height in _heights(loops.rows.size, tallest):
            scored.append((_estimate(loops, height, vectors, isa), -height * vectors, height, vectors))
    return [make_matmul_tile(matmul, isa, height, vectors) for _, _, height, vectors in sorted(scored)[:limit]]


def _heights(rows: int, tallest: int) -> set[int]:
    """Return the rows of tiles worth trying: of few rows as many as there are, of many the tallest tile and lower ones."""
    few = next((height for height in (1, FEW_ROWS) if rows <= height), None)
    return {min(few, tallest)} if few else {*(low for low in LOW_TILES if low < tallest), tallest}


def _takes_dots(loops: _Loops) -> bool:
    """Return whether the method "dots" applies and is faster, whose lanes run along the depth."""
    return _reads_dots(loops) and loops.rows.size <= DOT_ROWS


def _reads_dots(loops: _Loops) -> bool:
    """Return whether both factors are contiguous along the depth."""
    return _order_of_a(loops) == "rows" and _order_of_b(loops) == "columns"


def _order_of_a(loops: _Loops) -> Order:
    return _order(loops.depth.strides[0], loops.rows.strides[0])


def _order_of_b(loops: _Loops) -> Order:
    return _order(loops.columns.strides[1], loops.depth.strides[1])


def _order(along_rows: int, along_columns: int) -> Order:
    """Return how a matrix lies, by the elements from one to the next along its rows and its columns."""
    return "rows" if along_rows == 1 else "columns" if along_columns == 1 else "strided"


def _estimate(loops: _Loops, rows: int, vectors: int, isa: Isa) -> float:
    """Estimate the cycles for one step of the depth.

    Two multiply–adds and two loads a cycle, latency 4; loads of b from L2 cost a little.
    """
    height, width = loops.rows.size, vectors * isa.lanes
    blocks, left = divmod(loops.columns.size, width)
    left_vectors = -(-left // isa.lanes)

    def step(rows: int, vectors: int) -> float:
        return max(rows * vectors / 2, (rows + vectors) / 2, 4) + 0.1 * vectors

    rest = rest_rows(rows, vectors)
    full = height // rows * step(rows, vectors) + (-(-(height % rows) // rest) * step(rest, vectors) if rest else 0)
    part_rows, part_vectors = part_tile(rows, vectors)
    tiles = -(-left_vectors // part_vectors) * -(-height // part_rows)
    part = tiles * (step(part_rows, part_vectors) + part_vectors * (PART_CYCLES if isa.masks else isa.lanes))
    scratch_bytes = 4 * loops.depth.size * width
    least_chunks = math.prod(axis.size for axis in loops.batches) * (blocks + (left > 0))
    total = (blocks * full + part) * (1 if scratch_bytes <= PACKED_BYTES else 1.2)
    return total * (1 + 1 / least_chunks if height <= rows else 1)


def make_matmul_tile(matmul: MatMul, isa: Isa, rows: int, vectors: int) -> MatMulTile:
    """Make a tile of these sizes; the rest follows by rule."""
    matmul = hinted(matmul)
    loops = _loops(matmul.oriented())
    height = loops.rows.size
    method: Method = "packed"
    if _takes_dots(loops):
        method, rows, vectors = "dots", 1, 1
    elif _order_of_b(loops) == "rows" and (height < PACKED_TILES * rows or abs(loops.depth.strides[1]) <= NEAR):
        method = "direct"
    width, depth = isa.lanes * vectors, loops.depth.size
    all_blocks, batches = -(-loops.columns.size // width), math.prod(axis.size for axis in loops.batches)
    row_macs = depth * min(width, loops.columns.size)
    least_macs = CHUNK_MACS[0] // max(1, 4 // height)  # few rows are bound by reading b
    wanted = min(max(matmul.macs // CHUNKS, least_macs), CHUNK_MACS[1])
    blocks = even(all_blocks, max(1, wanted // (row_macs * height))) if method == "dots" else 1
    cut = even(height, max(PACKED_ROWS if method == "packed" else rows, wanted // row_macs // rows * rows))
    chunk_rows = -(-cut // rows) * rows
    units = batches * -(-all_blocks // blocks) * -(-height // chunk_rows)
    of_chunk = max(1, min(units, wanted // (blocks * row_macs * min(chunk_rows, height))))
    return MatMulTile(rows, vectors, chunk_rows, of_chunk, method, blocks)


def emit_matmul(matmul: MatMul, tile: MatMulTile, isa: Isa) -> NativeKernel:
    """Emit the kernel. Raises EmitError for shapes that do not fit, and for a y or operands that vectors cannot reach."""
    if matmul.epilogue.bias:
        raise EmitError("matmul: the epilogue has a bias, products of two tensors take none")
    matmul.epilogue.require("matmul", FLOAT, keeps=True)
    oriented = matmul.oriented()
    loops = _loops(oriented)
    _check(loops, tile)
    code = _code(oriented, loops, tile)
    words = (tile.method, f"{code.a}_by_{code.b}", *name_epilogue(matmul.epilogue))
    arguments = matmul.arguments if oriented is matmul else ("b", "a", *matmul.arguments[2:])
    numbers = _numbers(oriented, loops, tile, isa)
    buffer = -(-code.buffer_bytes(isa) // LINE_BYTES) * LINE_BYTES
    steps = 0 if tile.method == "direct" else steps_in_vectors(loops.depth.size, isa.lanes)

    def body(k: Function, pointers: Mapping[str, Value], sizes: Mapping[str, Value], chunks: Bounds) -> None:
        a, b = (pointers[name] for name in arguments[:2])
        places = {**pointers, "a": a, "b": b, SCRATCH: k.offset(pointers[SCRATCH], buffer // 4)}
        MatMulEmitter(k, code, sizes, places, pointers[SCRATCH]).emit(*chunks)

    return emitted(
        isa,
        kernel_name(f"f32_matmul_{tile.rows}x{tile.vectors * isa.lanes}", code, isa, words),
        arguments,
        -(-numbers["units"] // tile.units),
        body,
        numbers,
        scratch_bytes=buffer + 4 * steps * tile.vectors * isa.lanes,
    )


def _check(loops: _Loops, tile: MatMulTile) -> None:
    dots, direct = tile.method == "dots", tile.method == "direct"
    if (dots and not _reads_dots(loops)) or (direct and _order_of_b(loops) != "rows"):
        steps, column = loops.depth.strides[:2], loops.columns.strides[1]
        given = f"steps of the depth are {steps} apart, columns of b {column}"
        raise EmitError(f"matmul: {given}, need another method than {tile.method!r}")
    *others, y = loops.columns.strides[2:]
    if loops.columns.size > 1 and (y != 1 or any(stride not in (0, 1) for stride in others)):
        raise EmitError(f"matmul: columns of operands are {others} apart, need 0 or 1")


def _code(matmul: MatMul, loops: _Loops, tile: MatMulTile) -> MatMulCode:
    """Return the code of an oriented product."""
    operands = tuple(Channels("rows" if stride == 1 else "one", None) for stride in loops.columns.strides[2:-1])
    results = Results(
        tile.rows, tile.vectors, Channels("rows", None), operands, bias=False, expression=matmul.epilogue.expression
    )
    scaled = matmul.alpha != 1
    return MatMulCode(tile.method, _order_of_a(loops), _order_of_b(loops), results, scaled, len(_batches(loops)))


def _batches(loops: _Loops) -> list[Axis]:
    """Return the loops over batches, BATCHES at least."""
    missing = BATCHES - len(loops.batches)
    return [*[Axis(1, (0,) * len(loops.rows.strides))] * missing, *loops.batches]


def _numbers(matmul: MatMul, loops: _Loops, tile: MatMulTile, isa: Isa) -> dict[str, int]:
    """Return the numbers that the code of an oriented product reads, by name. Strides count elements.

    chunk_units, units: of a chunk, and in all. blocks, unit_columns, row_chunks, chunk_rows: how they are numbered. rows,
    columns, depth: of the product. batch0…: sizes of the batches, outermost first. a_first, a_row, a_batch0…: from an address to
    the first element, from row to row, from batch to batch; the same for b, y and the operands. a_step, b_step, b_column: of the
    factors, between steps of the depth and columns. copy_step: between columns of a copy of "dots". alpha: its bits, where it
    is not 1.
    """
    width = tile.blocks * tile.vectors * isa.lanes
    batches, blocks = _batches(loops), -(-loops.columns.size // width)
    row_chunks = -(-loops.rows.size // tile.chunk_rows)
    numbers = {
        "chunk_units": tile.units, "units": math.prod(axis.size for axis in batches) * blocks * row_chunks,
        "blocks": blocks, "unit_columns": width, "row_chunks": row_chunks, "chunk_rows": tile.chunk_rows,
        "rows": loops.rows.size, "columns": loops.columns.size, "depth": loops.depth.size,
        "a_step": loops.depth.strides[0], "b_step": loops.depth.strides[1], "b_column": loops.columns.strides[1],
        **{f"batch{n}": axis.size for n, axis in enumerate(batches)},
    }  # fmt: skip
    views = {"a": matmul.a, "b": matmul.b, **dict(zip(matmul.epilogue.arguments, matmul.epilogue.operands, strict=True))}
    for n, (name, view) in enumerate({**views, "y": matmul.y}.items()):
        numbers |= {f"{name}_first": view.offset, f"{name}_row": loops.rows.strides[n]}
        numbers |= {f"{name}_batch{at}": axis.strides[n] for at, axis in enumerate(batches)}
    numbers |= {"copy_step": steps_in_vectors(loops.depth.size, isa.lanes)} if tile.method == "dots" else {}
    return numbers | ({"alpha": int(np.float32(matmul.alpha).view(np.int32))} if matmul.alpha != 1 else {})
