"""Rows of a table, chosen by indices: gathers along an axis, embeddings.

y[o, i] = f(x[o, index[i]]): x is (outer, size, n), index has `count` numbers, y is (outer, count, n). An index below 0 counts
from the end. One out of range gives zeros, and its place + 1 is left at the address of `watch`, where the caller finds it.
"""

from __future__ import annotations

from math import gcd

from kernels.cuda.emit.builder import assemble, below, load_element, word
from kernels.cuda.emit.descriptor import OTHERS, Descriptor, Fields, check_sizes, listed, others_sizes
from kernels.cuda.emit.epilogue import STORAGES, UNCHANGED, Finish, RunMemory, Storage, all_lanes
from kernels.cuda.emit.kernel import emit_kernel, kernel_name, share_among_threads
from kernels.cuda.program import Launch
from kernels.expression import Expression
from kernels.native.emit.builder import Value
from kernels.native.emit.types import I1, I32, I64
from kernels.native.errors import EmitError
from kernels.record import record

THREADS = 128


class GatherDescriptor(Descriptor):
    """What a gather is told.

    items: runs of y.  size: rows that an index chooses from.  x_outer, x_stride: elements from an outer item and from a row to
    the next.  runs: of a row.  count: of indices.
    """

    _fields_ = listed(
        ("x", "index", "y", "watch", *OTHERS),
        ("items", "size", "x_outer", "x_stride", "y_stride", *(f"{name}_stride" for name in OTHERS)),
        ("runs", "count"),
    )


@record
class GatherForm:
    """What the code of a gather depends on. index_bits: of an index, 32 or 64.  run: elements that move at once.

    expression: of the rows and of up to two matrices like y. Raises EmitError for other indices.
    """

    x: Storage
    y: Storage
    run: int
    index_bits: int = 64
    expression: Expression = UNCHANGED

    def __post_init__(self) -> None:
        if self.index_bits not in (32, 64):
            raise EmitError(f"gather: indices of {self.index_bits} bits, need 32 or 64")
        self.finish()

    def finish(self) -> Finish:
        """Return what follows the results."""
        return Finish(self.y, self.run, expression=self.expression)

    @property
    def name(self) -> str:
        """The kernel's name."""
        words = [self.y, "gather", f"run{self.run}", f"by_i{self.index_bits}", "" if self.x == self.y else f"of_{self.x}"]
        return kernel_name(words, self.expression)

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return THREADS

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a block: none."""
        return 0

    def emit(self) -> str:
        """Return the IR of the kernel. Any number of blocks shares the runs of y."""

        def body(fields: Fields) -> None:
            with share_among_threads(fields.k, fields.number("items"), THREADS) as item:
                _emit_run(fields, self, item)

        return emit_kernel(self, GatherDescriptor, body)


def _emit_run(fields: Fields, form: GatherForm, item: Value) -> None:
    k, kind = fields.k, I32 if form.index_bits == 32 else I64
    row, run = fields.divide(item, "runs")
    outer, place = fields.divide(row, "count")
    always = k.const(I1, 1)
    at = fields.address("index") + k.convert("zext", place, I64) * (kind.bits // 8)
    index = k.convert("sext", load_element(k, at, kind, always), I64)
    size = k.convert("zext", fields.number("size"), I64)
    index = k.select(k.compare("lt", index, 0), index + size, index)
    inside = below(k, index, size)
    outside = inside ^ k.const(I1, 1)
    text = "{ .reg .pred p; setp.ne.b32 p, $2, 0; @p st.global.b32 [$0], $1; }"
    assemble(k, text, (), (fields.address("watch"), place + 1, word(k, outside)))
    chosen = k.convert("trunc", k.select(inside, index, k.const(I64, 0)), I32)
    column = run * form.run
    offset = outer * fields.number("x_outer") + chosen * fields.number("x_stride") + column
    value = RunMemory.of(form.x, form.run).load(k, fields.address("x"), offset, all_lanes(inside))
    form.finish().emit(fields, value, row, column, always)


@record
class Gather:
    """Rows to gather. size: rows of x to choose from.  count: indices.  n: elements of a row.  outer: tables in x, each a gather.

    *_stride: elements from a row to the next, dense where None. others: strides of the matrices that the expression reads.
    Raises CudaError for sizes below 1 or too large.
    """

    size: int
    count: int
    n: int
    outer: int = 1
    x_stride: int | None = None
    y_stride: int | None = None
    others: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        x, y, *_ = self.strides
        rows = self.outer * self.count
        sizes = {"x": self.outer * self.size * x, "y": rows * y, "n": self.n}
        check_sizes("gather", sizes | others_sizes(rows, self.others))

    @property
    def strides(self) -> tuple[int, ...]:
        """The strides of x, y and the others."""
        return self.x_stride or self.n, self.y_stride or self.n, *self.others

    def launch(
        self,
        x: Storage,
        y: Storage | None = None,
        /,
        *,
        index_bits: int = 64,
        expression: Expression = UNCHANGED,
        **names: str,
    ) -> Launch:
        """Return the launch. x, y: how their elements are stored.

        names: of the values at x, index, y, watch (4 bytes, 0 before), and r0, r1. Raises CudaError for other names.
        """
        y = y or x
        run = gcd(128 // max(STORAGES[x].bits, STORAGES[y].bits), self.n, *self.strides)
        form = GatherForm(x, y, run, index_bits, expression)
        told = GatherDescriptor(items=self.outer * self.count * self.n // run, size=self.size)
        told.x_outer = self.size * self.strides[0]
        for name, stride in zip(("x", "y", *OTHERS), self.strides, strict=False):
            setattr(told, f"{name}_stride", stride)
        told.set_divisor("runs", self.n // run)
        told.set_divisor("count", self.count)
        needs = ("x", "index", "y", "watch", *OTHERS[: len(self.others)])
        return Launch.of(form, told, -(-told.items // THREADS), needs, names)
