"""Rows of a matrix: softmax, layer norm, RMS norm, and sums, means and extremes of rows.

A warp takes a short row, a block of threads a long one. The threads hold the row in registers where a form says so, so it is read
once; else they read it again for each pass. Sums are float32, and depend on the form alone, not on the launch.
"""

from __future__ import annotations

from collections.abc import Callable
from math import gcd
from typing import Literal, get_args

from kernels.cuda.emit.builder import await_previous, below, both, special
from kernels.cuda.emit.descriptor import OTHERS, Descriptor, Fields, check_sizes, listed, others_sizes
from kernels.cuda.emit.epilogue import STORAGES, UNCHANGED, Finish, RunMemory, Storage, all_lanes
from kernels.cuda.emit.kernel import WARP, combine_block, combine_lanes, emit_kernel, kernel_name, share_among_blocks
from kernels.cuda.emit.reduce import MAX, REDUCTIONS, SUM, Reduced, Reduction
from kernels.cuda.errors import CudaError
from kernels.cuda.program import Launch
from kernels.expression import Expression
from kernels.native.emit.builder import Value
from kernels.native.emit.math import exp, log
from kernels.native.emit.types import F32, I32, I64
from kernels.native.errors import EmitError
from kernels.record import record

RowOp = Literal["softmax", "log_softmax", "layer_norm", "rms_norm", Reduced]
NORMS = ("layer_norm", "rms_norm")
WARPS = 8  # rows of a block that each have one warp
TEAMS = (WARP, 256, 1024)
HELD = (1, 2, 4, 8, 16, 32)  # runs of a thread in registers; a row of 0 is read for every pass
HELD_ELEMENTS = 32  # of a thread, at most
FEW = 8  # elements of a thread of a block, with which registers hold scale and bias too
UNROLLED = 4  # runs of a thread that are under way at once where a row is read for every pass; 16 of one element are slower


class RowDescriptor(Descriptor):
    """What a row kernel is told.

    rows, n: of x.  *_stride: elements from a row to the next; y_stride, where y has one element a row, from that to the next.
    scale, bias: float32 for each column.  inverse_n: 1 / n.
    """

    _fields_ = listed(
        ("x", "y", "scale", "bias", *OTHERS),
        ("rows", "n", "x_stride", "y_stride", *(f"{name}_stride" for name in OTHERS)),
        scalars=("epsilon", "inverse_n"),
    )


