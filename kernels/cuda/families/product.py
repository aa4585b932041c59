"""Products y = f(x·w + bias, …) of matrices, and convolutions as products over windows of an image, on a GPU.

x is (m, k), or an image (batch, height, width, channels); w is (n, k), for a convolution (out channels, kernel height, kernel
width, channels); y is (m, n). Factors are multiplied in a form's precision and added up in float32; bias is float32; f is any
expression of the result and of up to two matrices like y, one of which may be y itself.

Blocks of threads take chunks: tiles of y, or slices of their depth where there are few tiles. A block copies the next parts of
both factors to shared memory while it multiplies earlier ones. Slices of a tile are added up, in order, by the block that ends
last, so results do not depend on which that is.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

from kernels.cuda.emit import builder as gpu
from kernels.cuda.emit.descriptor import OTHERS, Descriptor, Fields, listed
from kernels.cuda.emit.epilogue import UNCHANGED, check_expression
from kernels.cuda.emit.kernel import emit_kernel, kernel_name, share
from kernels.cuda.emit.source import Rows, Source, Windows
from kernels.cuda.emit.unit import PART_BYTES, PARTS, ROW_BYTES, Operands
from kernels.cuda.families.product_results import emit_joined_results, emit_sliced_results
from kernels.cuda.families.product_work import GROUP_UNITS, UNITS, Precision, Tile, Work
from kernels.expression import Expression
from kernels.native.emit.builder import Value
from kernels.native.emit.types import F32, I32, I64
from kernels.native.errors import EmitError
from kernels.record import record

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
class Form:
    """What a kernel's code depends on.

    windows: whether x is an image. copy_bytes: that one copy to shared memory moves; channels (or the depth), strides and
    addresses are multiples of it. whole: whether y and what the epilogue reads go to memory by runs of columns (see `RunMemory`).
    expression: f; operand 0 is the result with its bias. groups: whether groups of four warps multiply by wgmma, each 64 rows by
    all columns of a tile, instead of each warp by itself. batched: whether there are many products of the same sizes. early:
    whether no launch before writes w, so that copies of it need not wait for these; for tf32 it has been rounded to that then.
    cluster: blocks that share the depth of a tile, and add up through their shared memory; compute capability 9.0 has that.
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
    cluster: int = 1

    def __post_init__(self) -> None:
        block, tile = self.tile.block, self.tile
        even = block.rows * tile.down == tile.rows and block.columns * tile.across == tile.columns
        fills = tile.team >= 64 and tile.rows % (tile.team // 8) == 0 == tile.columns % (tile.team // 8)
        if not (even and fills and block.rows % 16 == 0 == block.columns % 16 and tile.stages >= 2):
            raise EmitError(
                f"product: tile {tile.name}, need 2 warps or more of multiples of 16x16, rows and columns in "
                f"multiples of {tile.team // 8}, 2 stages or more"
            )
        if not (1 <= tile.deep <= 8 and tile.threads <= 1024 and self.cluster in (1, 2, 4, 8)):
            raise EmitError(
                f"product: tile {tile.name}, clusters of {self.cluster}, need 1 to 8 teams, 1024 threads, clusters of 1, 2, 4, 8"
            )
        run = UNITS[self.precision][1].run(block)
        if self.joins and (run % 4 or 4 * tile.rows * tile.columns > tile.team_bytes):
            raise EmitError(f"product: tile {tile.name}, need runs of 4 results, and stages with room for the sums of a team")
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
    def joins(self) -> bool:
        """Whether the sums of a tile are those of several teams, which meet in shared memory."""
        return self.tile.deep > 1 or self.cluster > 1

    @property
    def name(self) -> str:
        """The kernel's name: what it computes and how."""
        words = [self.precision, "conv2d" if self.windows else "product", self.tile.name, f"c{self.copy_bytes}"]
        words += [
            "wgmma" if self.groups else "",
            "" if self.whole else "part",
            "batched" if self.batched else "",
            "early" if self.early else "",
            f"cluster{self.cluster}" if self.cluster > 1 else "",
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

        return emit_kernel(self, ProductDescriptor, body, waits=True, cluster=self.cluster)


def emit_chunks(fields: Fields, form: Form, first: Value, count: Value, stride: Value) -> None:
    """Emit the work of a block on chunks first, first + stride, … below `count`: a step of a kernel.

    Every thread of the block comes here. The block's shared memory is free before and after.
    """
    k, thread = fields.k, gpu.special(fields.k, "tid.x")
    with share(k, count, first, stride) as chunk:
        _emit_chunk(fields, form, thread, chunk)


def _emit_chunk(fields: Fields, form: Form, thread: Value, chunk: Value) -> None:
    k, tile, first_tile = fields.k, form.tile, None
    if form.batched:
        item, chunk = fields.divide(chunk, "item_chunks")
        fields, first_tile = _moved(fields, form, item), item * fields.number("tiles")
    work = Work.of(fields, form, thread)
    if form.cluster > 1:
        at, piece = chunk // form.cluster, chunk % form.cluster
    else:
        piece, at = fields.divide(chunk, "tiles")
    down, across = fields.divide(at, "columns")
    at = at if first_tile is None else at + first_tile
    row, column = down * tile.rows, across * tile.columns
    first = piece * fields.number("slice_steps")
    end = k.least(first + fields.number("slice_steps"), fields.number("steps"))
    sums = _emit_sums(work, row, column, first, end)
    if form.joins:
        emit_joined_results(work, row, column, sums)
    else:
        emit_sliced_results(work, row, column, at, piece, sums)


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


def _emit_sums(work: Work, row: Value, column: Value, first: Value, end: Value) -> list[Value]:
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


def _emit_prefetch(work: Work, column: Value, first: Value, end: Value) -> None:
    """Emit the start of fetching what the block will read of w into L2, while the launches before are still at work."""
    k, fields, tile = work.k, work.fields, work.form.tile
    lines = (end - first) * tile.columns
    with share(k, lines, gpu.special(k, "tid.x"), k.const(I32, tile.threads)) as line:
        row, step = column + line % tile.columns, first + line // tile.columns
        offset = row * fields.number("w_stride") + step * (ROW_BYTES // work.form.item_bytes)
        address = fields.address("w") + k.convert("zext", offset, I64) * work.form.item_bytes
        gpu.prefetch(k, address, gpu.below(k, row, fields.number("n")))


def _steps_of(work: Work, first: Value, end: Value) -> Value:
    """Return how many steps from `first` on, its own, a team takes: at least one where it is alone."""
    k, deep = work.k, work.form.tile.deep
    if not work.form.joins:
        return k.convert("zext", end - first, I64)
    left = k.select(k.compare("lt", first, end), end - first, k.const(I32, 0))
    return k.convert("zext", (left + (deep - 1)) // deep, I64)


class Fill(Protocol):
    """What emits the copies of a step's factors, "x", "w" or both, to a stage of shared memory."""

    def __call__(self, step: Value, stage: Value, factors: str = "xw") -> None: ...  # noqa: D102


def _emit_steps(work: Work, fill: Fill, first: Value, end: Value) -> list[Value]:
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
    with k.fold("step", 0, steps, 1, (first, read, write, *loaded.words, *zeros), runs=not work.form.joins) as fold:
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


def _emit_group_steps(work: Work, fill: Fill, first: Value, end: Value) -> list[Value]:
    """Emit the steps of a tile whose groups of warps multiply straight from shared memory."""
    k, tile = work.k, work.form.tile
    unit, group = GROUP_UNITS[work.form.precision], k.shift("lshr", work.thread, 7)
    zeros = [k.const(F32, 0.0)] * work.unit.results(tile.block)
    read, write = work.shared, work.shared + (tile.stages - 1) * tile.stage_bytes
    steps = _steps_of(work, first, end)
    with k.fold("step", 0, steps, 1, (first, read, write, *zeros), runs=not work.form.joins) as fold:
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


def _emit_refill(work: Work, fill: Fill, step: Value, end: Value, stage: Value) -> None:
    """Emit the start of the copies of the step that is as far ahead as there are stages."""
    k, ahead = work.k, step + (work.form.tile.stages - 1) * work.form.tile.deep
    with k.when(k.compare("lt", ahead, end), "refill"):
        fill(ahead, stage)
    gpu.commit_copies(k)


def _next_stage(work: Work, stage: Value) -> Value:
    k, tile = work.k, work.form.tile
    last = work.shared + (tile.stages - 1) * tile.stage_bytes
    return k.select(k.compare("eq", stage, last), work.shared, stage + tile.stage_bytes)


def _emit_filling(work: Work, row: Value, column: Value) -> Fill:
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
