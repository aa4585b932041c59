"""The loop nest over several strided views of one shape: which axes there are, in which order, and how chunks are cut."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from kernels.native.emit.builder import Function, Value
from kernels.native.errors import EmitError
from kernels.native.memory.view import View
from kernels.record import record
from kernels.size import hint


@record
class Axis:
    """One loop. strides: of every view, in elements."""

    size: int
    strides: tuple[int, ...]


@record
class Nest:
    """axes: outermost first, at least two; the last are the rows and the columns of tiles.

    offsets: of every view. turned: numbers of the views that lie contiguous along the rows instead of the columns.
    """

    axes: tuple[Axis, ...]
    offsets: tuple[int, ...]
    turned: frozenset[int]

    @property
    def sizes(self) -> tuple[int, ...]:
        """The size of each axis."""
        return tuple(axis.size for axis in self.axes)

    @property
    def rows(self) -> Axis:
        """The second last axis."""
        return self.axes[-2]

    @property
    def columns(self) -> Axis:
        """The last axis: that along which the first view has its smallest stride."""
        return self.axes[-1]


def make_nest(views: Sequence[View]) -> Nest:
    """Return the fewest axes that reach every element of all views. The first view is written, so its strides order the axes.

    Raises EmitError where shapes differ or elements of the first view overlap: threads would race for them.
    """
    shape = views[0].shape
    for n, view in enumerate(views):
        if view.shape != shape:
            raise EmitError(f"nest: view {n} has shape {view.shape}, need {shape}")
    offsets = [view.offset for view in views]
    axes = []
    for number, size in enumerate(shape):
        strides = [view.strides[number] for view in views]
        if size == 1:
            continue
        if strides[0] < 0:  # walked from the other end
            offsets = [offset + (size - 1) * stride for offset, stride in zip(offsets, strides, strict=True)]
            strides = [-stride for stride in strides]
        axes.append(Axis(size, tuple(strides)))
    axes.sort(key=lambda axis: -axis.strides[0])
    reach = 1
    for axis in reversed(axes):
        if axis.strides[0] < reach:
            raise EmitError(
                f"nest: elements overlap, {axis.size} are {axis.strides[0]} apart and reach {reach} (view {views[0]})"
            )
        reach += (axis.size - 1) * axis.strides[0]
    merged = _merge(axes)
    merged = [Axis(1, (0,) * len(views))] * (2 - len(merged)) + merged
    return _turn(merged, tuple(offsets))


def _merge(axes: Sequence[Axis]) -> list[Axis]:
    """Merge neighbouring axes that are contiguous with each other in every view."""
    merged: list[Axis] = []
    for axis in axes:
        if merged and all(a == b * axis.size for a, b in zip(merged[-1].strides, axis.strides, strict=True)):
            merged[-1] = Axis(merged[-1].size * axis.size, axis.strides)
        else:
            merged.append(axis)
    return merged


def _turn(axes: list[Axis], offsets: tuple[int, ...]) -> Nest:
    """Choose as rows the axis along which most of the views are contiguous that are not contiguous along the columns."""
    stray = [n for n, stride in enumerate(axes[-1].strides) if n and abs(stride) > 1]
    gains = [sum(axis.strides[n] == 1 for n in stray) for axis in axes[:-1]]
    rows = max(range(len(gains)), key=lambda i: (gains[i], i))
    axes = [*axes[:rows], *axes[rows + 1 : -1], axes[rows], axes[-1]]
    return Nest(tuple(axes), offsets, frozenset(n for n in stray if axes[-2].strides[n] == 1))


def cut(nest: Nest, units: tuple[int, int], budget: float) -> tuple[int, ...]:
    """Return how many elements of each axis a chunk takes, about `budget` in all: whole inner axes and a piece of the next.

    units: rows and columns of a tile; pieces are made of whole ones. Where a view is turned, a chunk is about as high as wide:
    narrow ones read one cache line of every page.
    """
    unit = [1] * (len(nest.axes) - 2) + list(units)
    pieces = list(unit)
    rows = min(hint(nest.rows.size), max(units[0], math.isqrt(int(budget))) if nest.turned else units[0])
    pieces[-1] = _piece(nest.columns.size, units[1], budget / rows)
    inner = hint(pieces[-1])
    for depth in reversed(range(len(nest.axes) - 1)):
        size = nest.axes[depth].size
        pieces[depth] = _piece(size, unit[depth], budget / inner)
        inner *= hint(pieces[depth])
        if hint(pieces[depth]) < hint(size):
            break
    return tuple(pieces)


def pieces_of(sizes: Sequence[int], unit: int, budget: float) -> tuple[int, ...]:
    """Return how many turns of each loop a chunk takes, about `budget` in all: whole inner loops and a piece of the next.

    unit: turns of the innermost loop that belong together.
    """
    pieces = [1] * (len(sizes) - 1) + [unit]
    for depth in reversed(range(len(sizes))):
        pieces[depth] = _piece(sizes[depth], pieces[depth], budget)
        if hint(pieces[depth]) < hint(sizes[depth]):
            break
        budget /= hint(pieces[depth])
    return tuple(pieces)


def _piece(size: int, unit: int, most: float) -> int:
    """Return an axis' whole size if that is at most `most`, else an even share of it in whole units."""
    wanted = hint(size)
    if wanted <= most:
        return size
    fits = max(1, int(most / unit)) * unit
    even = -(-wanted // -(-wanted // fits))
    return -(-even // unit) * unit


def chunk_count(sizes: Sequence[int], pieces: Sequence[int]) -> int:
    """Return the number of chunks. sizes: of the axes."""
    return math.prod(-(-size // piece) for size, piece in zip(sizes, pieces, strict=True))


def piece_numbers(sizes: Sequence[int], pieces: Sequence[int]) -> dict[str, int]:
    """Return the numbers that `piece_ranges` reads, by name.

    size0, size1…: of each axis, outermost first; piece0…: how much of it a chunk takes; count0…: how many pieces it has.
    """
    numbers: dict[str, int] = {}
    for n, (size, piece) in enumerate(zip(sizes, pieces, strict=True)):
        numbers |= {f"size{n}": size, f"piece{n}": piece, f"count{n}": -(-size // piece)}
    return numbers


def piece_ranges(k: Function, n: Mapping[str, Value], axes: int, chunk: Value) -> list[tuple[Value, Value]]:
    """Emit the range of every axis that a chunk covers, outermost first. n: the numbers of `piece_numbers`."""
    ranges, left = [], chunk
    for axis in reversed(range(axes)):
        count, piece = n[f"count{axis}"], n[f"piece{axis}"]
        number, left = (left % count, left // count) if axis else (left, left)
        start = number * piece
        ranges.append((start, k.least(start + piece, n[f"size{axis}"])))
    return ranges[::-1]
