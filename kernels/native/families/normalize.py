"""Softmax, normalizations and reductions: each row of a tensor is read a few times while it is in the nearest cache.

    for each chunk = a few rows:        a row is all elements that differ in the dimensions `axes` alone
        for each row:
            one or two sweeps over x that reduce the row: maximum, sum, mean, variance
            one sweep that writes y

Vectors run along the dimension without gaps. Where that is one of `axes`, a row is summed up across lanes at the end of a sweep.
Where it is not (Softmax of the channels of NCHW), a few vectors of neighbouring rows are processed at once, each lane a row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial, reduce
from typing import Literal

from kernels.expression import FLOAT
from kernels.native.emit import math as functions
from kernels.native.emit.builder import Function, Value
from kernels.native.emit.epilogue import PLAIN, Epilogue
from kernels.native.emit.geometry import Block, channel_blocks, maybe
from kernels.native.emit.kernel import NativeKernel, emitted, kernel_name
from kernels.native.emit.names import name_axes, name_epilogue
from kernels.native.emit.types import I64
from kernels.native.emit.walk import Addresses, Axis, axes_of, joined
from kernels.native.errors import EmitError
from kernels.native.memory.view import View
from kernels.native.target.isa import Isa
from kernels.spec import DType

CHUNKS = 32  # wanted at least: the last one to finish then costs a few percent on a few cores
CHUNK_ELEMENTS = (4 << 10, 32 << 10)  # least and most of one chunk: 0.5 to 5 µs
UNROLLED = 4  # vectors of one turn of a sweep, each with a sum of its own
INFINITY = float("inf")

Norm = Literal["softmax", "log_softmax", "layer_norm", "rms_norm"]
Reduce = Literal["sum", "mean", "max", "min", "prod", "l1", "l2", "sum_square", "log_sum", "log_sum_exp"]


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True, slots=True)
class _Gather:
    """A reduction: `take` maps each element, `combine` reduces two, `end` makes the result of the total of `count` elements."""

    identity: float
    take: Callable[[Function, Value], Value]
    combine: Callable[[Function, Value, Value], Value]
    end: Callable[[Function, Value, int], Value] = lambda _, total, __: total


def _itself(_: Function, x: Value) -> Value:
    return x


def _add(_: Function, a: Value, b: Value) -> Value:
    return a + b


def _greater(k: Function, a: Value, b: Value) -> Value:
    """Return the greater value in one instruction, which may drop a NaN; the sum of exponentials after it is NaN all the same."""
    return k.select(a > b, a, b)


_MAXIMUM = _Gather(-INFINITY, _itself, _greater)
_SUM = _Gather(0.0, _itself, _add)
_GATHERS: Mapping[str, _Gather] = {
    "sum": _SUM,
    "mean": _Gather(0.0, _itself, _add, lambda _, total, count: total / float(count)),
    "max": _Gather(-INFINITY, _itself, lambda k, a, b: k.maximum(a, b)),
    "min": _Gather(INFINITY, _itself, lambda k, a, b: k.minimum(a, b)),
    "prod": _Gather(1.0, _itself, lambda _, a, b: a * b),
    "l1": _Gather(0.0, lambda k, x: k.abs(x), _add),
    "l2": _Gather(0.0, lambda _, x: x * x, _add, lambda k, total, _: k.sqrt(total)),
    "sum_square": _Gather(0.0, lambda _, x: x * x, _add),
    "log_sum": _Gather(0.0, _itself, _add, lambda k, total, _: functions.log(k, total)),
}


def emit_rows(rows: Rows, isa: Isa) -> NativeKernel:
    """Emit the kernel. Raises EmitError for views that do not fit together, or without a dimension that vectors can run along."""
    if rows.epilogue.bias:
        raise EmitError(f"rows: {rows.kind}: the epilogue has a bias, rows take none")
    words = (name_axes(rows.axes, len(rows.x.shape)), *name_epilogue(rows.epilogue))
    name = kernel_name(f"f32_{rows.kind}_{UNROLLED}x{isa.lanes}", rows, isa, words)
    emitter = _RowsEmitter(rows, isa.lanes)

    def body(k: Function, values: list[Value]) -> None:
        *pointers, begin, end = values
        emitter.emit(k, Addresses.of(k, pointers, rows.views, rows.dtypes), begin, end)

    return emitted(isa, name, rows.arguments, emitter.chunks, body)


@dataclass(frozen=True, slots=True)
class _Spot:
    """One vector: where it lies in each tensor, how many of its lanes count, and which of the block's columns it is in."""

    at: Addresses
    lanes: int
    column: int


