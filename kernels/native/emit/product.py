"""Parts of the products of two tensors that are both known only at run time: a register tile, and transposing rows to vectors.

A tile is rows × vectors of accumulators. Elements of the first factor are broadcast one by one, so it may have any layout; the
second is read in vectors. Where its contiguous dimension is the depth it is transposed into scratch memory first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kernels.native.emit.builder import Function, Operand, Value
from kernels.native.emit.transpose import transpose
from kernels.native.emit.types import F32, I8, I64
from kernels.native.target.isa import Isa

BODY_FMAS = 448  # unrolled multiply–adds in the innermost loop: enough to hide its end, small enough for the op cache
LINE_ELEMENTS = 16  # fp32 of a cache line
MOST_PIXELS = 28  # of the tallest tile that is worth trying
MOST_STEPS = 16  # unrolled


@dataclass(frozen=True, slots=True)
class Tile:
    """rows × vectors accumulators; of the last vector `tail` lanes count, and no more are read of the second factor.

    a_row, a_step: elements from row to row and from one step of the depth to the next of the first factor. b_step: from step to
    step of the second, whose vectors lie side by side.
    """

    rows: int
    vectors: int
    tail: int
    a_row: int
    a_step: int
    b_step: int


def most_rows(vectors: int, isa: Isa, steps: int = 1) -> int:
    """Return the rows of the tallest tile of so many vectors that fits the registers. steps: of the depth, loaded at once."""
    spare = 1 if isa.fma else 4  # the broadcast; without FMA products too, and two-operand instructions copy
    return max(1, (isa.vector_registers - steps * vectors - spare) // vectors)


def step_cycles(rows: int, vectors: int) -> float:
    """Estimate the cycles of a tile for one step of the depth: two multiply–adds and two loads a cycle, latency 4.

    5 % more are for wide loads of weights from L2, which a taller tile repeats less often.
    """
    return max(rows * vectors / 2, (rows + vectors) / 2, 4) + 0.1 * vectors + 0.05 * rows


def even(size: int, most: int) -> int:
    """Return the size of pieces of at most `most` elements that are as even as possible."""
    return -(-size // -(-size // most))


def multiply(k: Function, tile: Tile, depth: Operand, a: Value, b: Value, starts: list[Value]) -> list[Value]:
    """Emit starts + a·b over the depth and return the sums, row by row."""
    unroll = max(1, min(MOST_STEPS, BODY_FMAS // (tile.rows * tile.vectors)))

    def body(index: Value, count: int, values: list[Value]) -> list[Value]:
        values, at, vectors = list(values), k.offset(a, index * tile.a_step), k.offset(b, index * tile.b_step)
        for step in range(count):
            loaded = [
                k.load_part(
                    k.f32, vectors, tile.tail if v == tile.vectors - 1 else k.isa.lanes, step * tile.b_step + v * k.isa.lanes
                )
                for v in range(tile.vectors)
            ]
            for row in range(tile.rows):
                one = k.broadcast(k.f32, at, row * tile.a_row + step * tile.a_step)
                for v, other in enumerate(loaded):
                    values[row * tile.vectors + v] = k.fma(one, other, values[row * tile.vectors + v])
        return values

    return unrolled(k, "depth", depth, unroll, starts, body)


def unrolled(
    k: Function,
    name: str,
    count: Operand,
    unroll: int,
    values: list[Value],
    body: Callable[[Value, int, list[Value]], list[Value]],
) -> list[Value]:
    """Emit body(index, turns, values), which returns the values after it, for `unroll` turns at a time and then for the rest."""
    total = k.coerce(count, I64)
    if total.known is None:
        whole = total - total % unroll
        with k.fold(name, 0, whole, unroll, values) as fold:
            fold.values = body(fold.index, unroll, fold.values)
        if unroll == 1:
            return fold.values
        with k.fold(name, whole, total, 1, fold.values) as rest:
            rest.values = body(rest.index, 1, rest.values)
        return rest.values
    most = total.known // unroll * unroll
    if most:
        with k.fold(name, 0, most, unroll, values) as fold:
            fold.values = body(fold.index, unroll, fold.values)
        values = fold.values
    return body(k.const(I64, most), total.known - most, values) if total.known > most else values


def turn(k: Function, rows: int, depth: Operand, a: Value, a_row: int, to: Value, to_step: int, factor: float = 1.0) -> None:
    """Write rows whose elements lie side by side as vectors of rows: element (row, step)·factor at step·to_step + row.

    Whole vectors are written, with 0 in the lanes behind the last row.
    """
    lanes = k.isa.lanes

    def block(count: int, at: Value, target: Value, steps: int) -> None:
        taken = [k.load_part(k.f32, at, steps, row * a_row) if row < count else k.zero(k.f32) for row in range(lanes)]
        for step, vector in enumerate(transpose(k, taken)[:steps]):
            k.store(vector if factor == 1 else vector * factor, target, step * to_step)

    def strip(count: int, at: Value, target: Value) -> None:
        total = k.coerce(depth, I64)

        def body(index: Value, turns: int, _: list[Value]) -> list[Value]:
            block(count, k.offset(at, index), k.offset(target, index * to_step), turns)
            return []

        unrolled(k, "turn", total, lanes, [], body)

    whole, rest = divmod(rows, lanes)
    if whole:
        with k.loop("strip", 0, whole) as n:
            strip(lanes, k.offset(a, n * (lanes * a_row)), k.offset(to, n * lanes))
    if rest:
        strip(rest, k.offset(a, whole * lanes * a_row), k.offset(to, whole * lanes))


def copy(k: Function, columns: int, depth: int, b: Value, b_step: int, to: Value, to_step: int) -> None:
    """Write `depth` rows of columns that lie side by side, to_step apart, padded to whole vectors with 0."""
    vectors, lanes = -(-columns // k.isa.lanes), k.isa.lanes

    def body(index: Value, turns: int, _: list[Value]) -> list[Value]:
        at, target = k.offset(b, index * b_step), k.offset(to, index * to_step)
        for step in range(turns):
            for v in range(vectors):
                part = min(lanes, columns - v * lanes)
                k.store(k.load_part(k.f32, at, part, step * b_step + v * lanes), target, step * to_step + v * lanes)
        return []

    unrolled(k, "copy", depth, 4, [], body)


def collect(k: Function, columns: int, depth: int, b: Value, strides: tuple[int, int], to: Value, to_step: int) -> None:
    """Write columns with any strides element by element, laid out as `copy` does.

    strides: from step to step of the depth, and from column to column.
    """
    lanes = k.isa.lanes
    with k.loop("step", 0, depth) as step:
        at, target = k.offset(b, step * strides[0]), k.offset(to, step * to_step)
        for v in range(-(-columns // lanes)):
            vector = k.zero(k.f32)
            for lane in range(min(lanes, columns - v * lanes)):
                vector = k.insert(vector, k.load(F32, at, (v * lanes + lane) * strides[1]), lane)
            k.store(vector, target, v * lanes)


def multiply_channel(
    k: Function, tile: tuple[int, int], x: Value, pixel: Operand, values: Sequence[Value], ahead_step: Operand
) -> list[Value]:
    """Emit the multiply–adds of one channel with packed weights. Of several, LLVM would load all weights first, and spill.

    tile: pixels × vectors. x: the channel of the first pixel. pixel: elements from one to the next. values: the sums, the address
    of the channel's weights, and an address to prefetch; returned are those of the next channel. ahead_step: bytes from one
    address to prefetch to the next.
    """
    pixels, vectors = tile
    *sums, w, ahead = values
    k.prefetch(ahead)
    weights = [k.load(k.f32, w, v * k.isa.lanes) for v in range(vectors)]
    for p in range(pixels):
        one = k.broadcast(k.f32, x, pixel * p)
        for v in range(vectors):
            sums[p * vectors + v] = k.fma(one, weights[v], sums[p * vectors + v])
    return [*sums, k.offset(w, vectors * k.isa.lanes), k.offset(ahead, ahead_step, I8)]
