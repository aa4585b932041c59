"""Products y = f(x·w + bias, …) of matrices, and convolutions as products over windows of an image, on a GPU.

x is (m, k), or an image (batch, height, width, channels); w is (n, k), for a convolution (out channels, kernel height, kernel
width, channels); y is (m, n). Factors are multiplied in a form's precision and added up in float32; bias is float32; f is any
expression of the result and of up to two matrices like y, one of which may be y itself.

Blocks of threads take chunks: tiles of y, or slices of their depth where there are few tiles. A block copies the next parts of
both factors to shared memory while it multiplies earlier ones. Slices of a tile are added up, in order, by the block that ends
last, so results do not depend on which that is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Literal, Protocol

from kernels.cuda.emit import builder as gpu
from kernels.cuda.emit.descriptor import OTHERS, Descriptor, Fields, listed
from kernels.cuda.emit.epilogue import STORAGES, UNCHANGED, RunMemory, check_expression, lanes_below
from kernels.cuda.emit.kernel import emit_kernel, kernel_name, share
from kernels.cuda.emit.source import Rows, Source, Windows
from kernels.cuda.emit.unit import PART_BYTES, PARTS, ROW_BYTES, Block, FmaUnit, GroupUnit, MathUnit, Operands, TensorUnit
from kernels.expression import Expression
from kernels.native.emit.builder import Function, Value
from kernels.native.emit.expression import evaluate
from kernels.native.emit.types import F32, I1, I32, I64, Type
from kernels.native.errors import EmitError
from kernels.record import record

Precision = Literal["fp32", "tf32", "bf16", "fp16"]

TF32 = TensorUnit("f32.tf32.tf32", 8, rounds=True)
UNITS: dict[Precision, tuple[Type, MathUnit]] = {
    "fp32": (F32, FmaUnit()),
    "tf32": (F32, TF32),
    "bf16": (STORAGES["bf16"], TensorUnit("f32.bf16.bf16", 16)),
    "fp16": (STORAGES["fp16"], TensorUnit("f32.f16.f16", 16)),
}
GROUP_UNITS: dict[Precision, GroupUnit] = {
    "tf32": GroupUnit("f32.tf32.tf32", 8, ", 1, 1"),
    "bf16": GroupUnit("f32.bf16.bf16", 16, ", 1, 1, 0, 0"),
    "fp16": GroupUnit("f32.f16.f16", 16, ", 1, 1, 0, 0"),
}
AT_ONCE = 64  # elements of a thread that an epilogue loads before it computes
BATCHED = ("x", "w", "y", *OTHERS)  # what has a matrix for every item of a batch


class ProductDescriptor(Descriptor):
    """The structure that a product's kernel takes.

    x, w, y, bias, r0, r1: addresses. partial, counters: where slices of one result meet.  m, n, k: rows, columns and depth of
    the product.  *_stride: elements from a row to the next, for a window from a pixel to the next; *_outer, *_inner: from an item
    of the batch to the next.  chunks: of the whole batch.  steps: of the depth, 128 bytes each; slice_steps: of a slice.
    """

    _fields_ = listed(
        ("x", "w", "y", "bias", "partial", "counters", *OTHERS),
        (
            *("m", "n", "k", "x_stride", "w_stride", "y_stride", *(f"{name}_stride" for name in OTHERS)),
            *("chunks", "slices", "steps", "slice_steps"),
            *("height", "width", "stride_height", "stride_width", "pad_top", "pad_left", "dilation_height", "dilation_width"),
            *(f"{name}_{level}" for name in BATCHED for level in ("outer", "inner")),
        ),
        ("tiles", "columns", "channels", "kernel_width", "out_width", "out_pixels", "item_chunks", "inner"),
    )


@record
class Tile:
    """The results of a block of threads. across, down: warps side by side and one above another.  stages: of shared memory.

    deep: teams of such warps, which take the steps of the depth in turn, each in stages of its own; then the first adds up their
    sums. A step's latency is what a single team waits for most.
    """

    rows: int
    columns: int
    down: int
    across: int
    stages: int
    deep: int = 1

    @property
    def team(self) -> int:
        """Threads of a team."""
        return 32 * self.down * self.across

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return self.team * self.deep

    @property
    def stage_bytes(self) -> int:
        """Shared memory of a stage: 128 bytes of depth of every row and column."""
        return (self.rows + self.columns) * ROW_BYTES

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a block."""
        return self.deep * self.team_bytes

    @property
    def team_bytes(self) -> int:
        """Shared memory of a team."""
        return self.stages * self.stage_bytes

    @property
    def block(self) -> Block:
        """The results of a warp."""
        return Block(self.rows // self.down, self.columns // self.across)

    @property
    def name(self) -> str:
        """Text that tells tiles apart."""
        return f"{self.rows}x{self.columns}w{self.down}x{self.across}s{self.stages}" + (f"d{self.deep}" if self.deep > 1 else "")


@record
class Form:
    """What a kernel's code depends on.

    windows: whether x is an image. copy_bytes: that one copy to shared memory moves; channels (or the depth), strides and
    addresses are multiples of it. whole: whether y and what the epilogue reads go to memory by runs of columns (see `RunMemory`).
    expression: f; operand 0 is the result with its bias. groups: whether groups of four warps multiply by wgmma, each 64 rows by
    all columns of a tile, instead of each warp by itself. batched: whether there are many products of the same sizes. early:
    whether no launch before writes w, so that copies of it need not wait for these.
    Raises EmitError for a tile that its warps do not divide, or an expression of other types or of too many operands.
    """

    precision: Precision
    tile: Tile
    windows: bool = False
    copy_bytes: int = 16
    whole: bool = True
    bias: bool = False
    expression: Expression = UNCHANGED
    groups: bool = False
    batched: bool = False
    early: bool = False

    def __post_init__(self) -> None:
        block, tile = self.tile.block, self.tile
        even = block.rows * tile.down == tile.rows and block.columns * tile.across == tile.columns
        fills = tile.team >= 64 and tile.rows % (tile.team // 8) == 0 == tile.columns % (tile.team // 8)
        if not (even and fills and block.rows % 16 == 0 == block.columns % 16 and tile.stages >= 2):
            raise EmitError(
                f"product: tile {tile.name}, need 2 warps or more of multiples of 16x16, rows and columns in "
                f"multiples of {tile.team // 8}, 2 stages or more"
            )
        if not (1 <= tile.deep <= 8 and tile.threads <= 1024) or (
            tile.deep > 1 and 4 * tile.rows * tile.columns > tile.team_bytes
        ):
            raise EmitError(
                f"product: tile {tile.name}, need 1 to 8 teams in 1024 threads, whose stages have room for their sums"
            )
        if self.groups and not (self.precision in GROUP_UNITS and block.rows == 16 and tile.across == 1 and tile.down % 4 == 0):
            raise EmitError(
                f"product: groups of warps for {self.precision}, tile {tile.name}, need {', '.join(GROUP_UNITS)}, 4 down"
            )
        if self.copy_bytes not in (2, 4, 8, 16) or self.copy_bytes < self.item_bytes:
            raise EmitError(f"product: copies of {self.copy_bytes} bytes, need {self.item_bytes} to 16, a power of two")
        if self.windows and self.batched:
            raise EmitError("product: a convolution in a batch of products, need its images as the rows of one")
        check_expression("product", self.expression)

    @property
    def item_bytes(self) -> int:
        """Bytes of an element of x, w and y."""
        return UNITS[self.precision][0].bits // 8

    @property
    def name(self) -> str:
        """The kernel's name: what it computes and how."""
        words = [self.precision, "conv2d" if self.windows else "product", self.tile.name, f"c{self.copy_bytes}"]
        words += [
            "wgmma" if self.groups else "",
            "" if self.whole else "part",
            "batched" if self.batched else "",
            "early" if self.early else "",
        ]
        return kernel_name([*words, "bias" if self.bias else ""], self.expression)

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return self.tile.threads

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a block."""
        return self.tile.shared_bytes

    def emit(self) -> str:
        """Return the IR of the kernel. Any number of blocks shares the chunks."""

        def body(fields: Fields) -> None:
            k = fields.k
            emit_chunks(fields, self, gpu.special(k, "ctaid.x"), fields.number("chunks"), gpu.special(k, "nctaid.x"))

        return emit_kernel(self, ProductDescriptor, body, waits=True)


def emit_chunks(fields: Fields, form: Form, first: Value, count: Value, stride: Value) -> None:
    """Emit the work of a block on chunks first, first + stride, … below `count`: a step of a kernel.

    Every thread of the block comes here. The block's shared memory is free before and after.
    """
    k, thread = fields.k, gpu.special(fields.k, "tid.x")
    with share(k, count, first, stride) as chunk:
        _emit_chunk(fields, form, thread, chunk)


@record
class _Work:
    """What the parts of a chunk share. thread: its number in the team.  shared: where the team's shared memory begins.

    team: the team's number; None where the block is one.
    """

    fields: Fields
    form: Form
    thread: Value
    shared: Value
    team: Value | None = None

    @staticmethod
    def of(fields: Fields, form: Form, thread: Value) -> _Work:
        """Return what a chunk's parts share. thread: its number in the block."""
        tile, shared = form.tile, gpu.shared_base(fields.k)
        if tile.deep == 1:
            return _Work(fields, form, thread, shared)
        team = thread // tile.team
        return _Work(fields, form, thread % tile.team, shared + team * tile.team_bytes, team)

    def meet(self) -> None:
        """Emit the wait until every thread of the team has come here."""
        if self.team is None:
            gpu.meet(self.k)
        else:
            gpu.meet_team(self.k, self.team, self.form.tile.team)

    @property
    def k(self) -> Function:
        return self.fields.k

    @property
    def unit(self) -> MathUnit:
        return UNITS[self.form.precision][1]

    @property
    def lane(self) -> Value:
        return self.thread & 31

    def warp_start(self) -> tuple[Value, Value]:
        """Return the first row and the first column of the thread's warp in a tile."""
        tile, warp = self.form.tile, self.k.shift("lshr", self.thread, 5)
        return (warp % tile.down) * tile.block.rows, (warp // tile.down) * tile.block.columns


def _emit_chunk(fields: Fields, form: Form, thread: Value, chunk: Value) -> None:
    k, tile, first_tile = fields.k, form.tile, None
    if form.batched:
        item, chunk = fields.divide(chunk, "item_chunks")
        fields, first_tile = _moved(fields, form, item), item * fields.number("tiles")
    work = _Work.of(fields, form, thread)
    piece, at = fields.divide(chunk, "tiles")
    down, across = fields.divide(at, "columns")
    at = at if first_tile is None else at + first_tile
    row, column = down * tile.rows, across * tile.columns
    first = piece * fields.number("slice_steps")
    end = k.least(first + fields.number("slice_steps"), fields.number("steps"))
    with _added_up(work, _emit_sums(work, row, column, first, end)) as sums:
        split = k.compare("gt", fields.number("slices"), 1)
        complete = _emit_meeting(work, split, at, piece, sums)
        with k.when(k.compare("ne", complete, 0), "finish"):
            zero = k.const(F32, 0.0)
            slices = k.select(split, fields.number("slices"), k.const(I32, 0))
            starts = [k.select(split, zero, value) for value in sums]
            with k.fold("slice", 0, k.convert("zext", slices, I64), 1, starts) as fold:
                others = _partial_at(work, at, k.convert("trunc", fold.index, I32))
                fold.values = [a + b for a, b in zip(fold.values, _load_partial(work, others), strict=True)]
            _emit_results(work, row, column, fold.values)
    gpu.meet(k)


def _moved(fields: Fields, form: Form, item: Value) -> Fields:
    """Return the fields of an item of the batch: its matrices' addresses."""
    k, (outer, inner) = fields.k, fields.divide(item, "inner")
    names = ["x", "w", "y", *OTHERS[: len(form.expression.operands) - 1]]
    moved = {}
    for name in names:
        elements = outer * fields.number(f"{name}_outer") + inner * fields.number(f"{name}_inner")
        moved[name] = k.convert("zext", elements, I64) * form.item_bytes
    return replace(fields, moved=moved)


# The sums of a tile


def _emit_sums(work: _Work, row: Value, column: Value, first: Value, end: Value) -> list[Value]:
    """Emit the product of a tile's rows by its columns over steps `first` to `end` of the depth, at least one."""
    k, tile, early = work.k, work.form.tile, "w" if work.form.early else ""
    fill = _emit_filling(work, row, column)
    if early:
        _emit_prefetch(work, column, first, end)
    first = first if work.team is None else first + work.team
    starts = [(first + stage * tile.deep, work.shared + stage * tile.stage_bytes) for stage in range(tile.stages - 1)]
    for step, stage in starts if early else ():
        with k.when(k.compare("lt", step, end), "early"):
            fill(step, stage, early)
    gpu.await_previous(k)
    for step, stage in starts:
        with k.when(k.compare("lt", step, end), "fill"):
            fill(step, stage, "x" if early else "xw")
        gpu.commit_copies(k)
    return _emit_group_steps(work, fill, first, end) if work.form.groups else _emit_steps(work, fill, first, end)


def _emit_prefetch(work: _Work, column: Value, first: Value, end: Value) -> None:
    """Emit the start of fetching what the block will read of w into L2, while the launches before are still at work."""
    k, fields, tile = work.k, work.fields, work.form.tile
    lines = (end - first) * tile.columns
    with share(k, lines, gpu.special(k, "tid.x"), k.const(I32, tile.threads)) as line:
        row, step = column + line % tile.columns, first + line // tile.columns
        offset = row * fields.number("w_stride") + step * (ROW_BYTES // work.form.item_bytes)
        address = fields.address("w") + k.convert("zext", offset, I64) * work.form.item_bytes
        gpu.prefetch(k, address, gpu.below(k, row, fields.number("n")))


@contextmanager
def _added_up(work: _Work, sums: Sequence[Value]) -> Iterator[Sequence[Value]]:
    """Run the body with the sums of all teams, added up in order; of several teams, the first runs it."""
    k, tile = work.k, work.form.tile
    if work.team is None:
        yield sums
        return
    mine = work.shared + work.thread * 16
    with k.when(k.compare("ne", work.team, 0), "other"):
        for n in range(0, len(sums), 4):
            words = [k.convert("bitcast", value, I32) for value in sums[n : n + 4]]
            gpu.store_shared_words(k, mine, words, n * tile.team * 4)
    gpu.meet(k)
    with k.when(k.compare("eq", work.team, 0), "first"):
        total = list(sums)
        for team in range(1, tile.deep):
            for n in range(0, len(sums), 4):
                words = gpu.load_shared_words(k, mine, team * tile.team_bytes + n * tile.team * 4)
                total[n : n + 4] = [a + k.convert("bitcast", b, F32) for a, b in zip(total[n : n + 4], words, strict=True)]
        yield total


def _steps_of(work: _Work, first: Value, end: Value) -> Value:
    """Return how many steps from `first` on, its own, a team takes: at least one where it is alone."""
    k, deep = work.k, work.form.tile.deep
    if deep == 1:
        return k.convert("zext", end - first, I64)
    left = k.select(k.compare("lt", first, end), end - first, k.const(I32, 0))
    return k.convert("zext", (left + (deep - 1)) // deep, I64)


class Fill(Protocol):
    """What emits the copies of a step's factors, "x", "w" or both, to a stage of shared memory."""

    def __call__(self, step: Value, stage: Value, factors: str = "xw") -> None: ...  # noqa: D102


def _emit_steps(work: _Work, fill: Fill, first: Value, end: Value) -> list[Value]:
    """Emit the steps of a tile whose warps load what they multiply.

    A step's last part is multiplied after the next step's first was loaded, so that no warp waits behind the barrier.
    """
    k, tile = work.k, work.form.tile
    warp_row, warp_column = work.warp_start()
    left_at, right_at = warp_row * ROW_BYTES, (warp_column + tile.rows) * ROW_BYTES
    zeros = [k.const(F32, 0.0)] * work.unit.results(tile.block)
    read, write = work.shared, work.shared + (tile.stages - 1) * tile.stage_bytes
    steps = _steps_of(work, first, end)

    def operands(stage: Value, part: int) -> Operands:
        return work.unit.operands(k, stage + left_at, stage + right_at, work.lane, tile.block, part)

    gpu.wait_for_copies(k, tile.stages - 2)
    work.meet()
    loaded = operands(work.shared, 0)
    with k.fold("step", 0, steps, 1, (first, read, write, *loaded.words, *zeros), runs=tile.deep == 1) as fold:
        step, read, write = fold.values[:3]
        loaded, sums = loaded.replaced(fold.values[3:]), fold.values[3 + len(loaded.words) :]
        following = _next_stage(work, read)
        for part in range(PARTS):
            current = loaded
            if part == PARTS - 1:
                gpu.wait_for_copies(k, tile.stages - 2)
                work.meet()
            loaded = operands(read, part + 1) if part < PARTS - 1 else operands(following, 0)
            if part == 0:
                _emit_refill(work, fill, step, end, write)
            sums = work.unit.multiply(k, current, sums)
        fold.values = [step + tile.deep, following, _next_stage(work, write), *loaded.words, *sums]
    gpu.wait_for_copies(k, 0)
    work.meet()
    return fold.values[-len(zeros) :]


def _emit_group_steps(work: _Work, fill: Fill, first: Value, end: Value) -> list[Value]:
    """Emit the steps of a tile whose groups of warps multiply straight from shared memory."""
    k, tile = work.k, work.form.tile
    unit, group = GROUP_UNITS[work.form.precision], k.shift("lshr", work.thread, 7)
    zeros = [k.const(F32, 0.0)] * work.unit.results(tile.block)
    read, write = work.shared, work.shared + (tile.stages - 1) * tile.stage_bytes
    steps = _steps_of(work, first, end)
    with k.fold("step", 0, steps, 1, (first, read, write, *zeros), runs=tile.deep == 1) as fold:
        step, read, write, *sums = fold.values
        gpu.wait_for_copies(k, tile.stages - 2)
        gpu.publish_copies(k)
        work.meet()
        left, right = read + group * (64 * ROW_BYTES), read + tile.rows * ROW_BYTES
        sums = unit.start(k, left, right, tile.block, sums)
        _emit_refill(work, fill, step, end, write)
        unit.finish(k)
        fold.values = [step + tile.deep, _next_stage(work, read), _next_stage(work, write), *sums]
    gpu.wait_for_copies(k, 0)
    work.meet()
    return fold.values[3:]


def _emit_refill(work: _Work, fill: Fill, step: Value, end: Value, stage: Value) -> None:
    """Emit the start of the copies of the step that is as far ahead as there are stages."""
    k, ahead = work.k, step + (work.form.tile.stages - 1) * work.form.tile.deep
    with k.when(k.compare("lt", ahead, end), "refill"):
        fill(ahead, stage)
    gpu.commit_copies(k)


def _next_stage(work: _Work, stage: Value) -> Value:
    k, tile = work.k, work.form.tile
    last = work.shared + (tile.stages - 1) * tile.stage_bytes
    return k.select(k.compare("eq", stage, last), work.shared, stage + tile.stage_bytes)


def _emit_filling(work: _Work, row: Value, column: Value) -> Fill:
    """Emit what the copies of a tile share, and return what emits those of a step to a stage of shared memory.

    Eight threads copy the parts of a row, so a thread copies the same part of several rows.
    """
    k, form, tile = work.k, work.form, work.form.tile
    part, line = work.thread & 7, k.shift("lshr", work.thread, 3)
    apart = tile.team // 8  # rows between those of a thread
    place = line * ROW_BYTES + k.shift("shl", part ^ (line & 7), 4)
    x: Source = Windows(work.fields) if form.windows else Rows(work.fields, "m", "x_stride")
    w = Rows(work.fields, "n", "w_stride")
    x_rows = [x.row(row + line + n) for n in range(0, tile.rows, apart)]
    w_rows = [w.row(column + work.unit.column_of(k, line + n, tile.block)) for n in range(0, tile.columns, apart)]
    sides = ((x, x_rows, "x", 0), (w, w_rows, "w", tile.rows * ROW_BYTES))

    def fill(step: Value, stage: Value, factors: str = "xw") -> None:
        depth = step * (ROW_BYTES // form.item_bytes) + part * (PART_BYTES // form.item_bytes)
        for source, rows, name, start in sides:
            if name not in factors:
                continue
            for at in range(0, PART_BYTES, form.copy_bytes):
                parts = source.depth(depth + at // form.item_bytes)
                for n, mine in enumerate(rows):
                    offset, valid = source.place(mine, parts)
                    address = work.fields.address(name) + k.convert("sext", offset, I64) * form.item_bytes
                    gpu.copy_async(k, stage + place + (start + n * apart * ROW_BYTES + at), address, form.copy_bytes, valid)

    return fill


# Slices of a tile's depth


def _partial_at(work: _Work, tile_number: Value, piece: Value) -> Value:
    """Return the address of this thread's part of a slice's sums."""
    k, form = work.k, work.form
    size = work.unit.results(form.tile.block) * form.tile.team * 4
    number = k.convert("zext", tile_number * work.fields.number("slices") + piece, I64)
    return work.fields.address("partial") + number * size + k.convert("zext", work.thread, I64) * 16


def _load_partial(work: _Work, address: Value) -> list[Value]:
    k, threads = work.k, work.form.tile.team
    always = k.const(I1, 1)
    words: list[Value] = []
    for n in range(0, work.unit.results(work.form.tile.block), 4):
        words += gpu.load_words(k, address + n * threads * 4, 4, always, space="global.cg")
    return [k.convert("bitcast", word, F32) for word in words]


def _emit_meeting(work: _Work, split: Value, tile_number: Value, piece: Value, sums: Sequence[Value]) -> Value:
    """Emit the storing of a slice's sums, and return whether every slice of the tile is there: 0 or 1; 1 without slices."""
    k, threads = work.k, work.form.tile.team
    with k.fold("slices", 0, k.convert("zext", split, I64), 1, (k.const(I32, 1),)) as fold:
        address = _partial_at(work, tile_number, piece)
        for n in range(0, len(sums), 4):
            words = [k.convert("bitcast", value, I32) for value in sums[n : n + 4]]
            gpu.store_words(k, address + n * threads * 4, words, k.const(I1, 1))
        k.emit('fence syncscope("device") acq_rel')
        work.meet()
        with k.when(k.compare("eq", work.thread, 0), "leader"):
            counter = work.fields.address("counters") + k.convert("zext", tile_number, I64) * 4
            wrap = work.fields.number("slices") - 1  # the last addition sets the counter back to 0
            text = "atom.global.inc.u32 $0, [$1], $2; fence.acq_rel.gpu; st.shared.u32 [$3], $0;"
            gpu.assemble(k, text, (I32,), (counter, wrap, work.shared))
        work.meet()
        (before,) = gpu.assemble(k, "ld.shared.u32 $0, [$1];", (I32,), (work.shared,))
        last = k.compare("eq", before, work.fields.number("slices") - 1)
        k.emit('fence syncscope("device") acq_rel')
        fold.values = [gpu.word(k, last)]
    return fold.values[0]


# Results


@record
class _Run:
    """A run of a thread's results. row, column: where it begins in y.  numbers: of its sums.  valid: from a lane to whether it
    exists.  bias, others: what its bias and expression read."""

    row: Value
    column: Value
    numbers: Sequence[int]
    valid: Callable[[int], Value]
    bias: Value | None
    others: Sequence[Value]


def _emit_results(work: _Work, row: Value, column: Value, sums: Sequence[Value]) -> None:
    """Emit bias, expression and storing of a tile's results.

    What is read for several runs is under way before the first of them is computed: a load after a store waits for it.
    """
    k, form = work.k, work.form
    run = work.unit.run(form.tile.block)
    memory = RunMemory(UNITS[form.precision][0], run, form.whole)
    _, columns, numbers = work.unit.places(k, work.lane, form.tile.block)
    each = max(1, AT_ONCE // (run * max(1, len(form.expression.operands) - 1)))
    places = [(r, c) for c in range(len(columns)) for r in range(len(numbers))]
    for first in range(0, len(places), each):
        for found in _load_runs(work, memory, row, column, places[first : first + each]):
            value = k.poison(F32.by(run))
            for lane, number in enumerate(found.numbers):
                value = k.insert(value, sums[number], lane)
            value = value if found.bias is None else value + found.bias
            result = evaluate(k, form.expression, [partial(_same, each) for each in (value, *found.others)], run)
            at = found.row * work.fields.number("y_stride") + found.column
            memory.store(k, work.fields.address("y"), at, result, found.valid)


def _load_runs(work: _Work, memory: RunMemory, row: Value, column: Value, places: Sequence[tuple[int, int]]) -> list[_Run]:
    """Emit the loads for some of a thread's runs. row, column: where the tile begins.  places: numbers of rows and of runs."""
    k, fields, form = work.k, work.fields, work.form
    warp_row, warp_column = work.warp_start()
    rows, columns, numbers = work.unit.places(k, work.lane, form.tile.block)
    m, n, always = fields.number("m"), fields.number("n"), k.const(I1, 1)
    biases: dict[int, Value] = {}
    found = []
    for r, c in places:
        down, at = row + warp_row + rows[r], column + warp_column + columns[c]
        valid = lanes_below(k, at, n, gpu.below(k, down, m))
        if form.bias and c not in biases:
            from_memory = RunMemory(F32, memory.run, form.whole)
            biases[c] = from_memory.load(k, fields.address("bias"), at, lanes_below(k, at, n, always))
        others = [
            memory.load(k, fields.address(name), down * fields.number(f"{name}_stride") + at, valid)
            for name in OTHERS[: len(form.expression.operands) - 1]
        ]
        found.append(_Run(down, at, numbers[r][c], valid, biases.get(c), others))
    return found


def _same(value: Value) -> Value:
    return value
