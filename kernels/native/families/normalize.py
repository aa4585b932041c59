"""Softmax, normalizations and reductions: each row of a tensor is read a few times while it is in the nearest cache.

    for each chunk = a piece of each loop over rows:        a row is all elements that differ in the dimensions `axes` alone
        for each row:
            one or two sweeps over x that reduce the row: maximum, sum, mean, variance
            one sweep that writes y

Vectors run along the dimension without gaps. Where that is one of `axes`, a row is summed up across lanes at the end of a sweep.
Where it is not (Softmax of the channels of NCHW), a few vectors of neighbouring rows are processed at once, each lane a row.

The code is decided by the operation, which of the two it is, along which loops arguments are broadcast to the lanes, how many
loops there are, and the epilogue. Sizes, strides and how chunks are cut are numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

from kernels.expression import FLOAT
from kernels.native.emit.builder import Function, Value
from kernels.native.emit.epilogue import PLAIN, Epilogue
from kernels.native.emit.kernel import Bounds, NativeKernel, emitted, kernel_name
from kernels.native.emit.names import name_epilogue
from kernels.native.emit.nest import chunk_count, piece_numbers, pieces_of
from kernels.native.emit.walk import Axis, axes_of, joined
from kernels.native.errors import EmitError
from kernels.native.families.normalize_kernel import UNROLLED, RowsCode, RowsEmitter
from kernels.native.memory.view import View
from kernels.native.target.isa import Isa
from kernels.record import record
from kernels.size import hint
from kernels.spec import DType

CHUNKS = 32  # wanted at least: the last one to finish then costs a few percent on a few cores
CHUNK_ELEMENTS = (8 << 10, 32 << 10)  # least and most of one chunk: 0.5 to 5 µs
DEPTH = 2  # least loops over rows: one kernel then serves tensors of any rank up to that
SHORT = 32  # vectors of a row at most where several rows are processed side by side
SHORT_EXPONENTIALS = 64  # the same where each element costs an exponential, so that memory keeps up with several rows

Norm = Literal["softmax", "log_softmax", "layer_norm", "rms_norm"]
Reduce = Literal["sum", "mean", "max", "min", "prod", "l1", "l2", "sum_square", "log_sum", "log_sum_exp"]


@record
class Rows:
    """A softmax, a normalization or a reduction along the dimensions `axes` of x.

    A norm writes y of x's shape: (x - mean)/√(variance + epsilon)·scale + bias for "layer_norm", x/√(mean of x² + epsilon)·scale
    for "rms_norm". A reduction writes y with size 1 in `axes`.

    scale, bias: x's rank, and in each dimension its size or 1; arguments "w" and "b".
    epilogue: of results, without a bias; its operands, arguments "r0", "r1"…, have x's rank, and in each dimension y's size or 1.
    They may be x, but y itself only where the kind is neither of the softmaxes.
    A row along lanes is summed in UNROLLED vectors at once, one that is a lane in 1 to UNROLLED parts, each one element after the
    other. The variance is that of the centred values.
    """

    kind: Norm | Reduce
    x: View
    y: View
    axes: tuple[int, ...]
    epsilon: float = 0.0
    scale: View | None = None
    bias: View | None = None
    epilogue: Epilogue[View] = PLAIN

    @property
    def arguments(self) -> tuple[str, ...]:
        """The names of the pointers that its kernel takes."""
        own = ("x", *(("w",) if self.scale else ()), *(("b",) if self.bias else ()))
        return (*own, *self.epilogue.arguments, "y")

    @property
    def views(self) -> tuple[View, ...]:
        """The view of each argument."""
        return (self.x, *(view for view in (self.scale, self.bias) if view), *self.epilogue.operands, self.y)

    @property
    def dtypes(self) -> tuple[DType, ...]:
        """The element type of each argument."""
        own = len(self.views) - 1 - len(self.epilogue.operands)
        return (*[FLOAT] * own, *self.epilogue.dtypes, FLOAT)

    @property
    def reduces(self) -> bool:
        """Whether y has one element for a row."""
        return self.kind not in ("softmax", "log_softmax", "layer_norm", "rms_norm")

    @property
    def short(self) -> int:
        """How many vectors a row may have for several rows to be processed side by side."""
        return SHORT_EXPONENTIALS if self.kind in ("softmax", "log_softmax", "log_sum_exp") else SHORT


def emit_rows(rows: Rows, isa: Isa) -> NativeKernel:
    """Emit the kernel. Raises EmitError for views that do not fit together, or without a dimension that vectors can run along."""
    if rows.epilogue.bias:
        raise EmitError(f"rows: {rows.kind}: the epilogue has a bias, rows take none")
    rows.epilogue.require(f"rows: {rows.kind}", FLOAT, keeps=True)
    loops = _Loops.of(rows)
    code = RowsCode(
        rows.kind, rows.reduces, rows.epsilon, rows.arguments, rows.epilogue.expression, loops.along, loops.vector.strides,
        len(loops.kept), len(loops.read), len(loops.write), loops.columns(rows.short * isa.lanes, isa.lanes),
    )  # fmt: skip
    sizes = [axis.size for axis in loops.kept]
    pieces = loops.pieces(code.columns * (1 if code.along else isa.lanes))
    words = ("rows" if code.along else "columns", *name_epilogue(rows.epilogue))

    def body(k: Function, pointers: Mapping[str, Value], numbers: Mapping[str, Value], chunks: Bounds) -> None:
        RowsEmitter(k, code, numbers).emit(pointers, *chunks)

    return emitted(
        isa,
        kernel_name(f"f32_{rows.kind}_{UNROLLED if code.along else code.columns}x{isa.lanes}", code, isa, words),
        rows.arguments,
        chunk_count(sizes, pieces),
        body,
        {**piece_numbers(sizes, pieces), **_numbers(rows, loops)},
    )


def _numbers(rows: Rows, loops: _Loops) -> dict[str, int]:
    """Return the numbers that the code reads, by name, but for those of chunks.

    count: elements of a row. x_offset…: elements from the address of each argument to its first one. read0…, write0…: turns of
    each loop within a row. kept0_x, read0_x, write0_x…: elements from one turn of a loop to the next in x, and so on.
    """
    numbers = {"count": loops.count}
    numbers |= {f"{name}_offset": view.offset for name, view in zip(rows.arguments, rows.views, strict=True)}
    for kind, axes in (("kept", loops.kept), ("read", loops.read), ("write", loops.write)):
        for n, axis in enumerate(axes):
            numbers |= {} if kind == "kept" else {f"{kind}{n}": axis.size}
            numbers |= {f"{kind}{n}_{name}": stride for name, stride in zip(rows.arguments, axis.strides, strict=True)}
    return numbers


@record
class _Loops:
    """The loops of a kernel, outermost first, as few as there can be.

    kept: over rows, DEPTH at least. read, write: within a row, where the sweep touches only x, and y if that holds what a softmax
    has computed, and where it touches all arguments; one at least. count: elements of a row. along: whether vectors run within a
    row. vector: the loop along which they run: the last of `read` and `write`, or of `kept`.
    """

    kept: tuple[Axis, ...]
    read: tuple[Axis, ...]
    write: tuple[Axis, ...]
    count: int
    along: bool
    vector: Axis

    @staticmethod
    def of(rows: Rows) -> _Loops:
        """Return the loops over some rows. Raises EmitError for views that do not fit together."""
        kept, gone, vector = _split(rows)
        along = not any(axis is vector for axis in kept)
        arguments = range(len(rows.views))
        y = arguments[-1]

        def within(used: Sequence[int]) -> tuple[Axis, ...]:
            found = joined([axis.of(used) for axis in gone])
            return tuple(found or [Axis(1, vector.of(used if along else ()).strides)])

        one = Axis(1, (0,) * len(arguments))
        over = joined(kept)
        return _Loops(
            (*[one] * (DEPTH - len(over)), *over),
            within((0, y) if rows.kind == "softmax" else (0,)),
            within(arguments),
            math.prod(axis.size for axis in gone),
            along,
            vector if along else over[-1],
        )

    def columns(self, short: int, lanes: int) -> int:
        """Return how many rows, or vectors of rows, are processed side by side.

        Rows of more than `short` elements are processed one by one, and so are vectors of rows where there are few of them.
        """
        *outer, rows = [hint(axis.size) for axis in self.kept]
        if self.along:
            return UNROLLED if rows >= UNROLLED and hint(self.write[-1].size) <= short else 1
        return next((c for c in (UNROLLED, UNROLLED // 2) if math.prod(outer) * (rows // (c * lanes)) >= CHUNKS), 1)

    def pieces(self, unit: int) -> tuple[int, ...]:
        """Return how much of each loop over rows a chunk takes. unit: rows of a block where vectors run across rows."""
        sizes = [axis.size for axis in self.kept]
        wanted = hint(self.count) * math.prod(map(hint, sizes)) // CHUNKS
        elements = min(max(wanted, CHUNK_ELEMENTS[0]), CHUNK_ELEMENTS[1])
        return pieces_of(sizes, unit, elements / hint(self.count))


def _split(rows: Rows) -> tuple[list[Axis], list[Axis], Axis]:
    """Return the loops over rows, those within a row, and the one along which vectors run, which is the last of either."""
    y = len(rows.views) - 1
    what = f"rows: {rows.kind}"
    axes = axes_of(what, rows.views, rows.x.shape)
    wanted = tuple(1 if rows.reduces and n in rows.axes else size for n, size in enumerate(rows.x.shape))
    if rows.y.shape != wanted or 0 in wanted or not all(0 <= axis < len(axes) for axis in rows.axes):
        raise EmitError(f"{what}: x is {rows.x.shape}, y is {rows.y.shape}, axes are {rows.axes}, need y {wanted} and no 0")
    gone = [axis for n, axis in enumerate(axes) if n in rows.axes and axis.size > 1]
    kept = [axis for n, axis in enumerate(axes) if n not in rows.axes and axis.size > 1]
    gone.sort(key=lambda axis: -abs(axis.strides[0]))
    if not gone and not kept:
        gone = [Axis(1, (*[1] * y, int(not rows.reduces)))]

    def contiguous(axis: Axis) -> bool:
        writes = not rows.reduces or any(axis is other for other in kept)
        others = all(stride in (0, 1) for stride in axis.strides[1:y])
        return axis.strides[0] == 1 and (axis.strides[y] == 1 or not writes) and others

    vector = next((axis for axis in (*gone, *kept) if contiguous(axis)), None)
    if vector is None:
        given = [(view.shape, view.strides) for view in rows.views]
        raise EmitError(f"{what}: views are {given}, need one dimension along which all are contiguous")
    for group in (gone, kept):
        if any(axis is vector for axis in group):
            group[:] = [*(axis for axis in group if axis is not vector), vector]
    return kept, gone, vector
