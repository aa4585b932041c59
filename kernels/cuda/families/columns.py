"""Reductions over the middle of three axes, whose last lies side by side: global pools of images with channels last, for one.

A block takes 8 runs of columns of one outer item; 32 threads share the elements of each run's columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd

from kernels.cuda.emit.builder import below, both, exchange, load_shared, meet, shared_base, special, store_shared
from kernels.cuda.emit.descriptor import LIMIT, Descriptor, Fields, listed
from kernels.cuda.emit.epilogue import STORAGES, UNCHANGED, Finish, RunMemory, Storage, all_lanes, joined, lane_of
from kernels.cuda.emit.kernel import emit_kernel, kernel_name, share_among_blocks
from kernels.cuda.emit.reduce import REDUCTIONS, Reduced
from kernels.cuda.errors import CudaError
from kernels.cuda.program import Launch
from kernels.expression import Expression
from kernels.native.emit.builder import Value
from kernels.native.emit.types import F32, I64
from kernels.native.errors import EmitError

ACROSS, PARTS, WARPS = 8, 32, 8  # runs of a block, threads of a run, and warps, each of 4 parts of the 8 runs
UNROLLED = 4  # elements of a thread's columns that are under way at once


class ColumnDescriptor(Descriptor):
    """What a column kernel is told.

    chunks: groups of columns of all outer items.  n, inner: sizes of the axes.  x_outer, x_stride: elements from an outer item
    and along the reduced axis to the next; y_stride: from an outer item's results to the next.  inverse_n: 1 / n.
    """

    _fields_ = listed(
        ("x", "y"), ("chunks", "n", "inner", "x_outer", "x_stride", "y_stride"), ("groups",), scalars=("inverse_n",)
    )


@dataclass(frozen=True, slots=True)
class ColumnForm:
    """What the code of a column kernel depends on. run: elements that move at once.  expression: of the result alone.

    Raises EmitError for an expression of more, or a reduction that there is not.
    """

    op: Reduced
    x: Storage
    y: Storage
    run: int
    expression: Expression = UNCHANGED

    def __post_init__(self) -> None:
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
        words = [self.y, f"{self.op}_of_columns", f"run{self.run}", "" if self.x == self.y else f"of_{self.x}"]
        return kernel_name(words, self.expression)

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return ACROSS * PARTS

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a block: a run of float32 for each of 8 threads of every warp."""
        return 4 * WARPS * ACROSS * self.run

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
    column = (group * ACROSS + (thread & (ACROSS - 1))) * form.run
    exists, n = below(k, column, fields.number("inner")), fields.number("n")
    start = outer * fields.number("x_outer") + column
    identity, memory = k.const(kind, reduction.identity), RunMemory.of(form.x, form.run)

    def combine(a: Value, b: Value) -> Value:
        return reduction.combine(k, a, b)

    turns = k.convert("zext", (n + (UNROLLED * PARTS - 1)) // (UNROLLED * PARTS), I64)
    with k.fold("element", 0, turns, 1, (identity, k.shift("lshr", thread, 3))) as fold:
        total, first = fold.values
        rows = [first + PARTS * step for step in range(UNROLLED)]
        valid = [both(k, exists, below(k, row, n)) for row in rows]
        loads = [
            memory.load(k, fields.address("x"), start + row * fields.number("x_stride"), all_lanes(known))
            for row, known in zip(rows, valid, strict=True)
        ]
        for value, known in zip(loads, valid, strict=True):
            total = combine(total, k.select(known, reduction.of(value), identity))
        fold.values = [total, first + PARTS * UNROLLED]
    lanes = []
    for n_lane in range(form.run):
        lane = lane_of(k, fold.values[0], n_lane)
        for apart in (8, 16):
            lane = combine(lane, exchange(k, lane, apart))
        lanes.append(lane)
    base, mine = shared_base(k), k.shift("lshr", thread, 5) * ACROSS + (thread & (ACROSS - 1))
    with k.when(k.compare("lt", thread & 31, ACROSS), "leader"):
        for n_lane, lane in enumerate(lanes):
            store_shared(k, base + (mine * form.run + n_lane) * 4, lane)
    meet(k)
    with k.when(k.compare("lt", thread, ACROSS), "first"):
        total = _from_shared(fields, form, thread)
        for warp in range(1, WARPS):
            total = combine(total, _from_shared(fields, form, thread + warp * ACROSS))
        inverse_n = k.splat(fields.scalar("inverse_n"), kind)
        form.finish().emit(fields, reduction.ends(k, total, inverse_n), outer, column, exists)
    meet(k)


def _from_shared(fields: Fields, form: ColumnForm, number: Value) -> Value:
    k = fields.k
    at = shared_base(k) + number * (4 * form.run)
    return joined(k, [k.convert("bitcast", load_shared(k, at + 4 * lane), F32) for lane in range(form.run)])


@dataclass(frozen=True, slots=True)
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
        for name, size in (("outer", self.outer), ("n", self.n), ("inner", self.inner), ("x", self.outer * self.strides[1])):
            if not 0 < size < LIMIT:
                raise CudaError(f"columns: {name} has {size} elements, need 1 to {LIMIT - 1}")

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
        form = ColumnForm(op, x, y, run, expression)
        groups = -(-self.inner // (run * ACROSS))
        told = ColumnDescriptor(
            chunks=self.outer * groups, n=self.n, inner=self.inner, x_outer=x_outer, x_stride=x_stride, y_stride=y_stride
        )
        told.inverse_n = 1 / self.n
        told.set_divisor("groups", groups)
        return Launch.of(form, told, told.chunks, ("x", "y"), names)
