"""Matrix products of two tensors that are both computed at run time, in any layout, for all batches.

    for each chunk = a few units, for each unit = (batch, block of columns, block of rows):
        packed: write the columns of b side by side into scratch memory
        for each tile of rows × vectors of columns:        a is broadcast as it lies, b is read in vectors
            y = epilogue(alpha·a·b)

A few rows times a b whose columns are contiguous ("dots"): lanes run along the depth, and the sums of a vector of columns are
transposed into the lanes of one result. A product whose y is contiguous along its rows is done as yᵀ = bᵀ·aᵀ.
Where b is a constant, `kernels.native.families.conv` packs it once and is faster.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from kernels.expression import FLOAT
from kernels.native.emit.builder import Function, Value
from kernels.native.emit.epilogue import PLAIN, Epilogue
from kernels.native.emit.geometry import Block, channel_blocks, maybe
from kernels.native.emit.kernel import SCRATCH, NativeKernel, emitted, kernel_name
from kernels.native.emit.names import name_epilogue, name_order
from kernels.native.emit.nest import tiles
from kernels.native.emit.product import Tile, collect, copy, even, most_rows, multiply, turn
from kernels.native.emit.transpose import transpose
from kernels.native.emit.types import I64
from kernels.native.emit.walk import Addresses, Axis, axes_of, joined
from kernels.native.errors import EmitError
from kernels.native.memory.view import View
from kernels.native.target.isa import Isa

CHUNKS = 32  # wanted at least: the last one to finish then costs a few percent on a few cores
CHUNK_MACS = (128 << 10, 2 << 20)  # least and most of one chunk: 1 to 15 µs
DOT_ROWS = 3  # most rows of "dots": turning b costs about as much as three of them
PACKED_TILES = 4  # tiles of rows from which on packing a b with long rows pays
PACKED_ROWS = 96  # least of a unit: then packing costs a few percent
PACKED_BYTES = 512 << 10  # wanted at most, to stay in L2
NEAR = 128  # elements from row to row of b up to which its rows are read like packed ones

Method = Literal["direct", "packed", "dots"]


@dataclass(frozen=True, slots=True)
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
        rows, columns = self.y.shape[-2:]
        row, column = self.y.strides[-2:]
        if columns > 1 and column == 1:
            return self
        if rows > 1 and row == 1:
            return MatMul(_turned(self.b), _turned(self.a), _turned(self.y), self.alpha, self.epilogue.laid(_turned))
        if columns > 1:
            raise EmitError(f"matmul: y is {self.y}, need rows or columns without gaps")
        return self


def _turned(view: View) -> View:
    last = len(view.shape) - 1
    return view.transposed((*range(last - 1), last, last - 1))


@dataclass(frozen=True, slots=True)
class MatMulTile:
    """rows × vectors: accumulators. chunk_rows: of a unit. units: of a chunk. method: how b is read; "dots" has no tile."""

    rows: int
    vectors: int
    chunk_rows: int
    units: int
    method: Method

    def __str__(self) -> str:
        return f"{self.rows}x{self.vectors}_{self.method}"


@dataclass(frozen=True, slots=True)
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
    depth = Axis(a.shape[-1], (a.strides[-1], b.strides[-2], *[0] * (len(operands) + 1)))
    found = joined([*batches, rows])
    if found and (rows.size > 1 or found[-1].strides[1] == 0):
        rows = found.pop()
    return _Loops(found, rows, columns, depth)


def matmul_tiles(matmul: MatMul, isa: Isa, limit: int = 6) -> list[MatMulTile]:
    """Return the tiles that a port model estimates to be fastest, the best first."""
    loops = _loops(matmul.oriented())
    if _takes_dots(loops):
        return [make_matmul_tile(matmul, isa, 1, 1)]
    most = -(-loops.columns.size // isa.lanes)
    scored = []
    for vectors in range(1, min(most, 12) + 1):
        if 2 * vectors + 1 > isa.vector_registers:
            break
        height = even(loops.rows.size, most_rows(vectors, isa))
        scored.append((_estimate(loops, height, vectors, isa), -height * vectors, height, vectors))
    return [make_matmul_tile(matmul, isa, height, vectors) for _, _, height, vectors in sorted(scored)[:limit]]


def _takes_dots(loops: _Loops) -> bool:
    """Return whether the method "dots" applies, whose lanes run along the depth."""
    contiguous = loops.depth.strides[0] == loops.depth.strides[1] == 1
    return contiguous and loops.columns.strides[1] != 1 and loops.rows.size <= DOT_ROWS


def _reads_direct(loops: _Loops) -> bool:
    """Return whether b's columns are contiguous, so that vectors of them can be loaded directly."""
    return loops.columns.strides[1] == 1 or loops.columns.size == 1


