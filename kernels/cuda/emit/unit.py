"""Products of two tiles in shared memory, by tensor cores or by fp32 multiply-adds.

A tile's row is 128 bytes, of consecutive depth, in 8 pieces of 16 bytes; piece p of row r lies at place p ^ (r % 8), so that
neither the copies that fill a tile nor the loads that read it meet in one bank. Each warp computes a block of the results, and
each thread of it some rows and, in each, runs of consecutive columns. For that, rows of the right tile (columns of the result)
are in the order that `column_of` gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from kernels.cuda.emit.builder import assemble, load_fragments, load_shared_words
from kernels.native.emit.builder import Function, Value
from kernels.native.emit.types import F32, I32, I64, VOID
from kernels.record import record

ROW_BYTES, PART_BYTES = 128, 16


@record
class Block:
    """The results of a warp, in whole tiles of its unit. group: tiles side by side that share a thread's run of columns."""

    rows: int
    columns: int

    @property
    def group(self) -> int:
        """Tiles of 8 columns whose columns are dealt out together."""
        return 4 if self.columns % 32 == 0 else 2


PARTS = 4  # of a row's depth, 32 bytes each: the next are loaded while one is multiplied


@record
class Operands:
    """A thread's words of a part of both factors, by tile of the left one and of the right one."""

    left: list[list[Value]]
    right: list[list[Value]]

    @property
    def words(self) -> list[Value]:
        """All of them in order."""
        return [word for side in (self.left, self.right) for words in side for word in words]

    def replaced(self, words: Sequence[Value]) -> Operands:
        """Return operands like these of other words, in the order of `words`, and perhaps more after them."""
        rest = iter(words)
        left, right = ([[next(rest) for _ in tile] for tile in side] for side in (self.left, self.right))
        return Operands(left, right)


class MathUnit(Protocol):
    """A way to multiply tiles."""

    def run(self, block: Block) -> int:
        """Return how many consecutive columns a thread has."""

    def column_of(self, k: Function, row: Value, block: Block) -> Value:
        """Return which column of the result a row of the right tile in shared memory is."""

    @property
    def row_step(self) -> int:
        """Rows from one of a thread's to the next."""

    def results(self, block: Block) -> int:
        """Return how many results a thread has."""

    def operands(self, k: Function, left: Value, right: Value, lane: Value, block: Block, part: int) -> Operands:
        """Emit the loads of one part of a row's depth, of `PARTS` in all.

        left, right: shared addresses of the warp's first row and of its first column.
        """

    def multiply(self, k: Function, operands: Operands, sums: Sequence[Value]) -> list[Value]:
        """Emit the product of what was loaded, added to `sums`."""

    def places(self, k: Function, lane: Value, block: Block) -> tuple[list[Value], list[Value], list[list[list[int]]]]:
        """Return a thread's rows, the first columns of its runs, and by row and run the numbers of its results."""


def _dealt(k: Function, row: Value, block: Block) -> tuple[Value, Value, Value]:
    """Split a row of the right tile into its group's first row, its tile in that, and its row in that."""
    size = 8 * block.group
    within = row & (size - 1)
    return row - within, k.shift("lshr", within, 3), within & 7


def _swizzled(k: Function, part: Value | int, row: Value) -> Value:
    """Return where in its row a part of 16 bytes lies. row: its number modulo 8."""
    return k.shift("shl", row ^ part, 4)


