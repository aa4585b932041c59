"""Parts of the products of two tensors that are both known only at run time: a register tile, and transposing rows to vectors.

A tile is rows × vectors of accumulators. Elements of the first factor are broadcast one by one, so it may have any layout; the
second is read in vectors. Where its contiguous dimension is the depth it is transposed into scratch memory first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from kernels.native.emit.builder import Function, Operand, Value
from kernels.native.emit.transpose import transpose
from kernels.native.emit.types import F32, I8, I64
from kernels.native.emit.words import F32_WORDS, Words
from kernels.native.target.isa import Isa
from kernels.record import record

FEW_REGISTERS = 16
BUSY = 8  # accumulators that keep two multiply–add units of latency 4 busy
LINE_ELEMENTS = 16  # fp32 of a cache line
L2_BYTES_PER_CYCLE = 32
MOST_PIXELS = 28  # of the tallest tile that is worth trying
# Tiles (pixels, vectors) of convolutions whose groups share vectors: a pixel takes two registers, a channel of a group one.
GROUP_TILES = ((1, 1), (4, 1), (7, 1), (8, 1))
# Tiles (pixels, vectors) of convolutions and of products with packed weights, by the number of registers: few, so that layers and
# models share kernels. By the port model all others would save 0.2 % over 794 convolutions and products of 37 models.
TILES: Mapping[int, Sequence[tuple[int, int]]] = {
    32: ((1, 1), (7, 1), (14, 1), (28, 1), (1, 2), (4, 2), (7, 2), (8, 2), (14, 2), (8, 3), (1, 4), (6, 4), (5, 5), (1, 8)),
    16: ((1, 1), (7, 1), (14, 1), (1, 2), (4, 2), (5, 2), (6, 2), (4, 3), (1, 4), (2, 4), (2, 5), (1, 8)),
}


def rest_rows(rows: int, vectors: int) -> int:
    """Return the rows of the tile that follows the last one of so many rows which is full; 0 where none has to."""
    return min(-(-BUSY // vectors), rows - 1)


def most_rows(vectors: int, isa: Isa, steps: int = 1, others: int = 0) -> int:
    """Return the rows of the tallest tile of so many vectors that fits the registers.

    steps: of the depth, loaded at once. others: registers that are taken beside.
    """
    spare = 1 if isa.fma else 4  # the broadcast; without FMA products too, and two-operand instructions copy
    return max(1, (isa.vector_registers - steps * vectors - spare - others) // vectors)


def step_cycles(rows: int, vectors: int, isa: Isa) -> float:
    """Estimate the cycles of a tile for one step of the depth: two multiply–adds and two loads a cycle, latency 4.

    Weights come from L2 at 32 bytes a cycle. More are for their loads, which a taller tile repeats less often, and for each
    broadcast: on AVX-512 (Zen 5) the tiles 2×10, 3×7, 8×3, 9×3, 14×2 and 28×1 took 20, 15, 14, 15, 17 and 19 cycles.
    """
    each = 0.16 if isa.vector_registers > FEW_REGISTERS else 0.05
    weights = vectors * isa.lanes * 4 / L2_BYTES_PER_CYCLE
    return max(rows * vectors / 2, (rows + vectors) / 2, weights, 4) + 0.1 * vectors + each * rows


def even(size: int, most: int) -> int:
    """Return the size of pieces of at most `most` elements that are as even as possible."""
    return -(-size // -(-size // most))


Load = Callable[[Value], Value]  # reads a vector at an address


@record
class Rows:
    """Rows of the first factor of a product, whose elements are broadcast one by one.

    at: address of the first element of the first row. row, step: elements from row to row, and from one step of the depth to the
    next. last: number of the last row that exists, which stands in for all later ones; None where all of a tile exist.
    """

    at: Value
    row: Operand
    step: Operand
    last: Value | None = None

    def broadcasts(self, k: Function, count: int) -> Callable[[Value], Callable[[int], Value]]:
        """Return what reads an element, by its step and then its row, where there are so many rows.

        Addresses of rows that may not exist are computed here, once.
        """
        last, rows = self.last, list[Value]()
        if last is not None:
            rows = [k.offset(self.at, k.least(n, last) * self.row) for n in range(count)]

        def of_step(step: Value) -> Callable[[int], Value]:
            along = step * self.step
            if rows:
                return lambda n: k.broadcast(k.f32, rows[n], along)
            at = k.offset(self.at, along)
            return lambda n: k.broadcast(k.f32, at, self.row * n)

        return of_step


def whole_load(k: Function) -> Load:
    """Return what reads all lanes of a vector."""
    return lambda address: k.load(k.f32, address)


def first_load(k: Function, count: Value) -> Load:
    """Return what reads the first `count` lanes of a vector, and sets the others to 0."""
    if k.has_masks(k.f32):
        mask = k.first_lanes(k.f32, count)
        return lambda address: k.load_masked(k.f32, address, mask)
    return lambda address: k.load_first(k.f32, address, count)


def part_load(k: Function, left: Value, first: int = 0) -> Load:
    """Return what reads vector `first`/lanes of a row of `left` elements, and nothing behind the row's end.

    Lanes behind the end hold 0, or the row's last element where the instruction set has no masks. The row has one element at
    least; the address is that of element `first`, which may lie behind the end.
    """
    if k.has_masks(k.f32):
        return first_load(k, left - first)
    places = [k.least(first + lane, left - 1) - first for lane in range(k.isa.lanes)]

    def load(address: Value) -> Value:
        vector = k.poison(k.f32)
        for lane, place in enumerate(places):
            vector = k.insert(vector, k.load(F32, address, place), lane)
        return vector

    return load


def multiply(
    k: Function, rows: Rows, loads: Sequence[Load], depth: Value, b: Value, b_step: Operand, starts: Sequence[Value]
) -> list[Value]:
    """Emit starts + a·b over the depth, 1 at least, and return the sums, row by row.

    loads: of each vector of the tile, what reads it. b: address of the first vector of the second factor; others follow without
    a gap. b_step: elements from one step of the depth to the next. There are as many rows as starts divided by vectors.
    """
    vectors = len(loads)
    count = len(starts) // vectors
    broadcasts = rows.broadcasts(k, count)
    with k.fold("depth", 0, depth, 1, starts, runs=True) as fold:
        values, at = list(fold.values), k.offset(b, fold.index * b_step)
        loaded = [load(k.offset(at, v * k.isa.lanes)) for v, load in enumerate(loads)]
        broadcast = broadcasts(fold.index)
        for row in range(count):
            one = broadcast(row)
            for v, other in enumerate(loaded):
                values[row * vectors + v] = k.fma(one, other, values[row * vectors + v])
        fold.values = values
    return fold.values


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


def lanes_apart(k: Function, apart: Value) -> Callable[[Value], list[Value]]:
    """Return what makes as many addresses as a vector has lanes, from the first one on. apart: elements between neighbours.

    Each is the first plus a multiple that x86 scales as it loads: there are too few registers for all of them.
    """
    odd = {n: k.opaque(apart * (4 * n)) for n in range(1, k.isa.lanes, 2)}

    def addresses(first: Value) -> list[Value]:
        base = k.opaque(first)
        twos = [(n & -n).bit_length() - 1 for n in range(1, k.isa.lanes)]
        return [base, *(k.offset(base, k.shift("shl", odd[n >> two], two), I8) for n, two in enumerate(twos, 1))]

    return addresses


def turn(
    k: Function, rows: Value, depth: Value, a: Value, a_row: Value, to: Value, to_step: int, factor: Value | None = None
) -> None:
    """Write rows whose elements lie side by side as vectors of rows: element (row, step)·factor at step·to_step + row.

    Whole vectors are written, and whole vectors of steps (`steps_in_vectors`). What lies behind the last row and step is finite
    where the rows are, and means nothing.
    """
    lanes = k.isa.lanes
    with k.loop("strip", 0, rows, lanes) as first:
        last, target = rows - first - 1, k.offset(to, first)
        at = k.offset(a, first * a_row)
        strip = [k.offset(at, k.least(row, last) * a_row) for row in range(lanes)]

        def block(step: Value, left: Value | None) -> None:
            load = whole_load(k) if left is None else first_load(k, left)
            to_first = k.offset(target, step * to_step)
            for n, vector in enumerate(transpose(k, [load(k.offset(row, step)) for row in strip])):
                k.store(vector if factor is None else vector * factor, to_first, n * to_step)

        _vectors(k, "turn", depth, block)


def _vectors(k: Function, name: str, size: Value, body: Callable[[Value, Value | None], None]) -> None:
    """Emit body(first, left) for every vector of a row; left: elements from there on, None where there are lanes enough."""
    lanes = k.isa.lanes
    if k.isa.masks:
        with k.loop(name, 0, size, lanes) as first:
            body(first, size - first)
        return
    whole = size // lanes * lanes
    with k.loop(name, 0, whole, lanes) as first:
        body(first, None)
    with k.when(whole < size, name):
        body(whole, size - whole)


def steps_in_vectors(depth: int, lanes: int) -> int:
    """Return how many steps `turn` writes."""
    return -(-depth // lanes) * lanes


def copy(k: Function, columns: Value, depth: Value, b: Value, b_step: Value, to: Value, to_step: Operand) -> None:
    """Write `depth` rows of columns that lie side by side, to_step apart, padded to whole vectors with what means nothing."""

    def strip(first: Value, left: Value | None) -> None:
        load, at, target = whole_load(k) if left is None else part_load(k, left), k.offset(b, first), k.offset(to, first)
        with k.loop("copy", 0, depth) as step:
            k.store(load(k.offset(at, step * b_step)), target, step * to_step)

    _vectors(k, "strip", columns, strip)


def collect(k: Function, columns: Value, depth: Value, b: Value, strides: tuple[Value, Value], to: Value, to_step: int) -> None:
    """Write columns with any strides element by element, to_step apart.

    strides: from step to step of the depth, and from column to column.
    """
    with k.loop("step", 0, depth) as step:
        at, target = k.offset(b, step * strides[0]), k.offset(to, step * to_step)
        with k.loop("column", 0, columns) as column:
            k.store(k.load(F32, at, column * strides[1]), target, column)


def multiply_channel(
    k: Function,
    tile: tuple[int, int],
    x: Value,
    pixel: Operand,
    values: Sequence[Value],
    ahead_step: Operand,
    words: Words = F32_WORDS,
) -> list[Value]:
    """Emit the multiply–adds of one channel with packed weights. Of several, LLVM would load all weights first, and spill.

    tile: pixels × vectors. x: the channel of the first pixel. pixel: words from one to the next. values: the sums, the address
    of the channel's weights, and an address to prefetch; returned are those of the next channel. ahead_step: bytes from one
    address to prefetch to the next. words: what a channel's elements are; four bytes are as one channel.
    """
    pixels, vectors = tile
    *sums, w, ahead = values
    if pixels > 1:  # a tile of one pixel waits for the weights themselves, which the processor sees come
        k.prefetch(ahead)
    weights = [k.load(words.type(k.isa.lanes), w, v * k.isa.lanes) for v in range(vectors)]
    for p in range(pixels):
        one = words.pixel(k, x, pixel * p)
        for v in range(vectors):
            sums[p * vectors + v] = words.add(k, one, weights[v], sums[p * vectors + v])
    return [*sums, k.offset(w, vectors * k.isa.lanes), k.offset(ahead, ahead_step, I8)]


def multiply_groups(
    k: Function,
    pixels: int,
    size: int,
    x: Value,
    pixel: Operand,
    values: Sequence[Value],
    ahead_step: Operand,
    words: Words = F32_WORDS,
) -> list[Value]:
    """Emit the multiply–adds of a vector of channels, in groups of so many, with packed weights: one for each word of a group.

    The arguments and the result are as in `multiply_channel`, with the address of the first pixel's channels. Each lane gets the
    word of its own group, so that a number that is not finite stays in its group.
    """
    *sums, w, ahead = values
    vectors = [words.channels(k, x, pixel * p) for p in range(pixels)]
    count = size // words.depth  # words of a group
    for word in range(count):
        k.prefetch(ahead)
        weights = k.load(words.type(k.isa.lanes), w, word * k.isa.lanes)
        lanes = [lane // size * count + word for lane in range(k.isa.lanes)]
        sums = [words.add(k, k.shuffle(vector, None, lanes), weights, one) for vector, one in zip(vectors, sums, strict=True)]
        ahead = k.offset(ahead, ahead_step, I8)
    return [*sums, k.offset(w, count * k.isa.lanes), ahead]
