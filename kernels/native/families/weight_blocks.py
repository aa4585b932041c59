"""Products with constant weights of 4 bits, scaled in blocks along the depth, which are taken apart in registers.

    for each chunk = (block of V vectors of columns, some rows):
        for each tile of P rows:
            total[P][V] = 0
            for each block of the depth:
                part[P][V] = 0
                for each word of 8 weights in every lane, for each weight of it:
                    part[p][v] += x[p] · (1 + weight[v] / 16)
                total[p][v] += 16·scale[v] · part[p][v] - (16 + zero[v])·scale[v] · sum of x[p] in the block
            y = epilogue(total)

A weight's 4 bits become a float32 without a conversion: shifted behind the exponent of 1, which is taken off by the sums of x, as
the zero point is. Those come from a kernel of their own, once for all columns. The last tile has fewer rows and the last block
fewer columns: they are computed all the same, from the last row and from zeros, and not stored.

Packed weights: [block of V vectors][block of the depth][word][V·lanes], words of 32 bits with the first weight lowest. Packed
scales: [block of V vectors][block of the depth][16·scale, -(16 + zero)·scale][V·lanes].
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from kernels.expression import FLOAT
from kernels.native.emit.builder import Function, Value
from kernels.native.emit.epilogue import Epilogue
from kernels.native.emit.kernel import SCRATCH, Bounds, NativeKernel, emitted, kernel_name
from kernels.native.emit.names import name_epilogue
from kernels.native.emit.product import FEW_REGISTERS, even
from kernels.native.emit.results import Numbers, Results, ResultsEmitter, result_numbers
from kernels.native.emit.types import F32, I32, I64
from kernels.native.errors import EmitError
from kernels.native.memory.buffers import aligned
from kernels.native.memory.image import Image
from kernels.native.target.isa import Isa
from kernels.record import record
from kernels.size import hint
from kernels.spec import Array

WORD_WEIGHTS = 8
ZERO = 8  # of weights without one of their own
_ONE, _WEIGHT, _WEIGHT_BIT = 0x3F800000, 0x00780000, 19  # of float32: 1, the 4 bits behind its exponent, and the lowest of them
_SIXTEEN = 16.0  # by which a weight behind the exponent of 1 is less than itself
CHAINS = 2  # sums of one row and vector side by side, where a tile has few of them
CHUNK_MACS = (128 << 10, 2 << 20)  # least and most of one chunk
CHUNKS = 32


@record
class BlockedProduct:
    """y = epilogue(x · weightsᵀ). x, y: matrices as images of one row, rows being pixels; y may be wider than its columns.

    block: weights of a block, a multiple of WORD_WEIGHTS that divides the depth.
    """

    x: Image
    y: Image
    block: int
    epilogue: Epilogue[Image]

    @property
    def rows(self) -> int:
        """Rows of x and y."""
        return self.y.width

    @property
    def blocks(self) -> int:
        """Blocks of a row of x."""
        return self.x.channels // self.block


def tile_of(rows: int, isa: Isa) -> tuple[int, int]:
    """Return the rows and vectors of columns of a tile."""
    few = isa.vector_registers == FEW_REGISTERS
    if hint(rows) == 1:
        return 1, 2 if few else 4
    return (2, 2) if few else (6, 2)


def pack_weight_blocks(b: Array, tile: tuple[int, int], isa: Isa) -> Array:
    """Pack weights (columns, blocks, bytes of a block), two to a byte, the lower 4 bits first."""
    columns, blocks, nbytes = b.shape
    width, words = tile[1] * isa.lanes, nbytes // 4
    count = -(-columns // width)
    full = np.zeros((count * width, blocks, words), np.uint32)
    full[:columns] = np.ascontiguousarray(b).view("<u4")
    return _packed(full.reshape(count, width, blocks, words).transpose(0, 2, 3, 1))


def pack_block_scales(scales: Array, zeros: Array | None, tile: tuple[int, int], isa: Isa) -> Array:
    """Pack scales and zero points, both (columns, blocks) of any real type. zeros: None = 8 for all."""
    columns, blocks = scales.shape
    width = tile[1] * isa.lanes
    count = -(-columns // width)
    exact = scales.astype(np.float64)
    both = np.zeros((2, count * width, blocks), np.float32)
    both[0, :columns] = _SIXTEEN * exact
    both[1, :columns] = -(_SIXTEEN + (ZERO if zeros is None else zeros.astype(np.float64))) * exact
    return _packed(both.reshape(2, count, width, blocks).transpose(1, 3, 0, 2))


def _packed(array: Array) -> Array:
    memory = aligned(array.nbytes).view(array.dtype)
    memory[:] = array.ravel()
    return memory


def emit_blocked_product(product: BlockedProduct, tile: tuple[int, int], isa: Isa) -> NativeKernel:
    """Emit the kernel. Its arguments: "x", "w" (`pack_weight_blocks`), "s" (`pack_block_scales`), "sums" of the blocks of x,
    those of the epilogue, and "y".

    Raises EmitError where blocks are no whole words, or do not divide the depth, and for epilogues of other types.
    """
    if product.block % WORD_WEIGHTS or product.x.channels % product.block:
        given = f"blocks of {product.block} weights in rows of {product.x.channels}"
        raise EmitError(f"weight blocks: {given}, need whole blocks of whole words of {WORD_WEIGHTS}")
    epilogue = product.epilogue
    epilogue.require("weight blocks", FLOAT)
    rows, vectors = tile
    results = Results.of(rows, vectors, product.y, epilogue, isa.lanes)
    width = vectors * isa.lanes
    column_blocks = -(-product.y.channels // width)
    macs = hint(product.rows) * product.x.channels * product.y.channels
    chunk_macs = min(max(macs // CHUNKS, CHUNK_MACS[0]), CHUNK_MACS[1])
    most = max(rows, chunk_macs // (product.x.channels * width) // rows * rows)
    chunk_rows = -(-even(hint(product.rows), most) // rows) * rows
    row_chunks = -(-product.rows // chunk_rows)
    words = product.block // WORD_WEIGHTS
    numbers = {
        "rows": product.rows, "columns": product.y.channels, "blocks": product.blocks, "words": words, "block": product.block,
        "x_row": product.x.x_stride, "row_chunks": row_chunks, "chunk_rows": chunk_rows,
    }  # fmt: skip
    for name, image in (("y", product.y), *zip(epilogue.arguments, epilogue.operands, strict=True)):
        numbers |= result_numbers(name, image, vectors, isa.lanes, 0)

    def body(k: Function, pointers: Mapping[str, Value], sizes: Mapping[str, Value], chunks: Bounds) -> None:
        _Emitter(k, results, sizes, pointers).emit(*chunks)

    return emitted(
        isa,
        kernel_name(f"f32_by_4bits_{rows}x{width}", ("4bits", results), isa, name_epilogue(epilogue)),
        ("x", "w", "s", "sums", *epilogue.arguments, "y", SCRATCH),
        column_blocks * row_chunks,
        body,
        numbers,
        scratch_bytes=results.buffer_bytes(isa.lanes),
    )


class _Emitter:
    """Emits the code; the methods are the loops of the module's docstring, from the outside in."""

    def __init__(self, k: Function, code: Results, n: Numbers, pointers: Mapping[str, Value]) -> None:
        self.k, self.n, self.pointers, self.lanes = k, n, pointers, k.isa.lanes
        self.rows, self.vectors = code.pixels, code.vectors
        self.results = ResultsEmitter(k, code, n, pointers[SCRATCH])
        self.chains = CHAINS if self.rows == 1 else 1

    def emit(self, begin: Value, end: Value) -> None:
        """Emit the loop over the chunks of a call; those of a block of columns follow one another."""
        k, n, width = self.k, self.n, self.vectors * self.lanes
        with k.loop("chunk", begin, end) as chunk:
            number, part = chunk // n["row_chunks"], chunk % n["row_chunks"]
            w = k.offset(self.pointers["w"], number * (n["blocks"] * n["words"] * width))
            s = k.offset(self.pointers["s"], number * (n["blocks"] * (2 * width)))
            zero, first = k.const(I64, 0), part * n["chunk_rows"]
            to = self.results.row(self.results.start(self.pointers, zero, None, number), zero)
            stop, left = k.least(first + n["chunk_rows"], n["rows"]), n["columns"] - number * width
            with k.loop("tile", first, stop, self.rows) as row:
                totals = self._tile(row, w, s)
                self.results.finish(totals, self.results.column(to, row), k.least(stop - row, k.const(I64, self.rows)), left)

    def _tile(self, row: Value, w: Value, s: Value) -> list[Value]:
        """Emit the totals of a tile, row by row. w, s: of its block of columns."""
        k, n, width = self.k, self.n, self.vectors * self.lanes
        places = [k.least(row + p, n["rows"] - 1) for p in range(self.rows)]
        x = [k.offset(self.pointers["x"], place * n["x_row"]) for place in places]
        sums = [k.offset(self.pointers["sums"], place * n["blocks"]) for place in places]
        with k.fold("block", 0, n["blocks"], 1, [k.zero(k.f32)] * (self.rows * self.vectors)) as fold:
            block = fold.index
            parts = self._block([k.offset(each, block * n["block"]) for each in x], k.offset(w, block * (n["words"] * width)))
            at, totals = k.offset(s, block * (2 * width)), list(fold.values)
            for v in range(self.vectors):
                scale, less = (k.load(k.f32, at, (kind * self.vectors + v) * self.lanes) for kind in (0, 1))
                for p in range(self.rows):
                    number = p * self.vectors + v
                    total = k.fma(parts[number], scale, totals[number])
                    totals[number] = k.fma(k.broadcast(k.f32, sums[p], block), less, total)
            fold.values = totals
        return fold.values

    def _block(self, x: list[Value], w: Value) -> list[Value]:
        """Emit the sums of one block, of weights behind the exponent of 1. x: its first elements of each row."""
        k, count = self.k, self.rows * self.vectors
        words = I32.by(self.lanes)
        with k.fold("word", 0, self.n["words"], 1, [k.zero(k.f32)] * (count * self.chains)) as fold:
            sums, at = list(fold.values), k.offset(w, fold.index * (self.vectors * self.lanes))
            raw = [k.load(words, at, v * self.lanes) for v in range(self.vectors)]
            for number in range(WORD_WEIGHTS):
                place, chain = fold.index * WORD_WEIGHTS + number, number % self.chains * count
                weights = [self._weight(word, number) for word in raw]
                for p in range(self.rows):
                    one = k.broadcast(k.f32, x[p], place)
                    for v, weight in enumerate(weights):
                        at_sum = chain + p * self.vectors + v
                        sums[at_sum] = k.fma(one, weight, sums[at_sum])
            fold.values = sums
        found = fold.values
        return [sum(found[at + count :: count], found[at]) for at in range(count)]

    def _weight(self, words: Value, number: int) -> Value:
        """Emit 1 + weight / 16, of the weight of that number in each word."""
        k, up = self.k, _WEIGHT_BIT - 4 * number
        moved = k.shift("shl", words, up) if up >= 0 else k.shift("lshr", words, -up)
        return k.convert("bitcast", (moved & _WEIGHT) | _ONE, F32.by(self.lanes))
