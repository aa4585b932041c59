"""Attention without its matrix of scores: y = softmax(q·kᵀ·scale + mask)·v, for a group of queries at a time.

    for each chunk = a few groups, for each group = (batch, head, some vectors of queries):
        turn the queries, so that lanes are queries, and scale them
        for each block of keys:                                    all of them, where they are not too many
            scores = k·qᵀ + mask     register tiles of keys × vectors of queries; k is broadcast as it lies; their maximum
            scores = exp(scores - maximum), and their sum          a row of scores is a lane: nothing crosses lanes
            y += scoresᵀ·v           register tiles of queries × vectors of v; scores are broadcast, v is read as it lies
        y /= sum

With several blocks y and the sum so far are multiplied by exp(old maximum - new maximum) before each: online softmax, Milakov and
Gimelshein 2018 (arXiv:1805.02867).
q, k, v and y may be any views whose last dimension has no gaps: slices of one matrix [tokens, 3·heads·size] are read in place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kernels.native.emit.builder import Function, Operand, Value
from kernels.native.emit.geometry import Block, channel_blocks, maybe
from kernels.native.emit.kernel import SCRATCH, NativeKernel, emitted, kernel_name
from kernels.native.emit.math import exp_or_zero
from kernels.native.emit.product import Tile, even, most_rows, multiply, turn, unrolled
from kernels.native.emit.types import I32, I64
from kernels.native.errors import EmitError
from kernels.native.memory.view import View
from kernels.native.target.isa import Isa

BLOCK_KEYS = 1024  # most at once: their scores stay in L2
CHUNK_MACS = (256 << 10, 2 << 20)  # least and most of one chunk: 2 to 15 µs
CHUNKS = 32
INFINITY = float("inf")


@dataclass(frozen=True, slots=True)
class Attention:
    """q (batch, heads, queries, size), k (batch, kv heads, keys, size), v (batch, kv heads, keys, v size), y like q with v's.

    Query head h uses kv head h // (heads / kv heads).
    mask: added to the scores, (batch, heads, queries, keys) or 1 in place of a size; without gaps along keys or queries, or the
    same for all queries.
    causal: query i sees the keys up to i + past. blind: the result for a query that sees no key, all its scores being -infinity.
    """

    q: View
    k: View
    v: View
    y: View
    scale: float
    mask: View | None = None
    causal: bool = False
    past: int = 0
    blind: Literal["nan", "zero"] = "nan"

    @property
    def arguments(self) -> tuple[str, ...]:
        """The names of the pointers that its kernel takes."""
        return ("q", "k", "v", *(("mask",) if self.mask else ()), "y", SCRATCH)

    @property
    def mask_strides(self) -> tuple[int, ...]:
        """By batch, head, query and key; 0 where the mask repeats."""
        pairs = zip(self.mask.shape, self.mask.strides, strict=True) if self.mask else [(1, 0)] * 4
        return tuple(0 if size == 1 else stride for size, stride in pairs)

    @property
    def macs(self) -> int:
        """Multiply–accumulates of both products, those of hidden keys included."""
        batch, heads, queries, size = self.q.shape
        return batch * heads * queries * self.k.shape[2] * (size + self.v.shape[3])


@dataclass(frozen=True, slots=True)
class AttentionTile:
    """keys × vectors: the tile of scores, vectors of queries, which make a group. rows × columns: that of y, columns in vectors.

    block: keys at once. groups: of a chunk.
    """

    keys: int
    vectors: int
    rows: int
    columns: int
    block: int
    groups: int

    def __str__(self) -> str:
        return f"{self.keys}x{self.vectors}_{self.rows}x{self.columns}"


def attention_tiles(attention: Attention, isa: Isa, limit: int = 6) -> list[AttentionTile]:
    """Return the tiles that a port model estimates to be fastest, the best first."""
    found = [
        make_attention_tile(attention, isa, vectors, columns)
        for vectors in range(1, 7)
        for columns in range(1, 5)
        if vectors <= -(-attention.q.shape[2] // isa.lanes) and columns <= -(-attention.v.shape[3] // isa.lanes)
    ]
    return sorted(found, key=lambda tile: _estimate(attention, tile, isa))[:limit]


def make_attention_tile(attention: Attention, isa: Isa, vectors: int, columns: int) -> AttentionTile:
    """Make a tile of these sizes; the rest follows by rule."""
    batch, heads, queries, _ = attention.q.shape
    keys = attention.k.shape[2]
    height = even(keys, min(keys, most_rows(vectors, isa)))
    rows = even(min(queries, vectors * isa.lanes), most_rows(columns, isa))
    block = keys if keys <= BLOCK_KEYS else -(-even(keys, BLOCK_KEYS) // height) * height
    groups = batch * heads * -(-queries // (vectors * isa.lanes))
    macs = attention.macs // queries * -(-queries // isa.lanes) * isa.lanes  # idle lanes take as long
    group_macs = macs // groups
    wanted = min(max(macs // CHUNKS, CHUNK_MACS[0]), CHUNK_MACS[1])
    return AttentionTile(height, vectors, rows, columns, block, max(1, min(groups, wanted // max(group_macs, 1))))


def _estimate(attention: Attention, tile: AttentionTile, isa: Isa) -> float:
    """Estimate the cycles of one head: two multiply–adds and two loads a cycle, latency 4; loads from L2 cost a little."""
    queries, size = attention.q.shape[2:]
    keys, v_size = attention.v.shape[2:]
    total = 0.0
    for block in channel_blocks(queries, tile.vectors, isa.lanes):
        tiles, held = -(-keys // tile.keys), block.vectors
        scores = max(tile.keys * held / 2, (tile.keys + held) / 2, 4) + 0.05 * held + 0.1 * tile.keys
        total += block.count * (tiles * size * scores + keys * held * 8)
        inside = (block.vectors - 1) * isa.lanes + block.tail
        for part in channel_blocks(v_size, tile.columns, isa.lanes):
            high = even(inside, most_rows(tile.columns, isa))
            products = max(high * part.vectors / 2, (high + part.vectors) / 2, 4) + 0.2 * part.vectors + 0.1
            total += block.count * part.count * -(-inside // high) * keys * products
    return total


def emit_attention(attention: Attention, tile: AttentionTile, isa: Isa) -> NativeKernel:
    """Emit the kernel. Raises EmitError for views that it cannot read."""
    _check(attention)
    words = [f"y{tile.rows}x{tile.columns * isa.lanes}"]
    words += [word for word, stands in (("causal", attention.causal), ("masked", attention.mask)) if stands]
    name = kernel_name(f"f32_attention_{tile.keys}x{tile.vectors * isa.lanes}", (attention, tile), isa, words)
    emitter = _AttentionEmitter(attention, tile, isa)
    names = attention.arguments

    def body(k: Function, values: list[Value]) -> None:
        *pointers, begin, end = values
        emitter.emit(k, dict(zip(names, pointers, strict=True)), begin, end)

    return emitted(isa, name, names, emitter.chunks, body, 4 * emitter.scratch.elements)


def _check(attention: Attention) -> None:
    q, k, v, y, mask = attention.q, attention.k, attention.v, attention.y, attention.mask
    shapes = f"q is {q.shape}, k is {k.shape}, v is {v.shape}, y is {y.shape}"
    fits = len({len(view.shape) for view in (q, k, v, y)}) == 1 and len(q.shape) == 4 and y.shape == (*q.shape[:3], v.shape[3])
    fits = fits and (k.shape[0], k.shape[3]) == (q.shape[0], q.shape[3]) and k.shape[:3] == v.shape[:3]
    if not fits or q.shape[1] % max(k.shape[1], 1) or 0 in (*q.shape, *k.shape, *v.shape):
        raise EmitError(f"attention: {shapes}, need (batch, heads, length, size) that fit, without 0")
    for name, view in (("q", q), ("k", k), ("v", v), ("y", y)):
        if view.shape[3] > 1 and view.strides[3] != 1:
            raise EmitError(f"attention: elements of a row of {name} are {view.strides[3]} apart, need 1")
    if mask is None:
        return
    full = (*q.shape[:3], k.shape[2])
    if len(mask.shape) != 4 or any(a not in (1, b) for a, b in zip(mask.shape, full, strict=True)):
        raise EmitError(f"attention: the mask is {mask.shape}, need {full} or 1 in place of a size")
    by_query, by_key = attention.mask_strides[2:]
    if by_query not in (0, 1) and by_key != 1:
        raise EmitError(f"attention: the mask's strides are {mask.strides}, need 1 along queries or keys, or 0 along queries")


@dataclass(frozen=True, slots=True)
class _Scratch:
    """Offsets in a thread's scratch memory, in elements; each part is (steps, lanes of a group) unless stated otherwise."""

    scores: int
    tops: int
    sums: int
    factors: int  # of a query: what y so far shrinks by, and in the end 1 / sum
    held: int  # y so far, (queries of a group, v size in whole vectors)
    elements: int