def _estimate(loops: _Loops, rows: int, vectors: int, isa: Isa) -> float:
    """Estimate the cycles for one step of the depth.

    Two multiply–adds and two loads a cycle, latency 4; loads of b from L2 cost a little.
    """
    total = 0.0
    for block in channel_blocks(loops.columns.size, vectors, isa.lanes):
        for first in range(0, loops.rows.size, rows):
            high = min(rows, loops.rows.size - first)
            total += block.count * (max(high * block.vectors / 2, (high + block.vectors) / 2, 4) + 0.1 * block.vectors)
    scratch_bytes = 4 * loops.depth.size * vectors * isa.lanes
    least_chunks = math.prod(axis.size for axis in loops.batches) * -(-loops.columns.size // (vectors * isa.lanes))
    return total * (1 if scratch_bytes <= PACKED_BYTES else 1.2) * (1 + 1 / least_chunks if loops.rows.size <= rows else 1)


def make_matmul_tile(matmul: MatMul, isa: Isa, rows: int, vectors: int) -> MatMulTile:
    """Make a tile of these sizes; the rest follows by rule."""
    loops = _loops(matmul.oriented())
    height = loops.rows.size
    method: Method = "packed"
    if _takes_dots(loops):
        method = "dots"
    elif _reads_direct(loops) and (height < PACKED_TILES * rows or abs(loops.depth.strides[1]) <= NEAR):
        method = "direct"
    width = isa.lanes * (1 if method == "dots" else vectors)
    columns = -(-loops.columns.size // width) * math.prod(axis.size for axis in loops.batches)
    row_macs = loops.depth.size * min(width, loops.columns.size)
    least_macs = CHUNK_MACS[0] // max(1, 4 // height)  # few rows are bound by reading b
    wanted = min(max(matmul.macs // CHUNKS, least_macs), CHUNK_MACS[1])
    cut = even(height, max(PACKED_ROWS if method == "packed" else rows, wanted // row_macs // rows * rows))
    chunk_rows = min(height, -(-cut // rows) * rows)
    units = columns * -(-height // chunk_rows)
    return MatMulTile(rows, vectors, chunk_rows, max(1, min(units, wanted // (row_macs * chunk_rows))), method)


def emit_matmul(matmul: MatMul, tile: MatMulTile, isa: Isa) -> NativeKernel:
    """Emit the kernel. Raises EmitError for shapes that do not fit, and for a y or operands that vectors cannot reach."""
    if matmul.epilogue.bias:
        raise EmitError("matmul: the epilogue has a bias, products of two tensors take none")
    words = (tile.method, f"{name_order(matmul.a)}_by_{name_order(matmul.b)}", *name_epilogue(matmul.epilogue))
    name = kernel_name(f"f32_matmul_{tile.rows}x{tile.vectors * isa.lanes}", (matmul, tile), isa, words)
    oriented = matmul.oriented()
    emitter = _MatMulEmitter(oriented, tile, isa)

    def body(k: Function, values: list[Value]) -> None:
        first, second, *others, scratch, begin, end = values
        if oriented is not matmul:
            first, second = second, first
        views = (oriented.a, oriented.b, *oriented.epilogue.operands, oriented.y)
        dtypes = (FLOAT, FLOAT, *oriented.epilogue.dtypes, FLOAT)
        emitter.emit(k, Addresses.of(k, (first, second, *others), views, dtypes), scratch, begin, end)

    scratch_bytes = 4 * oriented.a.shape[-1] * emitter.width if tile.method == "packed" else 0
    return emitted(isa, name, matmul.arguments, emitter.chunks, body, scratch_bytes)


class _MatMulEmitter:
    """Emits one oriented product; the methods are the loops of the module docstring, from the outside in."""

    def __init__(self, matmul: MatMul, tile: MatMulTile, isa: Isa) -> None:
        self.matmul, self.tile, self.lanes = matmul, tile, isa.lanes
        self.loops = loops = _loops(matmul)
        if (tile.method == "dots" and not _takes_dots(loops)) or (tile.method == "direct" and not _reads_direct(loops)):
            steps, column = loops.depth.strides[:2], loops.columns.strides[1]
            given = f"steps of the depth are {steps} apart, columns of b {column}"
            raise EmitError(f"matmul: {given}, need another method than {tile.method!r}")
        *others, y = loops.columns.strides[2:]
        if loops.columns.size > 1 and (y != 1 or any(stride not in (0, 1) for stride in others)):
            raise EmitError(f"matmul: columns of operands are {others} apart, need 0 or 1")
        vectors = 1 if tile.method == "dots" else tile.vectors
        self.width = vectors * isa.lanes
        self.blocks = channel_blocks(loops.columns.size, vectors, isa.lanes)
        self.block_count = sum(block.count for block in self.blocks)
        self.row_chunks = -(-loops.rows.size // tile.chunk_rows)
        self.units = math.prod(axis.size for axis in loops.batches) * self.block_count * self.row_chunks
        self.chunks = -(-self.units // tile.units)

    def emit(self, k: Function, at: Addresses, scratch: Value, begin: Value, end: Value) -> None:
        """Emit the loop over the chunks of a call."""
        stop = end * self.tile.units
        if self.units % self.tile.units:
            stop = k.select(stop < self.units, stop, k.const(I64, self.units))
        with k.loop("unit", begin * self.tile.units, stop) as unit:
            cut, rest = unit % self.row_chunks, unit // self.row_chunks
            number, batch = rest % self.block_count, rest // self.block_count
            start = at.unravel(k, self.loops.batches, batch).move(k, self.loops.columns, number * self.width)
            for block in self.blocks:
                with maybe(k, block.chosen_by(number, self.blocks)):
                    self._unit(k, block, start, scratch, cut * self.tile.chunk_rows)

    def _unit(self, k: Function, block: Block, at: Addresses, scratch: Value, first: Value) -> None:
        """One block of rows of one block of columns."""
        tile, size = self.tile, self.loops.rows.size
        stop = first + tile.chunk_rows
        if size % tile.chunk_rows:
            stop = k.select(stop < size, stop, k.const(I64, size))
        if tile.method == "dots":
            with k.loop("row", first, stop) as row:
                self._dots(k, block, at.move(k, self.loops.rows, row))
            return
        b, b_step = at.values[1], self.loops.depth.strides[1]
        if tile.method == "packed":
            self._pack(k, block, b, scratch)
            b, b_step = scratch, block.vectors * self.lanes

        def rows_from(row: Value, count: int) -> None:
            self._tile(k, block, at.move(k, self.loops.rows, row), b, b_step, count)

        tiles(k, "row", size, (first, stop), tile.rows, rows_from)

    def _pack(self, k: Function, block: Block, b: Value, to: Value) -> None:
        """The block's columns of b, side by side."""
        columns, depth = (block.vectors - 1) * self.lanes + block.tail, self.loops.depth.size
        step, column = self.loops.depth.strides[1], self.loops.columns.strides[1]
        if column == 1:
            copy(k, columns, depth, b, step, to, block.vectors * self.lanes)
        elif step == 1:
            turn(k, columns, depth, b, column, to, block.vectors * self.lanes)
        else:
            collect(k, columns, depth, b, (step, column), to, block.vectors * self.lanes)

    def _tile(self, k: Function, block: Block, at: Addresses, b: Value, b_step: int, rows: int) -> None:
        """One register tile."""
        loops, packed = self.loops, self.tile.method == "packed"
        tail = self.lanes if packed else block.tail
        tile = Tile(rows, block.vectors, tail, loops.rows.strides[0], loops.depth.strides[0], b_step)
        values = multiply(k, tile, loops.depth.size, at.values[0], b, [k.zero(k.f32)] * rows * block.vectors)
        for row in range(rows):
            here = at.move(k, loops.rows, row)
            for v in range(block.vectors):
                lanes = block.tail if v == block.vectors - 1 else self.lanes
                self._store(k, values[row * block.vectors + v], here.move(k, loops.columns, v * self.lanes), lanes)

    def _store(self, k: Function, value: Value, at: Addresses, lanes: int) -> None:
        """Apply the epilogue and store."""
        if self.matmul.alpha != 1:
            value = value * self.matmul.alpha
        epilogue = self.matmul.epilogue
        loads = [partial(at.load, k, 2 + n, self.loops.columns, lanes) for n in range(len(epilogue.operands))]
        k.store_part(epilogue.finish(k, value, loads), at.values[-1], lanes)

    def _dots(self, k: Function, block: Block, at: Addresses) -> None:
        """A vector of columns of one row, lanes along the depth."""
        a, b, column = at.values[0], at.values[1], self.loops.columns.strides[1]
        whole, tail = divmod(self.loops.depth.size, self.lanes)

        def add(sums: list[Value], start: Value, lanes: int) -> list[Value]:
            one, others = k.load_part(k.f32, a, lanes, start), k.offset(b, start)
            return [k.fma(one, k.load_part(k.f32, others, lanes, n * column), total) for n, total in enumerate(sums)]

        sums = [k.zero(k.f32)] * block.tail
        if whole:
            with k.fold("depth", 0, whole * self.lanes, self.lanes, sums) as fold:
                fold.values = add(fold.values, fold.index, self.lanes)
            sums = fold.values
        if tail:
            sums = add(sums, k.const(I64, whole * self.lanes), tail)
        turned = transpose(k, [*sums, *[k.zero(k.f32)] * (self.lanes - len(sums))])
        while len(turned) > 1:
            turned = [first + second for first, second in zip(turned[::2], turned[1::2], strict=True)]
        self._store(k, turned[0], at, block.tail)
