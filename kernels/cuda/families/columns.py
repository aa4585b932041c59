"""Reductions over the middle of three axes, whose last lies side by side: global pools of images with channels last, for one.

A block takes a few runs of columns of one outer item, and many threads share the elements of each run's columns.
"""

from __future__ import annotations

from math import gcd

from kernels.cuda.emit.builder import below, both, exchange, load_shared, meet, shared_base, special, store_shared
from kernels.cuda.emit.descriptor import Descriptor, Fields, check_sizes, listed
from kernels.cuda.emit.epilogue import STORAGES, UNCHANGED, Finish, RunMemory, Storage, all_lanes, joined, lane_of
from kernels.cuda.emit.kernel import WARP, emit_kernel, kernel_name, share_among_blocks
from kernels.cuda.emit.reduce import REDUCTIONS, Reduced
from kernels.cuda.program import Launch
from kernels.expression import Expression
from kernels.native.emit.builder import Value
from kernels.native.emit.types import F32, I64
from kernels.native.errors import EmitError
from kernels.record import record

THREADS = (256, 1024)
ACROSS = (8, 4, 2, 1)  # runs of a block; a warp holds all of them, several times
LONG = 1024  # elements to reduce from which a block has many threads: 112² of 32 channels took 55 µs with 256, see docs/cuda.md
UNROLLED = 4  # elements of a thread's columns that are under way at once


class ColumnDescriptor(Descriptor):
    """What a column kernel is told.

    chunks: groups of columns of all outer items.  n, inner: sizes of the axes.  x_outer, x_stride: elements from an outer item
    and along the reduced axis to the next; y_stride: from an outer item's results to the next.  inverse_n: 1 / n.
    """

    _fields_ = listed(
        ("x", "y"), ("chunks", "n", "inner", "x_outer", "x_stride", "y_stride"), ("groups",), scalars=("inverse_n",)
    )


