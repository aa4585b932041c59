"""Square tiles transposed in registers: unpacked within 128 bits, then whole 128-bit blocks, as every instruction set can."""

from __future__ import annotations

from collections.abc import Sequence

from kernels.native.emit.builder import Function, Value


def transpose(k: Function, rows: Sequence[Value]) -> list[Value]:
    """Transpose as many vectors as each has lanes, a power of two: lane i of result j is lane j of row i."""
    kind = rows[0].type
    within = min(kind.lanes, max(1, 128 // kind.bits))  # lanes of a 128-bit block
    groups = [_transpose_within(k, rows[start : start + within], within) for start in range(0, kind.lanes, within)]
    columns: list[Value | None] = [None] * kind.lanes
    for j in range(within):
        for block, column in enumerate(_transpose_blocks(k, [group[j] for group in groups], within)):
            columns[block * within + j] = column
    return [column for column in columns if column is not None]


def _transpose_within(k: Function, rows: Sequence[Value], within: int) -> list[Value]:
    """Transpose within each 128-bit block: interleave the first half of the rows with the second, log2 times."""
    rows, lanes = list(rows), rows[0].type.lanes
    low = [start + lane // 2 + (lanes if lane % 2 else 0) for start in range(0, lanes, within) for lane in range(within)]
    high = [lane + within // 2 for lane in low]
    for _ in range(within.bit_length() - 1):
        pairs = zip(rows[: within // 2], rows[within // 2 :], strict=True)
        rows = [k.shuffle(a, b, picks) for a, b in pairs for picks in (low, high)]
    return rows


def _transpose_blocks(k: Function, rows: Sequence[Value], within: int) -> list[Value]:
    """Transpose whole 128-bit blocks of as many rows as each has blocks: collect even and odd blocks, log2 times."""
    if len(rows) == 1:
        return list(rows)
    lanes = rows[0].type.lanes
    even = [start + lane for start in range(0, 2 * lanes, 2 * within) for lane in range(within)]
    odd = [lane + within for lane in even]
    pairs = list(zip(rows[::2], rows[1::2], strict=True))
    halves = [_transpose_blocks(k, [k.shuffle(a, b, picks) for a, b in pairs], within) for picks in (even, odd)]
    return [column for pair in zip(*halves, strict=True) for column in pair]
