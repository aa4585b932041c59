"""Resizing of images whose channels come last: every output pixel is a weighted sum of a few input pixels.

Which pixels, and by which weights, is in tables for rows and for columns, made of `kernels.resampling.Pass`: nearest, linear and
cubic interpolation by any convention, filtered or not.
"""

from __future__ import annotations

from math import gcd

import numpy as np

from kernels.cuda.emit.builder import below, both, load_words
from kernels.cuda.emit.descriptor import OTHERS, Descriptor, Fields, check_sizes, listed, others_sizes
from kernels.cuda.emit.epilogue import STORAGES, UNCHANGED, Finish, RunMemory, Storage, all_lanes
from kernels.cuda.emit.kernel import emit_kernel, kernel_name, share_among_threads
from kernels.cuda.errors import GpuUnsupportedError
from kernels.cuda.program import Launch
from kernels.expression import Expression
from kernels.native.emit.builder import Value
from kernels.native.emit.types import F32, I1, I32, I64
from kernels.record import record
from kernels.resampling import Pass
from kernels.spec import Array

THREADS = 128
TAPS = 2  # of an axis whose loads are under way at once, so 4 pixels in all


class ResizeDescriptor(Descriptor):
    """What a resize is told.

    items: runs of y.  height, width: of x.  row_taps, column_taps: entries of an output row and of an output column in their
    tables, which hold an index of 32 bits and a float32 weight each.
    """

    _fields_ = listed(
        ("x", "y", "rows", "columns", *OTHERS),
        (
            *("items", "height", "width", "row_taps", "column_taps"),
            *("x_stride", "y_stride", *(f"{name}_stride" for name in OTHERS)),
        ),
        ("runs", "out_width", "out_pixels"),
    )


@record
class ResizeForm:
    """What the code of a resize depends on. run: channels that move at once.  copies: whether every output is one input.

    expression: of the result and of up to two images like y.
    """

    storage: Storage
    run: int
    copies: bool = False
    expression: Expression = UNCHANGED

    def __post_init__(self) -> None:
        self.finish()

    def finish(self) -> Finish:
        """Return what follows the results."""
        return Finish(self.storage, self.run, expression=self.expression)

    @property
    def name(self) -> str:
        """The kernel's name."""
        return kernel_name([self.storage, "resize", f"run{self.run}", "nearest" if self.copies else ""], self.expression)

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

        return emit_kernel(self, ResizeDescriptor, body)