@record
class ColumnForm:
    """What the code of a column kernel depends on.

    run: elements that move at once.  across: runs of a block.  threads: of a block.  expression: of the result alone.
    Raises EmitError for an expression of more, or a reduction or a block that there is not.
    """

    op: Reduced
    x: Storage
    y: Storage
    run: int
    across: int = ACROSS[0]
    threads: int = THREADS[0]
    expression: Expression = UNCHANGED

    def __post_init__(self) -> None:
        if self.across not in ACROSS or self.threads not in THREADS:
            raise EmitError(f"columns: {self.across} runs in {self.threads} threads, need one of {ACROSS} and of {THREADS}")
        if self.op not in REDUCTIONS or len(self.expression.operands) != 1:
            raise EmitError(
                f"columns: {self.op} and {len(self.expression.operands)} operands, need {', '.join(REDUCTIONS)} and 1"
            )
        self.finish()

    def finish(self) -> Finish:
        """Return what follows the results."""
        return Finish(self.y, self.run, expression=self.expression)

    @property
    def name(self) -> str:
        """The kernel's name."""
        words = [
            self.y,
            f"{self.op}_of_columns",
            f"run{self.run}",
            f"{self.across}x{self.threads // self.across}",
            "" if self.x == self.y else f"of_{self.x}",
        ]
        return kernel_name(words, self.expression)

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a block: a float32 for each column of its runs, of every warp."""
        return 4 * self.threads // WARP * self.across * self.run

    def emit(self) -> str:
        """Return the IR of the kernel. Any number of blocks shares the groups of columns."""

        def body(fields: Fields) -> None:
            with share_among_blocks(fields.k, fields.number("chunks")) as chunk:
                _emit_group(fields, self, chunk)

        return emit_kernel(self, ColumnDescriptor, body)


def _emit_group(fields: Fields, form: ColumnForm, chunk: Value) -> None:
    k, reduction, kind = fields.k, REDUCTIONS[form.op], F32.by(form.run)
    thread = special(k, "tid.x")
    outer, group = fields.divide(chunk, "groups")
    parts, place = form.threads // form.across, thread & (form.across - 1)
    column = (group * form.across + place) * form.run
    exists, n = below(k, column, fields.number("inner")), fields.number("n")
    start = outer * fields.number("x_outer") + column
    identity, memory = k.const(kind, reduction.identity), RunMemory.of(form.x, form.run)

    def combine(a: Value, b: Value) -> Value:
        return reduction.combine(k, a, b)

    turns = k.convert("zext", (n + (UNROLLED * parts - 1)) // (UNROLLED * parts), I64)
    with k.fold("element", 0, turns, 1, (identity, thread // form.across)) as fold:
        total, first = fold.values
        rows = [first + parts * step for step in range(UNROLLED)]
        valid = [both(k, exists, below(k, row, n)) for row in rows]
        loads = [
            memory.load(k, fields.address("x"), start + row * fields.number("x_stride"), all_lanes(known))
            for row, known in zip(rows, valid, strict=True)
        ]
        for value, known in zip(loads, valid, strict=True):
            total = combine(total, k.select(known, reduction.of(value), identity))
        fold.values = [total, first + parts * UNROLLED]
    lanes = []
    for n_lane in range(form.run):
        lane = lane_of(k, fold.values[0], n_lane)
        apart = form.across
        while apart < WARP:
            lane = combine(lane, exchange(k, lane, apart))
            apart *= 2
        lanes.append(lane)
    base, mine = shared_base(k), thread // WARP * form.across + place
    with k.when(k.compare("lt", thread % WARP, form.across), "leader"):
        for n_lane, lane in enumerate(lanes):
            store_shared(k, base + (mine * form.run + n_lane) * 4, lane)
    meet(k)
    with k.when(k.compare("lt", thread, form.across), "first"):
        total = _from_shared(fields, form, thread)
        for warp in range(1, form.threads // WARP):
            total = combine(total, _from_shared(fields, form, thread + warp * form.across))
        inverse_n = k.splat(fields.scalar("inverse_n"), kind)
        form.finish().emit(fields, reduction.ends(k, total, inverse_n), outer, column, exists)
    meet(k)


def _from_shared(fields: Fields, form: ColumnForm, number: Value) -> Value:
    k = fields.k
    at = shared_base(k) + number * (4 * form.run)
    return joined(k, [k.convert("bitcast", load_shared(k, at + 4 * lane), F32) for lane in range(form.run)])


@record
class Columns:
    """An array (outer, n, inner), to be reduced over n. x_stride: elements along n to the next; x_outer, y_stride: from an outer
    item to the next, of x and of y. All are dense where None is given. Raises CudaError for sizes below 1 or too large."""

    outer: int
    n: int
    inner: int
    x_stride: int | None = None
    x_outer: int | None = None
    y_stride: int | None = None

    def __post_init__(self) -> None:
        sizes = {"outer": self.outer, "n": self.n, "inner": self.inner}
        sizes |= {"x": self.outer * self.strides[1], "y": self.outer * self.strides[2]}
        check_sizes("columns", sizes)

    @property
    def strides(self) -> tuple[int, int, int]:
        """The strides `x_stride`, `x_outer` and `y_stride`."""
        x_stride = self.x_stride or self.inner
        return x_stride, self.x_outer or self.n * x_stride, self.y_stride or self.inner

    def launch(
        self, op: Reduced, x: Storage, y: Storage | None = None, expression: Expression = UNCHANGED, /, **names: str
    ) -> Launch:
        """Return the launch. x, y: how their elements are stored. names: of the values at x and y."""
        y = y or x
        x_stride, x_outer, y_stride = self.strides
        run = gcd(128 // max(STORAGES[x].bits, STORAGES[y].bits), self.inner, *self.strides)
        across = next(each for each in ACROSS if each == 1 or each <= self.inner // run)
        form = ColumnForm(op, x, y, run, across, THREADS[self.n >= LONG], expression)
        groups = -(-self.inner // (run * across))
        told = ColumnDescriptor(
            chunks=self.outer * groups, n=self.n, inner=self.inner, x_outer=x_outer, x_stride=x_stride, y_stride=y_stride
        )
        told.inverse_n = 1 / self.n
        told.set_divisor("groups", groups)
        return Launch.of(form, told, told.chunks, ("x", "y"), names)