@record
class RowForm:
    """What the code of a row kernel depends on.

    run: elements that move at once.  team: threads of a row.  held: runs of a thread in registers, 0 where the row is read for
    every pass. scale, bias: of a norm.  expression: of the result and of up to two matrices like y.
    Raises EmitError for a team or a number of runs that there is not, or a scale or bias where nothing is normalised.
    """

    op: RowOp
    x: Storage
    y: Storage
    run: int
    team: int = WARP
    held: int = 1
    scale: bool = False
    bias: bool = False
    expression: Expression = UNCHANGED

    def __post_init__(self) -> None:
        if self.team not in TEAMS or self.held not in (0, *HELD) or self.held * self.run > HELD_ELEMENTS:
            raise EmitError(
                f"{self.op}: {self.held} runs of {self.run} elements in each of {self.team} threads, need teams of {TEAMS} and "
                f"at most {HELD_ELEMENTS} elements, in runs of one of {HELD}"
            )
        if (self.scale or self.bias) and self.op not in NORMS:
            raise EmitError(f"{self.op}: scale={self.scale}, bias={self.bias}, need one of {NORMS} for them")
        if self.reduces and len(self.expression.operands) > 1:
            raise EmitError(f"{self.op}: {len(self.expression.operands) - 1} matrices, need none for one element a row")
        self.finish()

    @property
    def reduces(self) -> bool:
        """Whether y has one element a row."""
        return self.op in get_args(Reduced)

    @property
    def most(self) -> int | None:
        """The longest row that the kernel serves."""
        return self.team * self.held * self.run if self.held else None

    def finish(self) -> Finish:
        """Return what follows the results."""
        return Finish(self.y, 1 if self.reduces else self.run, expression=self.expression)

    @property
    def name(self) -> str:
        """The kernel's name."""
        words = [self.y, self.op, f"team{self.team}", f"held{self.held}" if self.held else "read", f"run{self.run}"]
        words += ["" if self.x == self.y else f"of_{self.x}", "scale" if self.scale else "", "bias" if self.bias else ""]
        return kernel_name(words, self.expression)

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return WARPS * WARP if self.team == WARP else self.team

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a block: one float32 of each warp, where a block takes a row."""
        return 0 if self.team == WARP else 4 * WARP

    def emit(self) -> str:
        """Return the IR of the kernel. Any number of blocks shares the rows."""

        def body(fields: Fields) -> None:
            k, rows = fields.k, fields.number("rows")
            each = self.threads // self.team
            thread = special(k, "tid.x")
            with share_among_blocks(k, (rows + (each - 1)) // each) as chunk:
                row = chunk if each == 1 else chunk * each + k.shift("lshr", thread, 5)
                _emit_row(_Row(fields, self, row, thread if each == 1 else thread & (WARP - 1)))

        return emit_kernel(self, RowDescriptor, body, waits=True)


class _Row:
    """A row while its kernel is emitted. thread: its number in the team."""

    def __init__(self, fields: Fields, form: RowForm, row: Value, thread: Value) -> None:
        self.fields, self.form, self.k, self.row = fields, form, fields.k, row
        self.thread = thread
        self.exists = below(self.k, row, fields.number("rows"))
        columns = [thread * form.run + n * form.team * form.run for n in range(form.held)]
        early = form.team == WARP or form.held * form.run <= FEW  # of the model, so they need not wait; more would spill
        self._given = [self._load_given(column) for column in columns] if early else []
        await_previous(self.k)
        self._held = self._load(thread * form.run, form.held) if form.held else []

    def _load(self, first: Value, count: int) -> list[tuple[Value, Value, Value]]:
        """Load runs from a column on: the column, whether it exists, and the elements of each."""
        k, form, fields = self.k, self.form, self.fields
        start, found = self.row * fields.number("x_stride"), []
        for n in range(count):
            column = first + n * form.team * form.run
            valid = both(k, self.exists, below(k, column, fields.number("n")))
            value = RunMemory.of(form.x, form.run).load(k, fields.address("x"), start + column, all_lanes(valid))
            found.append((column, valid, value))
        return found

    def _load_given(self, column: Value) -> list[Value]:
        """Load a norm's scale and bias of a run of columns."""
        k, form, fields = self.k, self.form, self.fields
        memory, exists = RunMemory.of("fp32", form.run), all_lanes(below(k, column, fields.number("n")))
        names = [name for name, given in (("scale", form.scale), ("bias", form.bias)) if given]
        return [memory.load(k, fields.address(name), column, exists) for name in names]

    def _passes(self) -> Value:
        """Return how often the team reads `UNROLLED` runs of each thread until the row is read."""
        span = UNROLLED * self.form.team * self.form.run
        return self.k.convert("zext", (self.fields.number("n") + (span - 1)) // span, I64)

    def reduced(self, reduction: Reduction, of: Callable[[Value], Value]) -> Value:
        """Emit the combination of what `of` makes of all elements, which every thread of the team gets."""
        k, form = self.k, self.form
        kind = F32.by(form.run)
        identity = k.const(kind, reduction.identity)

        def combine(a: Value, b: Value) -> Value:
            return reduction.combine(k, a, b)

        def added(total: Value, runs: list[tuple[Value, Value, Value]]) -> Value:
            for _, valid, value in runs:
                total = combine(total, k.select(valid, of(value), identity))
            return total

        if form.held:
            total = added(identity, self._held)
        else:
            with k.fold("pass", 0, self._passes(), 1, (identity, self.thread * form.run)) as fold:
                column = fold.values[1]
                fold.values = [added(fold.values[0], self._load(column, UNROLLED)), column + UNROLLED * form.team * form.run]
            total = fold.values[0]
        total = k.reduce(total, combine)
        if form.team == WARP:
            return combine_lanes(k, total, combine)
        return combine_block(k, total, combine, reduction.identity, form.threads)

    def write(self, of: Callable[[Value, list[Value]], Value]) -> None:
        """Emit the storing of what `of` makes of every run, and of a norm's scale and bias there."""
        k, form = self.k, self.form

        def put(runs: list[tuple[Value, Value, Value]]) -> None:
            for n, (column, valid, value) in enumerate(runs):
                given = self._given[n] if self._given else self._load_given(column)
                form.finish().emit(self.fields, of(value, given), self.row, column, valid)

        if form.held:
            put(self._held)
            return
        with k.fold("pass", 0, self._passes(), 1, (self.thread * form.run,)) as fold:
            column = fold.values[0]
            put(self._load(column, UNROLLED))
            fold.values = [column + UNROLLED * form.team * form.run]


def _emit_row(row: _Row) -> None:
    k, form, fields = row.k, row.form, row.fields
    if form.reduces:
        reduction = REDUCTIONS[form.op]  # type: ignore[index]
        total = reduction.ends(k, row.reduced(reduction, reduction.of), fields.scalar("inverse_n"))
        first = both(k, row.exists, k.compare("eq", row.thread, 0))
        form.finish().emit(fields, total, row.row, k.const(I32, 0), first)
    elif form.op in NORMS:
        _emit_norm(row)
    else:
        kind = F32.by(form.run)
        most = k.splat(row.reduced(MAX, lambda x: x), kind)
        total = row.reduced(SUM, lambda x: exp(k, x - most))
        if form.op == "softmax":
            inverse = k.splat(1.0 / total, kind)
            row.write(lambda x, _: exp(k, x - most) * inverse)
        else:
            logarithm = k.splat(log(k, total), kind)
            row.write(lambda x, _: x - most - logarithm)


def _emit_norm(row: _Row) -> None:
    k, form, fields = row.k, row.form, row.fields
    kind, inverse_n = F32.by(form.run), fields.scalar("inverse_n")
    mean = None
    if form.op == "layer_norm":
        mean = k.splat(row.reduced(SUM, lambda x: x) * inverse_n, kind)

    def centred(x: Value) -> Value:
        return x if mean is None else x - mean

    variance = row.reduced(SUM, lambda x: centred(x) * centred(x)) * inverse_n
    factor = k.splat(1.0 / k.sqrt(variance + fields.scalar("epsilon")), kind)

    def normalised(x: Value, given: list[Value]) -> Value:
        y, rest = centred(x) * factor, list(given)
        y = y * rest.pop(0) if form.scale else y
        return y + rest.pop(0) if form.bias else y

    row.write(normalised)


@record
class Rows:
    """A matrix of rows to work on. *_stride: elements from a row to the next, dense where None; y has one element a row where the
    rows are reduced. others: strides of the matrices that the expression reads.

    Raises CudaError for sizes below 1 or too large.
    """

    rows: int
    n: int
    x_stride: int | None = None
    y_stride: int | None = None
    others: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        sizes = {"rows": self.rows, "n": self.n, "x": self.rows * (self.x_stride or self.n)}
        sizes |= {"y": self.rows * (self.y_stride or self.n)}
        check_sizes("rows", sizes | others_sizes(self.rows, self.others))

    def form(
        self,
        op: RowOp,
        x: Storage,
        y: Storage | None = None,
        *,
        scale: bool = False,
        bias: bool = False,
        expression: Expression = UNCHANGED,
    ) -> RowForm:
        """Return the form for these rows: the fewest threads that hold a row, or the most where none can."""
        y = y or x
        reduces = op in get_args(Reduced)
        strides = [self.x_stride or self.n] + ([] if reduces else [self.y_stride or self.n, *self.others])
        narrow = max(STORAGES[x].bits, STORAGES[y].bits if not reduces else 16)
        run = gcd(128 // narrow, self.n, *strides)
        for team in TEAMS:
            for held in HELD:
                if held * run <= HELD_ELEMENTS and team * held * run >= self.n:
                    return RowForm(op, x, y, run, team, held, scale, bias, expression)
        return RowForm(op, x, y, run, TEAMS[-1], 0, scale, bias, expression)

    def launch(self, form: RowForm, *, epsilon: float = 1e-5, **names: str) -> Launch:
        """Return the launch. epsilon: what a norm adds to the variance.  names: of the values at x, y, and scale, bias, r0, r1
        where the form reads them. Raises CudaError where the form's kernel does not serve these rows."""
        strides = [self.x_stride or self.n, *([] if form.reduces else [self.y_stride or self.n, *self.others])]
        fits = all(size % form.run == 0 for size in (self.n, *strides)) and (form.most is None or self.n <= form.most)
        if not fits or len(self.others) != len(form.expression.operands) - 1:
            raise CudaError(f"rows: {self}, need what {form.name} serves: multiples of {form.run}, rows of {form.most} at most")
        told = RowDescriptor(rows=self.rows, n=self.n, x_stride=self.x_stride or self.n, epsilon=epsilon, inverse_n=1 / self.n)
        told.y_stride = self.y_stride or (1 if form.reduces else self.n)
        for name, stride in zip(OTHERS, self.others, strict=False):
            setattr(told, f"{name}_stride", stride)
        needs = ("x", "y", *("scale",) * form.scale, *("bias",) * form.bias, *OTHERS[: len(self.others)])
        return Launch.of(form, told, -(-self.rows // (form.threads // form.team)), needs, names)