@dataclass(frozen=True, slots=True)
class _Group:
    """Values that the phases of a group share.

    lanes: of all its vectors, those after the last query included. first: number of its first query.
    """

    block: Block
    lanes: int
    queries: int
    first: Value
    k: Value
    v: Value
    mask: Value | None
    y: Value
    scratch: Value


class _AttentionEmitter:
    """Emits one attention; the methods are the phases of the module docstring."""

    def __init__(self, attention: Attention, tile: AttentionTile, isa: Isa) -> None:
        self.attention, self.tile, self.lanes = attention, tile, isa.lanes
        self.batch, self.heads, self.queries, self.size = attention.q.shape
        self.keys, self.v_size = attention.v.shape[2:]
        self.blocks = channel_blocks(self.queries, tile.vectors, isa.lanes)
        self.block_count = sum(block.count for block in self.blocks)
        self.groups = self.batch * self.heads * self.block_count
        self.chunks = -(-self.groups // tile.groups)
        self.several = self.keys > tile.block  # blocks of keys
        self.v_lanes = -(-self.v_size // isa.lanes) * isa.lanes
        width = tile.vectors * isa.lanes
        starts = [0]
        for size in (self.size, tile.block, 1, 1, 1, self.v_lanes if self.several else 0):
            starts.append(starts[-1] + size * width)
        self.scratch = _Scratch(*starts[1:])

    def emit(self, k: Function, pointers: dict[str, Value], begin: Value, end: Value) -> None:
        """Emit the loop over the chunks of a call."""
        attention, groups = self.attention, self.tile.groups
        stop = end * groups
        if self.groups % groups:
            stop = k.select(stop < self.groups, stop, k.const(I64, self.groups))
        with k.loop("group", begin * groups, stop) as group:
            number, row = group % self.block_count, group // self.block_count
            head, batch = row % self.heads, row // self.heads
            shared = head // (self.heads // attention.k.shape[1])
            first = number * (self.tile.vectors * self.lanes)

            def at(name: str, view: View, head: Value, query: Operand = 0, batch: Value = batch) -> Value:
                by_batch, by_head, by_row = view.strides[:3]
                return k.offset(pointers[name], batch * by_batch + head * by_head + k.coerce(query, I64) * by_row + view.offset)

            mask = None
            if attention.mask:
                by_batch, by_head, by_query, _ = attention.mask_strides
                offset = batch * by_batch + head * by_head + first * by_query + attention.mask.offset
                mask = k.offset(pointers["mask"], offset)
            ks, vs = at("k", attention.k, shared), at("v", attention.v, shared)
            q, y = at("q", attention.q, head, first), at("y", attention.y, head, first)
            for block in self.blocks:
                with maybe(k, block.chosen_by(number, self.blocks)):
                    queries, width = (block.vectors - 1) * self.lanes + block.tail, block.vectors * self.lanes
                    group_of = _Group(block, width, queries, first, ks, vs, mask, y, pointers[SCRATCH])
                    turn(k, queries, self.size, q, attention.q.strides[2], group_of.scratch, width, attention.scale)
                    self._group(k, group_of)

    def _group(self, k: Function, group: _Group) -> None:
        """All keys of a group of queries."""
        self._fill(k, group, self.scratch.tops, -INFINITY)
        if not self.several and not self.attention.causal:
            self._block(k, group, k.const(I64, 0), self.keys)
            return
        if self.several:
            self._fill(k, group, self.scratch.sums, 0.0)
            with k.loop("clear", 0, group.queries * self.v_lanes, self.lanes) as at:
                k.store(k.zero(k.f32), k.offset(group.scratch, self.scratch.held), at)
        block = self.tile.block
        if self.attention.causal:
            seen = self._seen(k, group)
            with k.loop("keys", 0, seen if self.several else 1, block) as first:
                count = seen - first
                self._block(k, group, first, k.select(count < block, count, k.const(I64, block)) if self.several else count)
        else:
            whole = self.keys // block * block
            with k.loop("keys", 0, whole, block) as first:
                self._block(k, group, first, block)
            if self.keys > whole:
                self._block(k, group, k.const(I64, whole), self.keys - whole)
        if self.several:
            self._finish(k, group)

    def _seen(self, k: Function, group: _Group) -> Value:
        """Keys up to the last that any query of the group sees, in whole tiles."""
        tile, first = self.tile.keys, group.first + (group.queries + self.attention.past)
        whole = (first + (tile - 1)) // tile * tile
        return k.select(whole < self.keys, whole, k.const(I64, self.keys))

    def _fill(self, k: Function, group: _Group, where: int, value: float) -> None:
        for v in range(group.block.vectors):
            k.store(k.const(k.f32, value), group.scratch, where + v * self.lanes)

    def _block(self, k: Function, group: _Group, first: Value, count: Operand) -> None:
        """One block of keys: scores, exponentials, products with v."""
        for v in range(group.block.vectors if self.several else 0):  # what the tops were
            at = v * self.lanes
            k.store(k.load(k.f32, group.scratch, self.scratch.tops + at), group.scratch, self.scratch.factors + at)
        mask = group.mask
        if mask is not None:
            by_query, by_key = self.attention.mask_strides[2:]
            mask = k.offset(mask, first * by_key)
            if by_query not in (0, 1):
                turn(k, group.queries, count, mask, by_query, k.offset(group.scratch, self.scratch.scores), group.lanes)
        known = count if isinstance(count, int) else None
        tile, rest = self.tile.keys, (known if known is not None else self.keys) % self.tile.keys
        whole = known - rest if known is not None else count - k.coerce(count, I64) % tile
        if known is None or known >= tile:
            with k.loop("tile", 0, whole, tile) as key:
                self._scores(k, group, tile, first, key, mask)
        if rest:
            condition = None if known is not None else k.compare("ne", k.coerce(count, I64), whole)
            with maybe(k, condition):
                self._scores(k, group, rest, first, k.coerce(whole, I64), mask)
        self._exponentials(k, group, count)
        self._products(k, group, k.offset(group.v, first * self.attention.v.strides[2]), count)

    def _scores(self, k: Function, group: _Group, rows: int, first: Value, key: Value, mask: Value | None) -> None:
        """One register tile of scores, keys from `key` of the block on; their maximum over keys."""
        vectors, strides = group.block.vectors, self.attention.k.strides
        tile = Tile(rows, vectors, self.lanes, strides[2], 1, group.lanes)
        number = first + key
        values = multiply(
            k, tile, self.size, k.offset(group.k, number * strides[2]), group.scratch, [k.zero(k.f32)] * rows * vectors
        )
        to = k.offset(group.scratch, key * group.lanes + self.scratch.scores)
        for v in range(vectors):
            top = k.load(k.f32, group.scratch, self.scratch.tops + v * self.lanes)
            for row in range(rows):
                at, value = row * group.lanes + v * self.lanes, values[row * vectors + v]
                if mask is not None:
                    value = value + self._masked(k, group, mask, to, at, key + row, v)
                if self.attention.causal:
                    value = self._hidden(k, group, value, number + row, v)
                k.store(value, to, at)
                top = k.select(top > value, top, value)  # may lose NaN, which the sum of exponentials finds again
            k.store(top, group.scratch, self.scratch.tops + v * self.lanes)

    def _masked(self, k: Function, group: _Group, mask: Value, scores: Value, at: int, key: Value, v: int) -> Value:
        """Load what the mask adds to vector v of a key's scores."""
        by_query, by_key = self.attention.mask_strides[2:]
        if by_query == 0:
            return k.broadcast(k.f32, mask, key * by_key)
        if by_query == 1:
            lanes = group.block.tail if v == group.block.vectors - 1 else self.lanes
            return k.load_part(k.f32, mask, lanes, key * by_key + v * self.lanes)
        return k.load(k.f32, scores, at)  # it was turned to where the scores go

    def _hidden(self, k: Function, group: _Group, value: Value, key: Value, v: int) -> Value:
        """The scores of vector v, -infinity where the key lies after what the query sees."""
        numbers = I32.by(self.lanes)
        ahead = k.convert("trunc", key - group.first, I32)
        last = k.const(numbers, [lane + v * self.lanes + self.attention.past for lane in range(self.lanes)])
        return k.select(k.compare("gt", k.splat(ahead, numbers), last), k.const(k.f32, -INFINITY), value)

    def _exponentials(self, k: Function, group: _Group, count: Operand) -> None:
        """Scores to exponentials and their sum; what there is of y shrinks by `factors` where there were blocks before."""
        vectors, scratch, where = group.block.vectors, group.scratch, self.scratch
        tops = [k.load(k.f32, scratch, where.tops + v * self.lanes) for v in range(vectors)]
        tops = [k.select(k.compare("eq", top, -INFINITY), 0.0, top) for top in tops]
        scores = k.offset(scratch, where.scores)
        unroll = max(1, 4 // vectors)

        def body(index: Value, turns: int, sums: list[Value]) -> list[Value]:
            sums, at = list(sums), k.offset(scores, index * group.lanes)
            for row in range(turns):
                for v in range(vectors):
                    place = row * group.lanes + v * self.lanes
                    value = exp_or_zero(k, k.load(k.f32, at, place) - tops[v])
                    k.store(value, at, place)
                    sums[v] = sums[v] + value
            return sums

        sums = unrolled(k, "exp", count, unroll, [k.zero(k.f32)] * vectors, body)
        for v, total in enumerate(sums):
            at = v * self.lanes
            if not self.several:
                k.store(self._inverse(k, total), scratch, where.factors + at)
                continue
            shrunk = exp_or_zero(k, k.load(k.f32, scratch, where.factors + at) - tops[v])
            k.store(k.fma(k.load(k.f32, scratch, where.sums + at), shrunk, total), scratch, where.sums + at)
            k.store(shrunk, scratch, where.factors + at)

    def _inverse(self, k: Function, total: Value) -> Value:
        inverse = 1.0 / total
        return inverse if self.attention.blind == "nan" else k.select(k.compare("eq", total, 0.0), 0.0, inverse)

    def _products(self, k: Function, group: _Group, v: Value, count: Operand) -> None:
        """The tiles of y: all rows of one block of columns, then of the next."""
        most = most_rows(self.tile.columns, k.isa)
        rows = even(group.queries, min(most, self.tile.rows))
        whole, rest = divmod(group.queries, rows)
        columns = channel_blocks(self.v_size, self.tile.columns, self.lanes)
        for block in columns:
            start = block.first * self.tile.columns * self.lanes
            with k.loop("column", 0, block.count) as number:
                column = number * (block.vectors * self.lanes) + start
                if whole:
                    with k.loop("row", 0, whole) as at:
                        self._product(k, group, block, rows, at * rows, column, v, count)
                if rest:
                    self._product(k, group, block, rest, k.const(I64, whole * rows), column, v, count)

    def _product(
        self, k: Function, group: _Group, block: Block, rows: int, row: Value, column: Value, v: Value, count: Operand
    ) -> None:
        """One register tile of y: stored, or, where there are several blocks of keys, held."""
        lanes, strides, scratch = self.lanes, self.attention.v.strides, group.scratch
        tile = Tile(rows, block.vectors, block.tail, 1, group.lanes, strides[2])
        factors = k.offset(scratch, row + self.scratch.factors)
        held = k.offset(scratch, row * self.v_lanes + column + self.scratch.held)
        starts = [k.zero(k.f32)] * rows * block.vectors
        places = [(n, n // block.vectors, n % block.vectors) for n in range(len(starts))]
        if self.several:
            starts = [k.load(k.f32, held, r * self.v_lanes + c * lanes) * k.broadcast(k.f32, factors, r) for _, r, c in places]
        scores = k.offset(scratch, row + self.scratch.scores)
        values = multiply(k, tile, count, scores, k.offset(v, column), starts)
        y_row = self.attention.y.strides[2]
        y = k.offset(group.y, row * y_row + column)
        for n, r, c in places:
            if self.several:
                k.store(values[n], held, r * self.v_lanes + c * lanes)
                continue
            stored = block.tail if c == block.vectors - 1 else lanes
            k.store_part(values[n] * k.broadcast(k.f32, factors, r), y, stored, r * y_row + c * lanes)

    def _finish(self, k: Function, group: _Group) -> None:
        """Divide the rows of y that were kept in scratch memory by the sums, and store them."""
        for v in range(group.block.vectors):
            total = k.load(k.f32, group.scratch, self.scratch.sums + v * self.lanes)
            k.store(self._inverse(k, total), group.scratch, self.scratch.factors + v * self.lanes)
        whole, tail = divmod(self.v_size, self.lanes)
        with k.loop("row", 0, group.queries) as row:
            factor = k.broadcast(k.f32, group.scratch, row + self.scratch.factors)
            held = k.offset(group.scratch, row * self.v_lanes + self.scratch.held)
            y = k.offset(group.y, row * self.attention.y.strides[2])
            if whole:
                with k.loop("column", 0, whole * self.lanes, self.lanes) as column:
                    k.store(k.load(k.f32, held, column) * factor, y, column)
            if tail:
                k.store_part(k.load(k.f32, held, whole * self.lanes) * factor, y, tail, whole * self.lanes)
