"""Attention: y = softmax(scale · q·kᵀ + mask) · v for every head, with the scores never in memory.

A block takes a tile of queries, 16 or 32 for each of its warps, and goes along the keys: while it multiplies one tile of keys and
values in shared memory, the next is copied there. Every thread keeps the greatest score of its rows so far and the sum of their
exponentials, and scales what it has added up whenever a greater score comes (online softmax; Milakov and Gimelshein, arXiv
1805.02867; Dao, arXiv 2307.08691, for the order of loops). Products are mma.sync; fp32 is three products of tf32.

Several teams of warps may take the tiles of keys in turn, each for all queries of the block; in the end they scale their sums to
one greatest score and add them up, so that few queries do not wait for one tile of keys after another.

Heads of keys may be fewer than heads of queries: each then serves a group of them. A query that no key is left for is NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from math import gcd
from typing import Literal

from kernels.cuda.emit import builder as gpu
from kernels.cuda.emit.builder import below, both
from kernels.cuda.emit.descriptor import Descriptor, Fields, listed
from kernels.cuda.emit.epilogue import STORAGES, Storage
from kernels.cuda.emit.kernel import WARP, combine_lanes, emit_kernel, share_among_blocks
from kernels.cuda.emit.unit import Operands, SplitUnit
from kernels.cuda.families.product_work import TF32, UNITS, Precision
from kernels.native.emit.builder import Value
from kernels.native.emit.types import F32, I8, I32, I64, Type
from kernels.native.errors import EmitError
from kernels.record import record

Mask = Literal["bool", "fp32", "fp16", "bf16"]  # what an element of the mask is: whether a key counts, or what is added
ARRAYS = ("q", "k", "v", "y")
LEVELS = ("batch", "head", "row")
PART = 32  # bytes of a row that an instruction multiplies
PAD = 16  # bytes between rows in shared memory, so that neither loads nor copies meet in one bank


class AttentionDescriptor(Descriptor):
    """What an attention's kernel is told.

    *_batch, *_head, *_row: elements from an item of the batch, a head and a token to the next; the elements of a token's head
    lie side by side. mask_key: from a key to the next.  depth: elements of a head.  offset: with a causal form, query n sees
    keys up to n + offset.  chunks: tiles of queries.  scale_log2: scale · log2 e.  unscale: 1 / scale.
    """

    _fields_ = listed(
        (*ARRAYS, "mask"),
        ("chunks", "queries", "keys", "depth", "offset", "mask_key", *(f"{n}_{at}" for n in (*ARRAYS, "mask") for at in LEVELS)),
        ("tiles", "heads", "group"),
        ("scale_log2", "unscale"),
    )


@record
class AttentionForm:
    """What the code of an attention depends on.

    depth: elements of a head that there is room for, a multiple of 16.  warps: of a team.  keys: of a tile.  tall: tiles of 16
    queries that a warp has; with 2 it reads keys and values from shared memory half as often.
    teams: that take the tiles of keys in turn.  copy_bytes: that one copy to shared memory moves; heads, strides, addresses are
    multiples of it.  causal: whether a query sees no later keys.  mask: None, or what its elements are.
    Raises EmitError for sizes that there is no code for.
    """

    precision: Precision
    depth: int
    warps: int = 4
    keys: int = 64
    copy_bytes: int = 16
    causal: bool = False
    mask: Mask | None = None
    tall: int = 1
    teams: int = 1

    def __post_init__(self) -> None:
        if self.depth % 16 or not 16 <= self.depth <= 256 or self.keys % 16 or not 16 <= self.keys <= 128:
            raise EmitError(
                f"attention: heads of {self.depth}, tiles of {self.keys} keys, need multiples of 16, up to 256 and 128"
            )
        if self.tall not in (1, 2):
            raise EmitError(f"attention: {self.tall} tiles of queries a warp, need 1 or 2")
        if self.warps not in (1, 2, 4, 8) or self.copy_bytes not in (4, 8, 16) or self.copy_bytes < 2 * self.item_bytes:
            least = 2 * self.item_bytes
            raise EmitError(f"attention: {self.warps} warps, copies of {self.copy_bytes} bytes, need 1 to 8, and {least} to 16")
        if not 1 <= self.teams <= 8 or self.threads > 1024 or (self.teams > 1 and 4 * self.kept * self.team > self.team_bytes):
            raise EmitError(
                f"attention: {self.teams} teams of {self.warps} warps, need 1 to 8 whose sums fit into {self.team_bytes}"
            )

    @property
    def kind(self) -> Type:
        """The type of an element of q, k, v and y."""
        return UNITS[self.precision][0]

    @property
    def item_bytes(self) -> int:
        """Bytes of an element of q, k, v and y."""
        return self.kind.bits // 8

    @property
    def parts(self) -> int:
        """Parts of a head's row, each multiplied by one instruction."""
        return self.depth * self.item_bytes // PART

    @property
    def pitch(self) -> int:
        """Bytes from a row to the next in shared memory."""
        return self.depth * self.item_bytes + PAD

    @property
    def rows(self) -> int:
        """Queries of a block."""
        return 16 * self.tall * self.warps

    @property
    def team(self) -> int:
        """Threads of a team."""
        return WARP * self.warps

    @property
    def team_bytes(self) -> int:
        """Shared memory of a team: two stages of keys and values."""
        return 4 * self.keys * self.pitch

    @property
    def kept(self) -> int:
        """Numbers of a thread that teams add up: sums, and of each query the greatest score and the total."""
        return self.tall * (self.depth // 2 + 4)

    @property
    def values(self) -> int:
        """The sums and scores of a thread, all in registers."""
        return self.tall * (self.depth + self.keys) // 2

    @property
    def name(self) -> str:
        """The kernel's name."""
        words = [self.precision, "attention", f"{self.rows}x{self.keys}w{self.warps}", f"head{self.depth}", f"c{self.copy_bytes}"]
        return "_".join(
            [
                *words,
                *(f"teams{self.teams}",) * (self.teams > 1),
                *("causal",) * self.causal,
                *(f"mask_{self.mask}",) * (self.mask is not None),
            ]
        )

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return self.team * self.teams

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a block: that of its teams, and its queries."""
        return self.teams * self.team_bytes + self.rows * self.pitch

    def emit(self) -> str:
        """Return the IR of the kernel. Any number of blocks shares the tiles of queries."""

        def body(fields: Fields) -> None:
            with share_among_blocks(fields.k, fields.number("chunks")) as chunk:
                _emit_tile(_Work(fields, self, chunk))

        return emit_kernel(self, AttentionDescriptor, body)


class _Work:
    """A tile of queries while its kernel is emitted."""

    def __init__(self, fields: Fields, form: AttentionForm, chunk: Value) -> None:
        k = self.k = fields.k
        self.fields, self.form = fields, form
        self.multiply = SplitUnit(TF32).multiply if form.precision == "fp32" else UNITS[form.precision][1].multiply
        self.thread, self.base = gpu.special(k, "tid.x"), gpu.shared_base(k)
        self.team, self.shared = k.const(I32, 0), self.base
        if form.teams > 1:
            self.team, self.thread = self.thread // form.team, self.thread % form.team
            self.shared = self.base + self.team * form.team_bytes
        self.lane = self.thread & (WARP - 1)
        item, tile = fields.divide(chunk, "tiles")
        if form.causal:  # the longest first, so that the last blocks are short
            tile = fields.number("tiles") - 1 - tile
        self.batch, self.head = fields.divide(item, "heads")
        self.key_head, _ = fields.divide(self.head, "group")
        self.first, self.warp_row = tile * form.rows, k.shift("lshr", self.thread, 5) * (16 * form.tall)
        start = self.first + self.warp_row + k.shift("lshr", self.lane, 2)
        self.rows = [start + (16 * tall + 8 * half) for tall in range(form.tall) for half in range(2)]  # the thread's queries

    def meet(self) -> None:
        """Emit the wait until every thread of the team has come here."""
        if self.form.teams == 1:
            gpu.meet(self.k)
        else:
            gpu.meet_team(self.k, self.team, self.form.team)

    def start(self, name: str) -> Value:
        """Return the address of the head's first row."""
        head = self.key_head if name in ("k", "v") else self.head
        offset = self.batch * self.fields.number(f"{name}_batch") + head * self.fields.number(f"{name}_head")
        return self.address(self.fields.address(name), offset, self.form.item_bytes)

    def row_of(self, number: int, count: int) -> int:
        """Return which of the thread's queries a value is of. count: all values, one tile of 16 queries after another."""
        return 2 * (number // (count // self.form.tall)) + number % 4 // 2

    def address(self, base: Value, offset: Value, item_bytes: int) -> Value:
        """Return the address of an element."""
        return base + self.k.convert("zext", offset, I64) * item_bytes


def _emit_tile(work: _Work) -> None:
    k, form, fields = work.k, work.form, work.fields
    keys = fields.number("keys")
    if form.causal:
        seen = k.least(keys, work.first + form.rows + fields.number("offset"))
        keys = k.most(seen, k.const(I32, 0))
    tiles = (keys + (form.keys - 1)) // form.keys
    tile_bytes = form.keys * form.pitch
    queries_at = work.base + form.teams * form.team_bytes
    fillings = [_Filling(work, "k", form.keys, "keys", 0), _Filling(work, "v", form.keys, "keys", tile_bytes)]

    def fill(first: Value, stage: Value) -> None:
        for filling in fillings:
            filling.start(first, stage)
        gpu.commit_copies(k)

    _Filling(work, "q", form.rows, "queries", 0).start(work.first, queries_at)
    fill(work.team * form.keys, work.shared)
    zero, lowest, rows = k.const(F32, 0.0), k.const(F32, float("-inf")), len(work.rows)
    sums = [zero] * (form.tall * form.depth // 8 * 4)
    state = [work.team, work.shared, *[lowest] * rows, *[zero] * rows, *sums]
    turns = tiles if form.teams == 1 else _turns(work, tiles)
    with k.fold("tile", 0, k.convert("zext", turns, I64), 1, state) as fold:
        tile, stage, *rest = fold.values
        most, totals, sums = rest[:rows], rest[rows : 2 * rows], rest[2 * rows :]
        gpu.wait_for_copies(k, 0)
        work.meet()
        following = (work.shared + work.shared + 2 * tile_bytes) - stage
        fill((tile + form.teams) * form.keys, following)
        scores = _masked(work, _emit_scores(work, queries_at, stage), tile * form.keys)
        most, factors, weights = _emit_weights(work, scores, most)
        totals = [total * factor + part for total, factor, part in zip(totals, factors, _sums(work, weights), strict=True)]
        sums = [value * factors[work.row_of(n, len(sums))] for n, value in enumerate(sums)]
        sums = _emit_values(work, weights, stage + tile_bytes, sums)
        fold.values = [tile + form.teams, following, *most, *totals, *sums]
    gpu.wait_for_copies(k, 0)
    gpu.meet(k)
    most, sums = fold.values[2 : 2 + rows], fold.values[2 + 2 * rows :]
    totals = [combine_lanes(k, total, lambda a, b: a + b, 4) for total in fold.values[2 + rows : 2 + 2 * rows]]
    if form.teams > 1:
        _store_joined(work, most, totals, sums)
    else:
        _store(work, [1.0 / total for total in totals], sums, k.const(I32, 0))


def _turns(work: _Work, tiles: Value) -> Value:
    """Return how many of the tiles of keys the team takes, perhaps none."""
    k, teams = work.k, work.form.teams
    left = k.select(k.compare("lt", work.team, tiles), tiles - work.team, k.const(I32, 0))
    return (left + (teams - 1)) // teams


def _store_joined(work: _Work, most: Sequence[Value], totals: Sequence[Value], sums: Sequence[Value]) -> None:
    """Emit the adding up of the teams' sums, scaled to the greatest score of all, and the storing of a part of them by each."""
    k, form = work.k, work.form
    mine, apart = work.thread * 16, form.team * 16
    for n in range(0, len(sums), 4):
        words = [k.convert("bitcast", value, I32) for value in sums[n : n + 4]]
        gpu.store_shared_words(k, work.shared + mine, words, n // 4 * apart)
    small = [*most, *totals]
    small_at = len(sums) // 4 * apart
    for n, value in enumerate(small):
        gpu.store_shared(k, work.shared + work.thread * 4 + (small_at + n * form.team * 4), value)
    gpu.meet(k)
    tiles = form.depth // 8
    takers = gcd(form.teams, tiles)
    each = tiles // takers
    with k.when(k.compare("lt", work.team, takers), "taker"):
        bases = [work.base + team * form.team_bytes for team in range(form.teams)]
        found = [
            [
                k.convert("bitcast", gpu.load_shared(k, base + work.thread * 4 + (small_at + n * form.team * 4)), F32)
                for n in range(len(small))
            ]
            for base in bases
        ]
        factors, inverses = _joined_factors(work, found)
        first = work.team * each
        total: list[Value] = []
        for tall in range(form.tall):
            for n in range(each):
                four = [k.const(F32, 0.0)] * 4
                for base, of_team in zip(bases, factors, strict=True):
                    words = gpu.load_shared_words(k, base + mine + (first + (tall * tiles + n)) * apart, 0)
                    floats = [k.convert("bitcast", word, F32) for word in words]
                    four = [
                        k.fma(value, of_team[2 * tall + at // 2], sum_)
                        for at, (value, sum_) in enumerate(zip(floats, four, strict=True))
                    ]
                total += four
        _store(work, inverses, total, first * 8)
    gpu.meet(k)


def _joined_factors(work: _Work, found: Sequence[Sequence[Value]]) -> tuple[list[list[Value]], list[Value]]:
    """Return by team and query what its sums are scaled by, and by query the inverse of the sum of all weights.

    found: by team, the greatest score of each query, then the total of each.
    """
    k, scale, rows = work.k, work.fields.scalar("scale_log2"), len(work.rows)
    lowest, zero = k.const(F32, float("-inf")), k.const(F32, 0.0)
    factors: list[list[Value]] = [[] for _ in found]
    inverses = []
    for row in range(rows):
        greatest = found[0][row]
        for of_team in found[1:]:
            greatest = k.maximum(greatest, of_team[row])
        shift = k.select(k.compare("eq", greatest, lowest), zero, greatest * scale)
        whole = zero
        for team, of_team in enumerate(found):
            factors[team].append(_power(work, of_team[row] * scale - shift))
            whole = k.fma(of_team[rows + row], factors[team][-1], whole)
        inverses.append(1.0 / whole)
    return factors, inverses


class _Filling:
    """The copies of tiles of an array, of which a thread begins the same pieces of 16 bytes each time.

    rows: of a tile.  limit: the descriptor's name of how many rows there are; others become 0.  behind: bytes from a stage's
    beginning to the tile.
    """

    def __init__(self, work: _Work, name: str, rows: int, limit: str, behind: int) -> None:
        k, form, fields = work.k, work.form, work.fields
        self.work, self.rows, self.limit = work, rows, limit
        self.base, self.behind = work.start(name), behind
        self.row_bytes = k.convert("zext", fields.number(f"{name}_row"), I64) * form.item_bytes
        self.pieces = form.depth * form.item_bytes // 16  # of a row
        self.turns = -(-rows * self.pieces // form.team)
        straight = form.team % self.pieces == 0  # then a thread's pieces lie below one another
        self.places = [self._place(turn) for turn in range(1 if straight else self.turns)]
        self.rows_apart = form.team // self.pieces if straight else 0

    def _place(self, turn: int) -> tuple[Value, Value, Value, list[Value]]:
        """Return a piece's row in the tile, its bytes from the stage's beginning and from the tile's in memory, and by copy
        whether the head reaches so far."""
        work, k, form = self.work, self.work.k, self.work.form
        number = work.thread + turn * form.team
        row, part = number // self.pieces, number % self.pieces
        elements = [part * (16 // form.item_bytes) + at // form.item_bytes for at in range(0, 16, form.copy_bytes)]
        inside = [below(k, element, work.fields.number("depth")) for element in elements]
        offset = k.convert("zext", row, I64) * self.row_bytes + k.convert("zext", part * 16, I64)
        return row, row * form.pitch + part * 16 + self.behind, offset, inside

    def start(self, first: Value, stage: Value) -> None:
        """Emit the start of the copies of the tile that begins with row `first`, to a stage of shared memory."""
        work, k, form = self.work, self.work.k, self.work.form
        tile = self.base + k.convert("zext", first, I64) * self.row_bytes
        left = work.fields.number(self.limit) - first
        for turn in range(self.turns):
            row, to, offset, inside = self.places[0 if self.rows_apart else turn]
            down = turn * self.rows_apart
            source = tile + offset + self.row_bytes * down if down else tile + offset
            valid = k.compare("lt", row + down, left)
            last = (turn + 1) * form.team > self.rows * self.pieces  # not every thread has a piece
            with k.when(k.compare("lt", row + down, self.rows), "piece") if last else nullcontext():
                for at, reaches in zip(range(0, 16, form.copy_bytes), inside, strict=True):
                    gpu.copy_async(
                        k, stage + to + (down * form.pitch + at), source + at, form.copy_bytes, both(k, valid, reaches)
                    )


def _emit_scores(work: _Work, queries: Value, stage: Value) -> list[Value]:
    """Emit q·kᵀ of the warp's queries and a tile of keys: 4 sums for every 16 queries and 8 keys."""
    k, form = work.k, work.form
    in_eight, matrix = work.lane & 7, k.shift("lshr", work.lane, 3)
    odd, high = matrix & 1, k.shift("lshr", matrix, 1)
    left_at = queries + (work.warp_row + odd * 8 + in_eight) * form.pitch + high * 16
    right_at = stage + (high * 8 + in_eight) * form.pitch + odd * 16
    scores = [k.const(F32, 0.0)] * (form.tall * form.keys // 8 * 4)
    for part in range(form.parts):
        left = [gpu.load_fragments(k, left_at, tall * 16 * form.pitch + part * PART) for tall in range(form.tall)]
        pairs = [gpu.load_fragments(k, right_at, pair * 16 * form.pitch + part * PART) for pair in range(form.keys // 16)]
        right = [pair[half : half + 2] for pair in pairs for half in (0, 2)]
        scores = work.multiply(k, Operands(left, right), scores)
    return scores


def _masked(work: _Work, scores: list[Value], first: Value) -> list[Value]:
    """Emit the mask, and -infinity for keys that there are not or that come later. first: the tile's first key."""
    k, form, fields = work.k, work.form, work.fields
    per_tile = len(scores) // form.tall
    keys = [first + (work.lane & 3) * 2 + (8 * (n % per_tile // 4) + n % 2) for n in range(len(scores))]
    lowest = k.const(F32, float("-inf"))
    if form.mask:
        scores = _with_mask(work, scores, keys)
    incomplete = k.compare("gt", first + form.keys, fields.number("keys"))
    if form.causal:
        seen = work.first + fields.number("offset")  # the last key that every query of the tile sees
        incomplete = incomplete | k.compare("gt", first + (form.keys - 1), seen)
    with k.fold("edge", 0, k.convert("zext", incomplete, I64), 1, scores) as fold:  # once or not at all
        values = []
        for n, value in enumerate(fold.values):
            valid = k.compare("lt", keys[n], fields.number("keys"))
            if form.causal:
                valid = both(k, valid, k.compare("le", keys[n], work.rows[work.row_of(n, len(scores))] + fields.number("offset")))
            values.append(k.select(valid, value, lowest))
        fold.values = values
    return fold.values


def _with_mask(work: _Work, scores: list[Value], keys: list[Value]) -> list[Value]:
    k, form, fields = work.k, work.form, work.fields
    kind = I8 if form.mask == "bool" else STORAGES[_storage(form.mask)]
    start = work.batch * fields.number("mask_batch") + work.head * fields.number("mask_head")
    lines = [start + row * fields.number("mask_row") for row in work.rows]
    exist = [below(k, row, fields.number("queries")) for row in work.rows]
    loads = []
    for n, key in enumerate(keys):
        row = work.row_of(n, len(scores))
        at = work.address(fields.address("mask"), lines[row] + key * fields.number("mask_key"), kind.bits // 8)
        loads.append(gpu.load_element(k, at, kind, both(k, exist[row], below(k, key, fields.number("keys")))))
    if form.mask == "bool":
        lowest = k.const(F32, float("-inf"))
        return [k.select(k.compare("ne", load, 0), score, lowest) for score, load in zip(scores, loads, strict=True)]
    unscale = fields.scalar("unscale")  # scores are scaled after this
    return [k.fma(k.convert("fpext", load, F32), unscale, score) for score, load in zip(scores, loads, strict=True)]


def _storage(mask: Mask | None) -> Storage:
    if mask is None or mask == "bool":
        raise EmitError(f"attention: a mask of {mask}, need numbers")
    return mask


def _emit_weights(work: _Work, scores: list[Value], most: Sequence[Value]) -> tuple[list[Value], list[Value], list[Value]]:
    """Return the greatest scores of the thread's queries so far, what the sums before must be scaled by, and the weights."""
    k, scale = work.k, work.fields.scalar("scale_log2")
    found, factors, shifts = [], [], []
    lowest, zero = k.const(F32, float("-inf")), k.const(F32, 0.0)
    for row, before in enumerate(most):
        greatest = before
        for n, score in enumerate(scores):
            if work.row_of(n, len(scores)) == row:
                greatest = k.maximum(greatest, score)
        greatest = combine_lanes(k, greatest, k.maximum, 4)
        none = k.compare("eq", greatest, lowest)  # no key so far: e^(-∞ - 0) is 0, e^(-∞ - -∞) would be NaN
        shift = k.select(none, zero, greatest * scale)
        found.append(greatest)
        shifts.append(shift)
        factors.append(_power(work, before * scale - shift))
    weights = [_power(work, k.fma(score, scale, -shifts[work.row_of(n, len(scores))])) for n, score in enumerate(scores)]
    return found, factors, weights


def _power(work: _Work, x: Value) -> Value:
    """2^x, with a relative error of 2^-22."""
    return gpu.assemble(work.k, "ex2.approx.ftz.f32 $0, $1;", (F32,), (x,), pure=True)[0]


def _sums(work: _Work, weights: Sequence[Value]) -> list[Value]:
    """Return the sums of the thread's weights of each of its queries."""
    found = []
    for row in range(len(work.rows)):
        mine = [weight for n, weight in enumerate(weights) if work.row_of(n, len(weights)) == row]
        while len(mine) > 1:
            mine = [a + b for a, b in zip(mine[::2], mine[1::2], strict=True)]
        found.append(mine[0])
    return found


def _emit_values(work: _Work, weights: Sequence[Value], values: Value, sums: list[Value]) -> list[Value]:
    """Emit the product of the warp's weights by a tile of values, added to `sums`."""
    return (_emit_halves if work.form.item_bytes == 2 else _emit_singles)(work, weights, values, sums)


def _emit_halves(work: _Work, weights: Sequence[Value], values: Value, sums: list[Value]) -> list[Value]:
    """16 keys at a time. The sums of 8 keys lie as an instruction takes factors of 16 bits."""
    k, form = work.k, work.form
    in_eight, matrix = work.lane & 7, k.shift("lshr", work.lane, 3)
    at = values + ((matrix & 1) * 8 + in_eight) * form.pitch + k.shift("lshr", matrix, 1) * 16
    for chunk in range(form.keys // 16):
        starts = [tall * len(weights) // form.tall + 8 * chunk for tall in range(form.tall)]
        left = [[_packed(work, weights[first + n], weights[first + n + 1]) for n in (0, 2, 4, 6)] for first in starts]
        pairs = [
            gpu.load_fragments(k, at, chunk * 16 * form.pitch + pair * 32, transposed=True) for pair in range(form.depth // 16)
        ]
        right = [pair[half : half + 2] for pair in pairs for half in (0, 2)]
        sums = work.multiply(k, Operands(left, right), sums)
    return sums


def _packed(work: _Work, a: Value, b: Value) -> Value:
    k = work.k
    pair = k.insert(k.insert(k.poison(F32.by(2)), a, 0), b, 1)
    return k.convert("bitcast", k.convert("fptrunc", pair, work.form.kind.by(2)), I32)


def _emit_singles(work: _Work, weights: Sequence[Value], values: Value, sums: list[Value]) -> list[Value]:
    """8 keys at a time. Which key counts as which is free as long as both factors agree: keys 2n and 2n + 1 of thread n of four
    are those whose sums it has."""
    k, form = work.k, work.form
    at = values + (work.lane & 3) * (2 * form.pitch) + k.shift("lshr", work.lane, 2) * 4
    for chunk in range(form.keys // 8):
        starts = [tall * len(weights) // form.tall + 4 * chunk for tall in range(form.tall)]
        left = [[k.convert("bitcast", weights[first + n], I32) for n in (0, 2, 1, 3)] for first in starts]
        right = [
            [gpu.load_shared(k, at + ((8 * chunk + odd) * form.pitch + tile * 32)) for odd in range(2)]
            for tile in range(form.depth // 8)
        ]
        sums = work.multiply(k, Operands(left, right), sums)
    return sums


def _store(work: _Work, factors: Sequence[Value], sums: Sequence[Value], first: Value) -> None:
    """Emit the storing of sums, each times the factor of its query. first: the first column that they are of."""
    k, form, fields = work.k, work.form, work.fields
    base = work.start("y")
    for number, row in enumerate(work.rows):
        start = number // 2 * len(sums) // form.tall + number % 2 * 2
        line, exists = row * fields.number("y_row"), below(k, row, fields.number("queries"))
        for tile in range(len(sums) // (4 * form.tall)):
            column = first + (work.lane & 3) * 2 + 8 * tile
            valid = both(k, exists, below(k, column, fields.number("depth")))
            pair = [sums[start + 4 * tile + n] * factors[number] for n in range(2)]
            words = [_packed(work, *pair)] if form.item_bytes == 2 else [k.convert("bitcast", value, I32) for value in pair]
            gpu.store_words(k, work.address(base, line + column, form.item_bytes), words, valid)
