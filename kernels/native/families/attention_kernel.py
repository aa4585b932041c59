"""The code of attention for a group of queries at a time, whose surroundings are data.

    for each chunk = a few groups, for each group = (batch, head, some vectors of queries):
        turn the queries, so that lanes are queries, and scale them
        for each block of keys:
            scores = k·qᵀ + mask     register tiles of keys × vectors of queries; k is broadcast as it lies; their maximum
            scores = exp(scores - maximum), and their sum          a row of scores is a lane: nothing crosses lanes
            y = y·exp(old maximum - maximum) + scoresᵀ·v           tiles of queries × vectors of v, which is read as it lies
        y /= sum

What decides the code is an `AttentionCode`: the tiles and the kind of mask. Lanes behind the last query hold it once more, and in
tiles that may have too many keys the last one stands in for those that do not exist, which changes no maximum.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from kernels.native.emit.builder import Function, Operand, Value
from kernels.native.emit.kernel import SCRATCH
from kernels.native.emit.math import exp_or_zero
from kernels.native.emit.product import BUSY, Load, Rows, multiply, part_load, rest_rows, turn, whole_load
from kernels.native.emit.results import Numbers
from kernels.native.emit.types import F32, I32, I64
from kernels.native.emit.walk import next_turn
from kernels.record import record

INFINITY = float("inf")
EXP_VECTORS = 4  # of scores at a time

Masks = Literal["none", "keys", "queries", "turned"]


@record
class AttentionCode:
    """All that decides the code.

    keys × vectors: the tile of scores, vectors of queries, which make a group. rows × columns: that of y, columns in vectors.
    mask: how it lies: "keys", the same for all queries; side by side along "queries"; or along the keys, so that it is "turned".
    blind: the result for a query that sees no key.
    """

    keys: int
    vectors: int
    rows: int
    columns: int
    mask: Masks
    causal: bool
    blind: Literal["nan", "zero"]


@record
class _Group:
    """Values that the phases of a group share.

    first: number of its first query. queries: how many it has. k, v, mask, y: addresses for its batch and head.
    """

    first: Value
    queries: Value
    k: Value
    v: Value
    mask: Value | None
    y: Value


class AttentionEmitter:
    """Emits the code; the methods are the phases of the module's docstring.

    n: the numbers by name, as `kernels.native.families.attention` fills them. Scratch memory has, for each query of a group, the
    maximum of its scores so far (tops), the sum of their exponentials, in the end 1 / sum, what y so far shrinks by (factors),
    and the scores of a block of keys; then the turned queries, and the rows of y so far, in whole vectors (held).
    """

    def __init__(self, k: Function, code: AttentionCode, n: Numbers, pointers: Mapping[str, Value]) -> None:
        self.k, self.code, self.n, self.pointers, self.lanes = k, code, n, pointers, k.isa.lanes
        self.width = code.vectors * k.isa.lanes
        scratch = pointers[SCRATCH]
        self.tops, self.sums, self.factors, self.scores = (k.offset(scratch, at * self.width) for at in range(4))
        self.q, self.held = k.offset(scratch, n["q_at"]), k.offset(scratch, n["held_at"])
        self.scale = k.splat(k.convert("bitcast", k.convert("trunc", n["scale"], I32), F32), k.f32)

    def emit(self, begin: Value, end: Value) -> None:
        """Emit the loop over the chunks of a call."""
        k, n = self.k, self.n
        sizes, turns = [n["query_blocks"], n["heads"]], list[Value]()
        first = left = begin * n["chunk_groups"]
        for size in sizes:
            turns.append(left % size)
            left = left // size
        with k.fold("group", first, k.least(end * n["chunk_groups"], n["groups"]), 1, [*turns, left]) as fold:
            self._group(*fold.values)
            fold.values = next_turn(k, fold.values, sizes)

    def _at(self, name: str, batch: Value, head: Value, row: Operand) -> Value:
        """Return the address of a row of a tensor."""
        n = self.n
        start = batch * n[f"{name}_batch"] + head * n[f"{name}_head"] + n[f"{name}_row"] * row + n[f"{name}_first"]
        return self.k.offset(self.pointers[name], start)

    def _group(self, number: Value, head: Value, batch: Value) -> None:
        """Emit all keys of a group of queries."""
        k, n, code = self.k, self.n, self.code
        first = number * self.width
        queries, shared = k.least(n["queries"] - first, k.const(I64, self.width)), head // n["sharing"]
        mask = None if code.mask == "none" else self._at("mask", batch, head, first)
        y = self._at("y", batch, head, first)
        group = _Group(first, queries, self._at("k", batch, shared, 0), self._at("v", batch, shared, 0), mask, y)
        turn(k, queries, n["size"], self._at("q", batch, head, first), n["q_row"], self.q, self.width, self.scale)
        for v in range(code.vectors):
            k.store(k.const(k.f32, -INFINITY), self.tops, v * self.lanes)
            k.store(k.zero(k.f32), self.sums, v * self.lanes)
        seen = k.least(n["keys"], first + (queries + n["past"])) if code.causal else n["keys"]
        blocks = (seen + (n["block"] - 1)) // n["block"]
        with k.loop("keys", 0, blocks) as block:
            start = block * n["block"]
            self._block(group, start, k.least(seen - start, n["block"]), k.compare("eq", block + 1, blocks))
        self._finish(group)

    def _block(self, group: _Group, first: Value, count: Value, ends: Value) -> None:
        """Emit one block of keys: scores, exponentials, products with v. ends: whether it is the last."""
        k, code = self.k, self.code
        for v in range(code.vectors):  # what the tops were
            k.store(k.load(k.f32, self.tops, v * self.lanes), self.factors, v * self.lanes)
        mask = group.mask
        if mask is not None:
            mask = k.offset(mask, first * self._mask_key)
            if code.mask == "turned":
                turn(k, group.queries, count, mask, self.n["mask_row"], self.scores, self.width)
        full = k.compare("gt", group.queries, self.width - self.lanes)
        with k.when(full, "full"):
            self._scores(group, first, count, mask)
        with k.when(full ^ k.const(full.type, 1), "rest"):
            self._scores_by_vector(group, first, count, mask)
        vectors = (group.queries + (self.lanes - 1)) // self.lanes
        with k.loop("vector", 0, vectors) as vector:
            self._exponentials(vector * self.lanes, count)
        with k.when(ends, "sums"):
            self._invert()
        self._products(group, first, count, ends)

    @property
    def _mask_key(self) -> Operand:
        return 1 if self.code.mask == "turned" else self.n["mask_key"]

    # Scores

    def _scores(self, group: _Group, first: Value, count: Value, mask: Value | None) -> None:
        """Emit the tiles of a block's scores for all vectors of a group."""
        k, (keys, vectors) = self.k, (self.code.keys, self.code.vectors)
        whole = count // keys * keys
        with k.loop("tile", 0, whole, keys) as key:
            self._tile(group, (keys, vectors), first, key, None, mask, 0)
        if rest := rest_rows(keys, vectors):
            with k.loop("tile", whole, count, rest) as key:
                self._tile(group, (rest, vectors), first, key, count, mask, 0)

    def _scores_by_vector(self, group: _Group, first: Value, count: Value, mask: Value | None) -> None:
        """Emit the tiles of a block's scores for those vectors of a group that have queries."""
        k = self.k
        with k.loop("vector", 0, group.queries, self.lanes) as lane, k.loop("tile", 0, count, BUSY) as key:
            self._tile(group, (BUSY, 1), first, key, count, mask, lane)

    def _tile(
        self,
        group: _Group,
        tile: tuple[int, int],
        first: Value,
        key: Value,
        count: Value | None,
        mask: Value | None,
        lane: Operand,
    ) -> None:
        """Emit one register tile of scores, and their maximum over keys.

        first: key at which the block begins. key: of the block, with which the tile begins. count: keys of the block; None where
        all keys of the tile exist. lane: first one of the tile.
        """
        k, n, (keys, vectors) = self.k, self.n, tile
        last = None if count is None else count - key - 1
        rows = Rows(k.offset(group.k, (first + key) * n["k_row"]), n["k_row"], 1, last)
        q, starts = k.offset(self.q, lane), [k.zero(k.f32)] * keys * vectors
        values = multiply(k, rows, [whole_load(k)] * vectors, n["size"], q, self.width, starts)
        scores, tops = k.offset(self.scores, key * self.width + lane), k.offset(self.tops, lane)
        places = [k.const(I64, row) if last is None else k.least(row, last) for row in range(keys)]
        for v in range(vectors):
            mine = [values[row * vectors + v] for row in range(keys)]
            mine = self._seen(group, mine, [(key + place, first + key + place) for place in places], mask, v * self.lanes + lane)
            top = k.load(k.f32, tops, v * self.lanes)
            for row, value in enumerate(mine):
                k.store(value, scores, row * self.width + v * self.lanes)
                top = k.select(top > value, top, value)  # may lose NaN, which the sum of exponentials finds again
            k.store(top, tops, v * self.lanes)

    def _seen(
        self, group: _Group, values: list[Value], keys: Sequence[tuple[Value, Value]], mask: Value | None, lane: Operand
    ) -> list[Value]:
        """Return the scores of a vector of queries as they are seen: what the mask adds, and -infinity for keys that lie ahead.

        keys: of each score, its number in the block and in all. lane: the vector's first.
        """
        k, code = self.k, self.code
        if mask is not None:
            values = [value + load for value, load in zip(values, self._masked(group, mask, keys, lane), strict=True)]
        if not code.causal:
            return values
        numbers = I32.by(self.lanes)
        sees = k.convert("trunc", group.first + (self.n["past"] + lane), I32)
        last = k.splat(sees, numbers) + k.const(numbers, list(range(self.lanes)))
        ahead = [k.compare("gt", k.splat(k.convert("trunc", key, I32), numbers), last) for _, key in keys]
        return [k.select(hides, k.const(k.f32, -INFINITY), value) for hides, value in zip(ahead, values, strict=True)]

    def _masked(self, group: _Group, mask: Value, keys: Sequence[tuple[Value, Value]], lane: Operand) -> list[Value]:
        """Load what the mask adds to the scores of a vector of queries."""
        k, kind, by_key = self.k, self.code.mask, self._mask_key
        if kind == "keys":
            return [k.broadcast(k.f32, mask, key * by_key) for key, _ in keys]
        if kind == "turned":  # to where the scores go
            return [k.load(k.f32, self.scores, key * self.width + lane) for key, _ in keys]
        load = part_load(k, group.queries - lane)
        return [load(k.offset(mask, key * by_key + lane)) for key, _ in keys]

    # Exponentials

    def _exponentials(self, lane: Value, count: Value) -> None:
        """Emit scores to exponentials and their sum for a vector of queries; y so far is to shrink by `factors`."""
        k = self.k
        scores, tops, sums, factors = (k.offset(at, lane) for at in (self.scores, self.tops, self.sums, self.factors))
        top = k.load(k.f32, tops)
        top = k.select(k.compare("eq", top, -INFINITY), 0.0, top)
        for row in range(EXP_VECTORS - 1):  # behind the last key
            k.store(k.const(k.f32, -INFINITY), scores, (count + row) * self.width)
        with k.fold("exp", 0, count, EXP_VECTORS, [k.zero(k.f32)]) as fold:
            at, total = k.offset(scores, fold.index * self.width), fold.values[0]
            for row in range(EXP_VECTORS):
                value = exp_or_zero(k, k.load(k.f32, at, row * self.width) - top)
                k.store(value, at, row * self.width)
                total = total + value
            fold.values = [total]
        total = fold.values[0]
        shrunk = exp_or_zero(k, k.load(k.f32, factors) - top)
        k.store(k.fma(k.load(k.f32, sums), shrunk, total), sums)
        k.store(shrunk, factors)

    # Products

    def _invert(self) -> None:
        """Emit 1 / sum, and the factors that end y."""
        k = self.k
        for v in range(self.code.vectors):
            total = k.load(k.f32, self.sums, v * self.lanes)
            inverse = 1.0 / total
            if self.code.blind == "zero":
                inverse = k.select(k.compare("eq", total, 0.0), 0.0, inverse)
            k.store(inverse, self.sums, v * self.lanes)

    def _products(self, group: _Group, first: Value, count: Value, ends: Value) -> None:
        """Emit the tiles of y: all rows of one block of columns, then of the next, then of what is left, vector by vector."""
        k, n, code = self.k, self.n, self.code
        width, v = code.columns * self.lanes, k.offset(group.v, first * n["v_row"])
        numbers = I32.by(self.lanes)
        starts = k.compare("eq", k.splat(k.convert("trunc", first, I32), numbers), 0)
        whole = n["v_size"] // width * width
        with k.loop("column", 0, whole, width) as column, k.loop("row", 0, group.queries, code.rows) as row:
            held = self._held_rows(row, column)
            values = self._product([whole_load(k)] * code.columns, row, k.offset(v, column), count, held, starts)
            direct = ends & (row + code.rows <= group.queries)
            with k.when(direct, "ends"):
                sums, y = k.offset(self.sums, row), k.offset(group.y, row * n["y_row"] + column)
                for r in range(code.rows):
                    factor, at = k.broadcast(k.f32, sums, r), k.offset(y, n["y_row"] * r)
                    for c in range(code.columns):
                        k.store(values[r * code.columns + c] * factor, at, c * self.lanes)
            with k.when(direct ^ k.const(direct.type, 1), "held"):
                self._hold(values, held)
        with k.loop("column", whole, n["v_size"], self.lanes) as column:
            load = part_load(k, n["v_size"] - column)
            with k.loop("row", 0, group.queries, code.rows) as row:
                held = self._held_rows(row, column)
                self._hold(self._product([load], row, k.offset(v, column), count, held, starts), held)

    def _product(
        self, loads: Sequence[Load], row: Value, v: Value, count: Value, held: Sequence[Value], begins: Value
    ) -> list[Value]:
        """Emit one register tile of y. It may have more rows than there are queries: these mean nothing.

        held: where each row of what was before is. begins: in every lane, whether there was no block before.
        """
        k, starts, factors = self.k, list[Value](), self.k.offset(self.factors, row)
        for r, at in enumerate(held):
            factor = k.broadcast(k.f32, factors, r)
            starts += [k.select(begins, 0.0, k.load(k.f32, at, c * self.lanes) * factor) for c in range(len(loads))]
        return multiply(k, Rows(k.offset(self.scores, row), 1, self.width), loads, count, v, self.n["v_row"], starts)

    def _held_rows(self, row: Value, column: Operand) -> list[Value]:
        """Return the address of a column in each row of a tile that is held."""
        first = self._held(row, column)
        return [self.k.offset(first, self.n["v_lanes"] * r) for r in range(self.code.rows)]

    def _held(self, row: Value, column: Operand) -> Value:
        return self.k.offset(self.held, row * self.n["v_lanes"] + column)

    def _hold(self, values: Sequence[Value], held: Sequence[Value]) -> None:
        """Emit the stores of a tile that does not end y."""
        vectors = len(values) // len(held)
        for n, value in enumerate(values):
            self.k.store(value, held[n // vectors], n % vectors * self.lanes)

    def _finish(self, group: _Group) -> None:
        """Emit the products with 1 / sum, and the stores, of what is held: the last rows, and the last columns of all."""
        k, n, code = self.k, self.n, self.code
        width = code.columns * self.lanes
        wide, direct = n["v_size"] // width * width, group.queries // code.rows * code.rows
        whole = n["v_size"] // self.lanes * self.lanes
        with k.loop("row", 0, group.queries) as row:
            factor = k.broadcast(k.f32, self.sums, row)
            held, to = self._held(row, 0), k.offset(group.y, row * n["y_row"])
            with k.loop("column", k.select(row < direct, wide, k.const(I64, 0)), whole, self.lanes) as column:
                k.store(k.load(k.f32, held, column) * factor, to, column)
            with k.when(whole < n["v_size"], "part"):
                k.store_first(k.load(k.f32, held, whole) * factor, k.offset(to, whole), n["v_size"] - whole)
