"""The end of a product's kernel: sums of slices, teams and blocks that meet, bias, expression, and the storing of results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import gcd

from kernels.cuda.emit import builder as gpu
from kernels.cuda.emit.descriptor import OTHERS
from kernels.cuda.emit.epilogue import RunMemory, joined, lanes_below
from kernels.cuda.families.product_work import CUT, UNITS, Work
from kernels.native.emit.builder import Value
from kernels.native.emit.expression import evaluate
from kernels.native.emit.types import F32, I1, I32, I64
from kernels.record import record

AT_ONCE = 64  # elements of a thread that an epilogue loads before it computes

# Slices of a tile's depth


def _partial_at(work: Work, tile_number: Value, piece: Value) -> Value:
    """Return the address of this thread's part of a slice's sums."""
    k, form = work.k, work.form
    size = work.unit.results(form.tile.block) * form.tile.team * 4
    number = k.convert("zext", tile_number * work.fields.number("slices") + piece, I64)
    return work.fields.address("partial") + number * size + k.convert("zext", work.thread, I64) * 16


def _load_partial(work: Work, address: Value) -> list[Value]:
    k, threads = work.k, work.form.tile.team
    always = k.const(I1, 1)
    words: list[Value] = []
    for n in range(0, work.unit.results(work.form.tile.block), 4):
        words += gpu.load_words(k, address + n * threads * 4, 4, always, space="global.cg")
    return [k.convert("bitcast", word, F32) for word in words]


def _emit_meeting(work: Work, split: Value, tile_number: Value, piece: Value, sums: Sequence[Value]) -> Value:
    """Emit the storing of a slice's sums, and return whether every slice of the tile is there: 0 or 1; 1 without slices."""
    k, threads = work.k, work.form.tile.team
    with k.fold("slices", 0, k.convert("zext", split, I64), 1, (k.const(I32, 1),)) as fold:
        address = _partial_at(work, tile_number, piece)
        for n in range(0, len(sums), 4):
            words = [k.convert("bitcast", value, I32) for value in sums[n : n + 4]]
            gpu.store_words(k, address + n * threads * 4, words, k.const(I1, 1))
        k.emit('fence syncscope("device") acq_rel')
        gpu.meet(k)
        with k.when(k.compare("eq", work.thread, 0), "leader"):
            counter = work.fields.address("counters") + k.convert("zext", tile_number, I64) * 4
            wrap = work.fields.number("slices") - 1  # the last addition sets the counter back to 0
            text = "atom.global.inc.u32 $0, [$1], $2; fence.acq_rel.gpu; st.shared.u32 [$3], $0;"
            gpu.assemble(k, text, (I32,), (counter, wrap, work.shared))
        gpu.meet(k)
        (before,) = gpu.assemble(k, "ld.shared.u32 $0, [$1];", (I32,), (work.shared,))
        last = k.compare("eq", before, work.fields.number("slices") - 1)
        k.emit('fence syncscope("device") acq_rel')
        fold.values = [gpu.word(k, last)]
    return fold.values[0]


# Results


@record
class _Run:
    """A run of a thread's results. row, column: where it begins in y.  valid: from a lane to whether it exists.

    bias, others: what its bias and expression read.
    """

    row: Value
    column: Value
    valid: Callable[[int], Value]
    bias: Value | None
    others: Sequence[Value]


class _Results:
    """Bias, expression and storing of a tile's results. row, column: where the tile begins."""

    def __init__(self, work: Work, row: Value, column: Value) -> None:
        self.k, self.work, self.form = work.k, work, work.form
        self.run = work.unit.run(self.form.tile.block)
        self.memory = RunMemory(UNITS[self.form.precision][0], self.run, self.form.whole)
        warp_row, warp_column = work.warp_start()
        self._row, self._column = row + warp_row, column + warp_column

    def load(self, row: Value, column: Value) -> _Run:
        """Emit the loads for a run. row, column: of its first result in the warp's block."""
        k, fields = self.k, self.work.fields
        down, at = self._row + row, self._column + column
        valid = lanes_below(k, at, fields.number("n"), gpu.below(k, down, fields.number("m")))
        bias = None
        if self.form.bias:
            exists = lanes_below(k, at, fields.number("n"), k.const(I1, 1))
            bias = RunMemory(F32, self.run, self.form.whole).load(k, fields.address("bias"), at, exists)
        others = [
            self.memory.load(k, fields.address(name), down * fields.number(f"{name}_stride") + at, valid)
            for name in OTHERS[: len(self.form.expression.operands) - 1]
        ]
        return _Run(down, at, valid, bias, others)

    def store(self, run: _Run, sums: Sequence[Value]) -> None:
        """Emit the results of a run."""
        k, fields = self.k, self.work.fields
        value = joined(k, list(sums))
        if self.form.groups and self.form.precision == "tf32":
            cuts = 1 if self.form.early else 2  # constants were rounded when they were packed
            value = value * k.const(value.type, (1 + CUT) ** cuts)
        value = value if run.bias is None else value + run.bias
        operands = [partial(_same, each) for each in (value, *run.others)]
        result = evaluate(k, self.form.expression, operands, self.run)
        self.memory.store(k, fields.address("y"), run.row * fields.number("y_stride") + run.column, result, run.valid)