@record
class TensorUnit:
    """mma.sync. kind: the instruction's types. depth: elements of a row that it multiplies, 32 bytes. rounds: whether elements
    are fp32 that must be rounded to tf32 first."""

    kind: str
    depth: int
    rounds: bool = False

    @property
    def row_step(self) -> int:
        """Rows from one of a thread's to the next."""
        return 8

    def run(self, block: Block) -> int:
        """Return how many consecutive columns a thread has."""
        return 2 * block.group

    def column_of(self, k: Function, row: Value, block: Block) -> Value:
        """Return which column of the result a row of the right tile in shared memory is."""
        first, tile, c = _dealt(k, row, block)
        return first + k.shift("lshr", c, 1) * (2 * block.group) + tile * 2 + (c & 1)

    def results(self, block: Block) -> int:
        """Return how many results a thread has."""
        return block.rows * block.columns // 32

    def operands(self, k: Function, left: Value, right: Value, lane: Value, block: Block, part: int) -> Operands:
        """Emit the loads of one part of a row's depth."""
        in_eight, matrix = lane & 7, k.shift("lshr", lane, 3)
        odd, high = matrix & 1, k.shift("lshr", matrix, 1)
        a_at = left + (odd * 8 + in_eight) * ROW_BYTES + _swizzled(k, high + 2 * part, in_eight)
        b_at = right + (high * 8 + in_eight) * ROW_BYTES + _swizzled(k, odd + 2 * part, in_eight)
        a = [load_fragments(k, a_at, tile * 16 * ROW_BYTES) for tile in range(block.rows // 16)]
        pairs = [load_fragments(k, b_at, pair * 16 * ROW_BYTES) for pair in range(block.columns // 16)]
        return Operands(a, [pair[half : half + 2] for pair in pairs for half in (0, 2)])

    def multiply(self, k: Function, operands: Operands, sums: Sequence[Value]) -> list[Value]:
        """Emit the product of what was loaded, added to `sums`."""
        sums = list(sums)
        left, right = ([[self.rounded(k, w) for w in words] for words in side] for side in (operands.left, operands.right))
        for m, rows in enumerate(left):
            for n, columns in enumerate(right):
                at = 4 * (m * len(right) + n)
                sums[at : at + 4] = self._mma(k, rows, columns, sums[at : at + 4])
        return sums

    def rounded(self, k: Function, word: Value) -> Value:
        """Round fp32 to tf32, which has 13 bits less, with an error of at most 0.7 of its last place.

        Adding 0.7/2048 of the number before the bits are cut off leaves what is tf32 already as it is, and infinity and NaN.
        On an H200 cvt.rna.tf32, with an error of 0.5, limits products to 140 TFLOP/s; this gives 184 (2026-11-30).
        """
        if not self.rounds:
            return word
        x = k.convert("bitcast", word, F32)
        return k.convert("bitcast", k.fma(x, 0.7 / 2048, x), I32) & -8192

    def _mma(self, k: Function, a: Sequence[Value], b: Sequence[Value], c: Sequence[Value]) -> list[Value]:
        text = f"mma.sync.aligned.m16n8k{self.depth}.row.col.{self.kind}.f32 {{$0,$1,$2,$3}}, {{$4,$5,$6,$7}}, {{$8,$9}}, "
        return assemble(k, text + "{$10,$11,$12,$13};", [F32] * 4, (*a, *b, *c), pure=True)

    def places(self, k: Function, lane: Value, block: Block) -> tuple[list[Value], list[Value], list[list[list[int]]]]:
        """Return a thread's rows, the first columns of its runs, and by row and run the numbers of its results."""
        row, column = k.shift("lshr", lane, 2), (lane & 3) * (2 * block.group)
        tiles = block.columns // 8
        rows = [row + (16 * m + 8 * half) for m in range(block.rows // 16) for half in range(2)]
        columns = [column + 8 * first for first in range(0, tiles, block.group)]
        numbers = [
            [
                [4 * (m * tiles + first + tile) + 2 * half + e for tile in range(block.group) for e in range(2)]
                for first in range(0, tiles, block.group)
            ]
            for m in range(block.rows // 16)
            for half in range(2)
        ]
        return rows, columns, numbers


@record
class SplitUnit:
    """fp32 by three products of tf32: each factor is what tf32 holds of it and what is left, and the product of the two rests is
    left out, which is 2^-20 of the whole at most."""

    tensor: TensorUnit

    def multiply(self, k: Function, operands: Operands, sums: Sequence[Value]) -> list[Value]:
        """Emit the product of what was loaded, added to `sums`; the smaller parts first."""
        words = operands.words
        heads = [self.tensor.rounded(k, word) for word in words]
        rests = [self._rest(k, word, head) for word, head in zip(words, heads, strict=True)]
        large, small = operands.replaced(heads), operands.replaced(rests)
        for left, right in ((small.left, large.right), (large.left, small.right), (large.left, large.right)):
            sums = self.tensor.multiply(k, Operands(left, right), sums)
        return list(sums)

    def _rest(self, k: Function, word: Value, head: Value) -> Value:
        return k.convert("bitcast", k.convert("bitcast", word, F32) - k.convert("bitcast", head, F32), I32)


@record
class GroupUnit:
    """wgmma, which only compute capability 9.0 has: four warps multiply 64 rows together, straight from shared memory.

    kind, depth: as of `TensorUnit`, where results also lie as here. ends: what follows the operands. fp32 loses the bits that
    tf32 lacks without rounding.
    """

    kind: str
    depth: int
    ends: str

    def start(self, k: Function, left: Value, right: Value, block: Block, sums: Sequence[Value]) -> list[Value]:
        """Emit the start of the product of the group's rows by all columns over one row's depth, added to `sums`.

        left, right: shared addresses of the group's first row, and of the first column. What was copied there has been made
        visible by `publish_copies`. Nothing may touch the sums that it returns before `finish`.
        """
        descriptors = [self._descriptor(k, side, part) for side in (left, right) for part in range(PARTS)]
        n, float_sums = len(sums), ", ".join([F32.text] * len(sums))
        values = "{" + ",".join(f"${at}" for at in range(n)) + "}"
        text = "{ .reg .pred on; setp.eq.b32 on, 0, 0; wgmma.fence.sync.aligned; "
        for part in range(PARTS):
            text += f"wgmma.mma_async.sync.aligned.m64n{block.columns}k{self.depth}.{self.kind} "
            text += f"{values}, ${n + part}, ${n + PARTS + part}, on{self.ends}; "
        text += "wgmma.commit_group.sync.aligned; }"
        constraints = ",".join(["=f"] * n + ["l"] * 2 * PARTS + [str(at) for at in range(n)] + ["~{memory}"])
        arguments = ", ".join(map(str, (*descriptors, *sums)))
        whole = k.op(f'call {{{float_sums}}} asm sideeffect "{text}", "{constraints}"({arguments})', VOID, "group")
        return [k.op(f"extractvalue {{{float_sums}}} {whole.ref}, {at}", F32, "sum") for at in range(n)]

    def finish(self, k: Function) -> None:
        """Emit the wait for the product that was started."""
        assemble(k, "wgmma.wait_group.sync.aligned 0;", (), ())

    def _descriptor(self, k: Function, address: Value, part: int) -> Value:
        """Describe rows of 128 swizzled bytes, 1024 from 8 rows to the next 8 (PTX ISA, "Matrix Descriptor Format" of wgmma)."""
        sixteenths = k.convert("zext", k.shift("lshr", address & 0x3FFFF, 4) + 2 * part, I64)
        return sixteenths | ((1 << 62) | (64 << 32) | (1 << 16))


@record
class FmaUnit:
    """fp32 multiply-adds: a warp's threads are 4 rows of 8, each with every fourth row and every eighth row of the right tile."""

    @property
    def row_step(self) -> int:
        """Rows from one of a thread's to the next."""
        return 4

    def run(self, block: Block) -> int:
        """Return how many consecutive columns a thread has."""
        return block.group

    def column_of(self, k: Function, row: Value, block: Block) -> Value:
        """Return which column of the result a row of the right tile in shared memory is."""
        first, tile, c = _dealt(k, row, block)
        return first + c * block.group + tile

    def results(self, block: Block) -> int:
        """Return how many results a thread has."""
        return block.rows * block.columns // 32

    def operands(self, k: Function, left: Value, right: Value, lane: Value, block: Block, part: int) -> Operands:
        """Emit the loads of one part of a row's depth."""
        down, across = k.shift("lshr", lane, 3), lane & 7
        rows: list[list[Value]] = [[] for _ in range(block.rows // 4)]
        columns: list[list[Value]] = [[] for _ in range(block.columns // 8)]
        for piece in (2 * part, 2 * part + 1):
            a_at = [left + down * ROW_BYTES + _swizzled(k, piece, down + 4 * odd) for odd in range(2)]
            b_at = right + across * ROW_BYTES + _swizzled(k, piece, across)
            for m, row in enumerate(rows):
                row.extend(self._load(k, a_at[m % 2], 4 * m * ROW_BYTES))
            for n, column in enumerate(columns):
                column.extend(self._load(k, b_at, 8 * n * ROW_BYTES))
        return Operands(rows, columns)

    def multiply(self, k: Function, operands: Operands, sums: Sequence[Value]) -> list[Value]:
        """Emit the product of what was loaded, added to `sums`."""
        sums, columns = list(sums), len(operands.right)
        for d in range(len(operands.left[0])):
            for m, row in enumerate(operands.left):
                for n, column in enumerate(operands.right):
                    sums[m * columns + n] = k.fma(row[d], column[d], sums[m * columns + n])
        return sums

    def _load(self, k: Function, address: Value, at: int) -> list[Value]:
        return [k.convert("bitcast", word, F32) for word in load_shared_words(k, address, at)]

    def places(self, k: Function, lane: Value, block: Block) -> tuple[list[Value], list[Value], list[list[list[int]]]]:
        """Return a thread's rows, the first columns of its runs, and by row and run the numbers of its results."""
        down, column = k.shift("lshr", lane, 3), (lane & 7) * block.group
        columns, group = block.columns // 8, block.group
        rows = [down + 4 * m for m in range(block.rows // 4)]
        firsts = range(0, columns, group)
        numbers = [[[m * columns + first + n for n in range(group)] for first in firsts] for m in range(block.rows // 4)]
        return rows, [column + 8 * first for first in firsts], numbers