@record
class _Taps:
    """The taps of an output along an axis. table: address of the first.  count: of them."""

    fields: Fields
    table: Value
    count: Value

    @staticmethod
    def of(fields: Fields, name: str, number: Value) -> _Taps:
        """Return the taps of an output row or column. name: "row" or "column"."""
        k, count = fields.k, fields.number(f"{name}_taps")
        return _Taps(fields, fields.address(f"{name}s") + k.convert("zext", number * count, I64) * 8, count)

    @property
    def turns(self) -> Value:
        """How often `TAPS` of them are taken."""
        return self.fields.k.convert("zext", (self.count + (TAPS - 1)) // TAPS, I64)

    def tap(self, number: Value) -> tuple[Value, Value, Value]:
        """Return the index, the weight, and whether there is such a tap; else they are 0."""
        k = self.fields.k
        valid = below(k, number, self.count)
        index, weight = load_words(k, self.table + k.convert("zext", number, I64) * 8, 2, valid)
        return index, k.convert("bitcast", weight, F32), valid


def _emit_run(fields: Fields, form: ResizeForm, item: Value) -> None:
    k, kind = fields.k, F32.by(form.run)
    pixel, run = fields.divide(item, "runs")
    image, place = fields.divide(pixel, "out_pixels")
    y, x = fields.divide(place, "out_width")
    channel, first_row = run * form.run, image * fields.number("height")
    rows, columns = _Taps.of(fields, "row", y), _Taps.of(fields, "column", x)
    memory = RunMemory.of(form.storage, form.run)

    def load(row: Value, column: Value, valid: Value) -> Value:
        offset = ((first_row + row) * fields.number("width") + column) * fields.number("x_stride") + channel
        return memory.load(k, fields.address("x"), offset, all_lanes(valid))

    zero = k.const(I32, 0)
    if form.copies:
        total = load(rows.tap(zero)[0], columns.tap(zero)[0], k.const(I1, 1))
    else:
        with k.fold("rows", 0, rows.turns, 1, (k.const(kind, 0.0), zero), runs=True) as down:
            taken = [rows.tap(down.values[1] + n) for n in range(TAPS)]
            with k.fold("columns", 0, columns.turns, 1, (down.values[0], zero), runs=True) as across:
                total, first = across.values
                each = [columns.tap(first + n) for n in range(TAPS)]
                pairs = [(row, column) for row in taken for column in each]
                loads = [load(row[0], column[0], both(k, row[2], column[2])) for row, column in pairs]
                for (row, column), value in zip(pairs, loads, strict=True):
                    total = k.fma(value, k.splat(row[1] * column[1], kind), total)
                across.values = [total, first + TAPS]
            down.values = [across.values[0], down.values[1] + TAPS]
        total = down.values[0]
    form.finish().emit(fields, total, pixel, channel, k.const(I1, 1))


def table_of(along: Pass) -> Array:
    """Return the table of an axis, (size_out, taps, 2) of 32 bits: index and bits of the float32 weight.

    Raises GpuUnsupportedError where outputs lie outside the input and get a value of their own.
    """
    if along.outside.any():
        raise GpuUnsupportedError("resize: outputs outside the input, need a pass without; crops reach no further than the edge")
    table = np.empty((*along.index.shape, 2), np.int32)
    table[..., 0] = along.index
    weights = np.ones(along.index.shape) if along.weights is None else along.weights
    table[..., 1] = weights.astype(np.float32).view(np.int32)
    return table


@record
class Resize:
    """Images to resize. rows, columns: the interpolation along the height and the width.  *_stride: elements from a pixel to the
    next, dense where None.  others: those of what the expression reads. Raises CudaError for sizes below 1 or too large."""

    batch: int
    size: tuple[int, int]
    channels: int
    rows: Pass
    columns: Pass
    x_stride: int | None = None
    y_stride: int | None = None
    others: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        x, y = (self.batch * height * width for height, width in (self.size, self.out))
        sizes = {"x": x * self.strides[0], "y": y * self.strides[1], "channels": self.channels}
        check_sizes("resize", sizes | others_sizes(y, self.others))

    @property
    def out(self) -> tuple[int, int]:
        """Height and width of y."""
        return len(self.rows.index), len(self.columns.index)

    @property
    def strides(self) -> tuple[int, ...]:
        """The strides of x, y and the others."""
        return self.x_stride or self.channels, self.y_stride or self.channels, *self.others

    def launch(self, storage: Storage, *, expression: Expression = UNCHANGED, **names: str) -> Launch:
        """Return the launch. names: of the values at x, y, the tables of rows and columns (`table_of`), and r0, r1.

        Raises CudaError for other names.
        """
        run = gcd(128 // STORAGES[storage].bits, self.channels, *self.strides)
        row_taps, column_taps = self.rows.index.shape[1], self.columns.index.shape[1]
        copies = self.rows.weights is None and self.columns.weights is None and row_taps == column_taps == 1
        form = ResizeForm(storage, run, copies, expression)
        told = ResizeDescriptor(height=self.size[0], width=self.size[1], row_taps=row_taps, column_taps=column_taps)
        told.items = self.batch * self.out[0] * self.out[1] * self.channels // run
        for name, stride in zip(("x", "y", *OTHERS), self.strides, strict=False):
            setattr(told, f"{name}_stride", stride)
        told.set_divisor("runs", self.channels // run)
        told.set_divisor("out_width", self.out[1])
        told.set_divisor("out_pixels", self.out[0] * self.out[1])
        needs = ("x", "y", "rows", "columns", *OTHERS[: len(self.others)])
        return Launch.of(form, told, -(-told.items // THREADS), needs, names)