def emit_sliced_results(work: Work, row: Value, column: Value, tile_number: Value, piece: Value, sums: Sequence[Value]) -> None:
    """Emit a tile's results; where its depth is cut into slices, from the sums of all, by the block that ends last."""
    k, fields = work.k, work.fields
    split = k.compare("gt", fields.number("slices"), 1)
    complete = _emit_meeting(work, split, tile_number, piece, sums)
    with k.when(k.compare("ne", complete, 0), "finish"):
        zero = k.const(F32, 0.0)
        slices = k.select(split, fields.number("slices"), k.const(I32, 0))
        starts = [k.select(split, zero, value) for value in sums]
        with k.fold("slice", 0, k.convert("zext", slices, I64), 1, starts) as fold:
            others = _partial_at(work, tile_number, k.convert("trunc", fold.index, I32))
            fold.values = [a + b for a, b in zip(fold.values, _load_partial(work, others), strict=True)]
        _emit_results(work, row, column, fold.values)
    gpu.meet(k)


def _emit_results(work: Work, row: Value, column: Value, sums: Sequence[Value]) -> None:
    """Emit a tile's results.

    What is read for several runs is under way before the first of them is computed: a load after a store waits for it.
    """
    results = _Results(work, row, column)
    rows, columns, numbers = work.unit.places(work.k, work.lane, work.form.tile.block)
    each = max(1, AT_ONCE // (results.run * max(1, len(work.form.expression.operands) - 1)))
    places = [(r, c) for c in range(len(columns)) for r in range(len(numbers))]
    for first in range(0, len(places), each):
        some = places[first : first + each]
        for run, (r, c) in zip([results.load(rows[r], columns[c]) for r, c in some], some, strict=True):
            results.store(run, [sums[number] for number in numbers[r][c]])


def emit_joined_results(work: Work, row: Value, column: Value, sums: Sequence[Value]) -> None:
    """Emit a tile's results from the sums of several teams: each adds up a part of them, in the same order, and stores it."""
    k, form, tile = work.k, work.form, work.form.tile
    results = _Results(work, row, column)
    rows, columns, numbers = work.unit.places(k, work.lane, tile.block)
    runs, words = [run for of_row in numbers for run in of_row], results.run // 4
    apart = tile.team * 16
    for n, run in enumerate(runs):
        for at in range(words):
            bits = [k.convert("bitcast", sums[number], I32) for number in run[4 * at : 4 * at + 4]]
            gpu.store_shared_words(k, work.shared + work.thread * 16, bits, (n * words + at) * apart)
    meet = gpu.meet if form.cluster == 1 else gpu.meet_cluster
    meet(k)
    part = work.team if work.team is not None else k.const(I32, 0)
    if form.cluster > 1:
        part = part * form.cluster + gpu.special(k, "cluster.ctarank")
    takers = gcd(tile.deep * form.cluster, len(runs))
    each = len(runs) // takers
    with k.when(k.compare("lt", part, takers), "taker"):
        loaded = []
        for n in range(each):
            number = part * each + n
            down, across = number // len(columns), number % len(columns)
            loaded.append(results.load(rows[0] + down * work.unit.row_step, columns[0] + across * (8 * tile.block.group)))
        start = gpu.shared_base(k) + work.thread * 16 + part * (each * words * apart)
        total = [k.const(F32, 0.0)] * (4 * each * words)
        for block in range(form.cluster):
            base = start if form.cluster == 1 else gpu.shared_of(k, start, block)
            load = gpu.load_shared_words if form.cluster == 1 else gpu.load_cluster_words
            places = [team * tile.team_bytes + n * apart for team in range(tile.deep) for n in range(each * words)]
            found = [load(k, base, place) for place in places]  # all under way before the first is needed
            for n, four in enumerate(found):
                first = 4 * (n % (each * words))
                floats = [k.convert("bitcast", word, F32) for word in four]
                total[first : first + 4] = [a + b for a, b in zip(total[first : first + 4], floats, strict=True)]
        for n, taken in enumerate(loaded):
            results.store(taken, total[n * results.run : (n + 1) * results.run])
    meet(k)


def _same(value: Value) -> Value:
    return value
