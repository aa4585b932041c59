"""Products of a few rows y = f(x·w + bias, …), where tiles would be almost empty: a warp for each result.

x is (m, k), w is (n, k), y is (m, n); bias is float32, f any expression of the result and of up to two matrices like y. Factors
are multiplied and added up in float32, whatever they are stored as. What is read of w is read before the launches ahead end.
"""

from __future__ import annotations

from math import gcd

from kernels.cuda.emit.builder import await_previous, below, both, special
from kernels.cuda.emit.descriptor import OTHERS, Descriptor, Fields, check_sizes, listed, others_sizes
from kernels.cuda.emit.epilogue import STORAGES, UNCHANGED, Finish, RunMemory, Storage, all_lanes
from kernels.cuda.emit.kernel import WARP, combine_lanes, emit_kernel, kernel_name, share_among_blocks
from kernels.cuda.errors import CudaError
from kernels.cuda.program import Launch
from kernels.expression import Expression
from kernels.native.emit.builder import Value
from kernels.native.emit.types import F32, I32, I64
from kernels.record import record

WARPS = 8  # of a block, each for one result
UNROLLED = 4  # runs of each factor of a thread that are under way at once
MOST_ROWS = 4  # for which this is faster than tiles: w is read once for each row


class VectorDescriptor(Descriptor):
    """What the kernel is told. items: results.  k: depth.  *_stride: elements from a row to the next, of w from a column of y."""

    _fields_ = listed(
        ("x", "w", "y", "bias", *OTHERS),
        ("items", "k", "x_stride", "w_stride", "y_stride", *(f"{name}_stride" for name in OTHERS)),
        ("n",),
    )


@record
class VectorForm:
    """What the kernel's code depends on. run: elements that move at once, of x and w.  early: whether no launch before writes w.

    Raises EmitError for an expression that is not float32 of float32, or of too many operands.
    """

    storage: Storage
    run: int
    bias: bool = False
    expression: Expression = UNCHANGED
    early: bool = False

    def __post_init__(self) -> None:
        self.finish()

    def finish(self) -> Finish:
        """Return what follows the results."""
        return Finish(self.storage, 1, self.bias, self.expression)

    @property
    def name(self) -> str:
        """The kernel's name."""
        words = [self.storage, "vector", f"run{self.run}", "early" if self.early else "", "bias" if self.bias else ""]
        return kernel_name(words, self.expression)

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return WARPS * WARP

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a block: none."""
        return 0

    def emit(self) -> str:
        """Return the IR of the kernel. Any number of blocks shares the results."""

        def body(fields: Fields) -> None:
            k, items = fields.k, fields.number("items")
            if not self.early:
                await_previous(k)
            thread = special(k, "tid.x")
            with share_among_blocks(k, (items + (WARPS - 1)) // WARPS) as chunk:
                _emit_result(fields, self, chunk * WARPS + k.shift("lshr", thread, 5), thread & (WARP - 1))

        return emit_kernel(self, VectorDescriptor, body, waits=True)


def _emit_result(fields: Fields, form: VectorForm, item: Value, lane: Value) -> None:
    k, depth = fields.k, fields.number("k")
    exists = below(k, item, fields.number("items"))
    row, column = fields.divide(k.select(exists, item, k.const(I32, 0)), "n")
    memory, span = RunMemory.of(form.storage, form.run), WARP * form.run

    def load(name: str, first: Value, at: Value) -> list[Value]:
        """Load this thread's runs of a pass; zeros behind the end."""
        found = []
        for n in range(UNROLLED):
            valid = both(k, exists, below(k, at + n * span, depth))
            found.append(memory.load(k, fields.address(name), first + at + n * span, all_lanes(valid)))
        return found

    x_row, w_row = row * fields.number("x_stride"), column * fields.number("w_stride")
    first = lane * form.run
    weights = load("w", w_row, first)
    if form.early:
        await_previous(k)
    first_lane = both(k, exists, k.compare("eq", lane, 0))
    loaded = form.finish().load(fields, row, column, first_lane)
    zero = k.const(F32.by(form.run), 0.0)
    passes = k.convert("zext", (depth + (UNROLLED * span - 1)) // (UNROLLED * span), I64)
    with k.fold("pass", 0, passes, 1, (first, zero, *weights), runs=True) as fold:
        at, total, *current = fold.values
        following = load("w", w_row, at + UNROLLED * span)
        for value, weight in zip(load("x", x_row, at), current, strict=True):
            total = k.fma(value, weight, total)
        fold.values = [at + UNROLLED * span, total, *following]
    total = combine_lanes(k, k.reduce(fold.values[1], lambda a, b: a + b), lambda a, b: a + b)
    form.finish().store(fields, total, row, column, first_lane, loaded)


@record
class Vectors:
    """A product of m rows, few of them, n columns and depth k. *_stride: elements from a row to the next, dense where None.

    others: the strides of the matrices that the expression reads. Raises CudaError for sizes below 1 or too large.
    """

    m: int
    n: int
    k: int
    x_stride: int | None = None
    w_stride: int | None = None
    y_stride: int | None = None
    others: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        sizes = {"m": self.m, "n": self.n, "k": self.k, "y": self.m * self.strides[2]}
        sizes |= {"x": self.m * self.strides[0], "w": self.n * self.strides[1]}
        check_sizes("vectors", sizes | others_sizes(self.m, self.others))

    @property
    def strides(self) -> tuple[int, int, int]:
        """The strides of x, w and y."""
        return self.x_stride or self.k, self.w_stride or self.k, self.y_stride or self.n

    def form(
        self, storage: Storage, *, bias: bool = False, expression: Expression = UNCHANGED, early: bool = False
    ) -> VectorForm:
        """Return the form for this product, which moves as many elements at once as it can. early: no launch before writes w."""
        run = gcd(128 // STORAGES[storage].bits, self.k, *self.strides[:2])
        return VectorForm(storage, run, bias, expression, early)

    def launch(self, form: VectorForm, **names: str) -> Launch:
        """Return the launch. names: of the values at x, w, y, and bias, r0, r1 where the form reads them.

        Raises CudaError where the form's kernel does not serve this product.
        """
        if any(size % form.run for size in (self.k, *self.strides[:2])) or len(self.others) != len(form.expression.operands) - 1:
            raise CudaError(f"vectors: {self}, need depth and strides in multiples of {form.run}, as {form.name} reads them")
        told = VectorDescriptor(items=self.m * self.n, k=self.k)
        for name, stride in zip(("x", "w", "y", *OTHERS), (*self.strides, *self.others), strict=False):
            setattr(told, f"{name}_stride", stride)
        told.set_divisor("n", self.n)
        needs = ("x", "w", "y", *("bias",) * form.bias, *OTHERS[: len(self.others)])
        return Launch.of(form, told, -(-told.items // WARPS), needs, names)