_Visit = Callable[[list[Value], int, _Spot], None]


class _RowsEmitter:
    """Emits one family of rows. A column is what has statistics of its own: the row, or each vector of a block of rows."""

    def __init__(self, rows: Rows, lanes: int) -> None:
        self.rows, self.lanes, self.names = rows, lanes, rows.arguments
        kept, gone = self._split()
        self.count = math.prod(axis.size for axis in gone)
        self.along = next((axis for axis in gone if axis is self.vector), None) is not None
        width = 1 if self.along else -(-self.vector.size // lanes)
        outer = math.prod(axis.size for axis in kept)
        columns = next(c for c in (4, 2, 1) if c == 1 or outer * (width // c) >= CHUNKS)
        self.blocks = [Block(0, 1, 1, lanes)] if self.along else channel_blocks(self.vector.size, min(columns, width), lanes)
        self.columns = self.blocks[0].vectors
        self.kept, self.gone = joined(kept), gone
        units = outer * sum(block.count for block in self.blocks)
        unit_elements = self.count * (1 if self.along else self.columns * lanes)
        wanted = min(max(units * unit_elements // CHUNKS, CHUNK_ELEMENTS[0]), CHUNK_ELEMENTS[1])
        self.units, self.chunk_units = units, max(1, wanted // unit_elements)
        self.chunks = -(-units // self.chunk_units)

    def _split(self) -> tuple[list[Axis], list[Axis]]:
        """Return the loops over rows and those within a row, the one along vectors last; that is also `self.vector`."""
        rows, y = self.rows, len(self.names) - 1
        what = f"rows: {rows.kind}"
        axes = axes_of(what, rows.views, rows.x.shape)
        wanted = tuple(1 if rows.reduces and n in rows.axes else size for n, size in enumerate(rows.x.shape))
        if rows.y.shape != wanted or 0 in wanted or not all(0 <= axis < len(axes) for axis in rows.axes):
            raise EmitError(f"{what}: x is {rows.x.shape}, y is {rows.y.shape}, axes are {rows.axes}, need y {wanted} and no 0")
        gone = [axis for n, axis in enumerate(axes) if n in rows.axes and axis.size > 1]
        kept = [axis for n, axis in enumerate(axes) if n not in rows.axes and axis.size > 1]
        gone.sort(key=lambda axis: -abs(axis.strides[0]))
        if not gone and not kept:
            gone = [Axis(1, (1,) * len(self.names))]

        def contiguous(axis: Axis) -> bool:
            writes = not rows.reduces or any(axis is other for other in kept)
            others = all(stride in (0, 1) for stride in axis.strides[1:y])
            return axis.strides[0] == 1 and (axis.strides[y] == 1 or not writes) and others

        fitting = [axis for axis in (*gone, *kept) if contiguous(axis)]
        if not fitting:
            given = [(view.shape, view.strides) for view in rows.views]
            raise EmitError(f"{what}: views are {given}, need one dimension along which all are contiguous")
        self.vector = fitting[0]
        for group in (gone, kept):
            if any(axis is self.vector for axis in group):
                group[:] = [axis for axis in group if axis is not self.vector] + ([self.vector] if group is gone else [])
        return kept, gone

    def emit(self, k: Function, at: Addresses, begin: Value, end: Value) -> None:
        """Emit the loop over the chunks of a call."""
        first, stop = begin * self.chunk_units, end * self.chunk_units
        if self.units % self.chunk_units:
            stop = k.select(stop < self.units, stop, k.const(I64, self.units))
        count = sum(block.count for block in self.blocks)
        with k.loop("unit", first, stop) as unit:
            row, number = unit // count, unit % count
            start = at.unravel(k, self.kept, row)
            if not self.along:
                start = start.move(k, self.vector, number * (self.columns * self.lanes))
            for block in self.blocks:
                with maybe(k, block.chosen_by(number, self.blocks)):
                    self._unit(k, block, start)

    def _unit(self, k: Function, block: Block, at: Addresses) -> None:
        """One row, or one block of rows side by side."""
        if self.rows.kind in ("softmax", "log_softmax"):
            self._softmax(k, block, at)
        elif self.rows.reduces:
            self._reduction(k, block, at)
        else:
            self._normalization(k, block, at)

    def _softmax(self, k: Function, block: Block, at: Addresses) -> None:
        """Subtract the maximum, so that nothing overflows; y holds the exponentials until their sum is known."""
        y, logarithm = len(self.names) - 1, self.rows.kind == "log_softmax"
        top = self._gather(k, block, at, _MAXIMUM, self._x)

        def exponential(k: Function, spot: _Spot) -> Value:
            value = functions.exp_or_zero(k, self._x(k, spot) - top[spot.column])
            if not logarithm:
                k.store_part(value, spot.at.values[y], spot.lanes)
            return value

        total = self._gather(k, block, at, _SUM, exponential, (0,) if logarithm else (0, y))
        if logarithm:
            shift = [functions.log(k, value) for value in total]
            self._write(k, block, at, lambda k, spot: self._x(k, spot) - top[spot.column] - shift[spot.column])
        else:
            factor = [1.0 / value for value in total]
            self._write(k, block, at, lambda k, spot: self._part(k, spot, y) * factor[spot.column])

    def _normalization(self, k: Function, block: Block, at: Addresses) -> None:
        """Subtract the mean before squaring: E[x²] - E[x]² would lose digits by cancellation."""
        rows, mean = self.rows, None
        if rows.kind == "layer_norm":
            mean = [total / float(self.count) for total in self._gather(k, block, at, _SUM, self._x)]

        def centred(k: Function, spot: _Spot) -> Value:
            return self._x(k, spot) - mean[spot.column] if mean else self._x(k, spot)

        square = self._gather(k, block, at, _GATHERS["sum_square"], centred)
        inverse = [1.0 / k.sqrt(total / float(self.count) + rows.epsilon) for total in square]

        def result(k: Function, spot: _Spot) -> Value:
            value = centred(k, spot) * inverse[spot.column]
            if rows.scale and rows.bias:
                return k.fma(value, self._load(k, spot, "w"), self._load(k, spot, "b"))
            value = value * self._load(k, spot, "w") if rows.scale else value
            return value + self._load(k, spot, "b") if rows.bias else value

        self._write(k, block, at, result)

    def _reduction(self, k: Function, block: Block, at: Addresses) -> None:
        """One element for each row."""
        if self.rows.kind == "log_sum_exp":
            top = self._gather(k, block, at, _MAXIMUM, self._x)
            top = [k.select(k.abs(value) < INFINITY, value, 0.0) for value in top]  # an infinite maximum is its own answer
            total = self._gather(k, block, at, _SUM, lambda k, spot: functions.exp(k, self._x(k, spot) - top[spot.column]))
            results = [functions.log(k, value) + shift for value, shift in zip(total, top, strict=True)]
        else:
            gather = _GATHERS[self.rows.kind]
            results = [gather.end(k, total, self.count) for total in self._gather(k, block, at, gather, self._x)]
        for column, value in enumerate(results):
            lanes = 1 if self.along else block.tail if column == block.vectors - 1 else self.lanes
            to = at if self.along else at.move(k, self.vector, column * self.lanes)
            self._store(k, _Spot(to, lanes, column), value)

    def _x(self, k: Function, spot: _Spot) -> Value:
        return self._part(k, spot, 0)

    def _part(self, k: Function, spot: _Spot, tensor: int) -> Value:
        return k.load_part(k.f32, spot.at.values[tensor], spot.lanes)

    def _load(self, k: Function, spot: _Spot, name: str) -> Value:
        return spot.at.load(k, self.names.index(name), self.vector, spot.lanes)

    def _store(self, k: Function, spot: _Spot, value: Value) -> None:
        """Apply the epilogue and store."""
        loads = [partial(self._load, k, spot, name) for name in self.rows.epilogue.arguments]
        value = self.rows.epilogue.finish(k, value, loads)
        if self.along and self.rows.reduces:
            k.store(k.extract(value, 0), spot.at.values[-1])
        else:
            k.store_part(value, spot.at.values[-1], spot.lanes)

    def _write(self, k: Function, block: Block, at: Addresses, result: Callable[[Function, _Spot], Value]) -> None:
        """Sweep over the row and store what `result` returns for each vector."""
        everything = tuple(range(len(self.names)))
        self._sweep(k, block, at, everything, [], lambda _, __, spot: self._store(k, spot, result(k, spot)))

    def _gather(
        self,
        k: Function,
        block: Block,
        at: Addresses,
        gather: _Gather,
        value: Callable[[Function, _Spot], Value],
        used: tuple[int, ...] = (0,),
    ) -> list[Value]:
        """Sweep over the row and reduce what `value` returns, for each column; for a row along lanes it fills every lane."""
        identity, columns = k.const(k.f32, gather.identity), block.vectors

        def visit(totals: list[Value], slot: int, spot: _Spot) -> None:
            taken = gather.take(k, value(k, spot))
            if self.along and spot.lanes < self.lanes:
                taken = k.select(k.first(k.f32, spot.lanes), taken, identity)
            totals[slot] = gather.combine(k, totals[slot], taken)

        def combine(a: Value, b: Value) -> Value:
            return gather.combine(k, a, b)

        totals = self._sweep(k, block, at, used, [identity] * (columns * self._unroll(block)), visit)
        results = [reduce(combine, totals[column::columns]) for column in range(columns)]
        return [k.splat(k.reduce(value, combine), k.f32) for value in results] if self.along else results

    def _unroll(self, block: Block) -> int:
        """Vectors of a column in one turn of a sweep."""
        return max(1, UNROLLED // block.vectors)

    def _sweep(
        self, k: Function, block: Block, at: Addresses, used: tuple[int, ...], values: list[Value], visit: _Visit
    ) -> list[Value]:
        """Visit every vector of the columns; each visit of an unrolled turn has a slot of `values`. used: the tensors touched."""
        axes = joined([axis.of(used) for axis in self.gone])
        if not axes:
            axes = [Axis(1, self.vector.of(used).strides)]

        def nest(outer: list[Axis], at: Addresses, values: list[Value]) -> list[Value]:
            if not outer:
                return self._innermost(k, block, axes[-1], at, values, visit)
            with k.fold("i", 0, outer[0].size, 1, values) as fold:
                fold.values = nest(outer[1:], at.move(k, outer[0], fold.index), fold.values)
            return fold.values

        return nest(axes[:-1], at, values)

    def _innermost(self, k: Function, block: Block, axis: Axis, at: Addresses, values: list[Value], visit: _Visit) -> list[Value]:
        """The innermost loop: a vector at a time where vectors run along it, else an element of every column at a time."""
        step, unroll = self.lanes if self.along else 1, self._unroll(block)
        places, tail = divmod(axis.size, step)
        turns, rest = divmod(places, unroll)

        def place(values: list[Value], at: Addresses, number: int, lanes: int) -> None:
            at = at.move(k, axis, number * step)
            if self.along:
                visit(values, number, _Spot(at, lanes, 0))
                return
            for column in range(block.vectors):
                lanes = block.tail if column == block.vectors - 1 else self.lanes
                spot = _Spot(at.move(k, self.vector, column * self.lanes), lanes, column)
                visit(values, number * block.vectors + column, spot)

        if turns:
            with k.fold("turn", 0, turns, 1, values) as fold:
                here, carried = at.move(k, axis, fold.index * (unroll * step)), list(fold.values)
                for number in range(unroll):
                    place(carried, here, number, self.lanes)
                fold.values = carried
            values = fold.values
        values, at = list(values), at.move(k, axis, turns * unroll * step)
        for number in range(rest):
            place(values, at, number, self.lanes)
        if tail:
            place(values, at, rest, tail)
        return values
