"""Loops over several tensors at once: dimensions are joined where all of them allow it."""

from __future__ import annotations

from collections.abc import Sequence

from kernels.native.emit.builder import Function, Value
from kernels.native.emit.types import I64
from kernels.native.errors import EmitError
from kernels.native.memory.view import View
from kernels.record import record


@record
class Axis:
    """One loop: how often it runs, and how many elements each tensor moves every time."""

    size: int
    strides: tuple[int, ...]

    def of(self, tensors: Sequence[int]) -> Axis:
        """Return this loop for some of the tensors; the addresses of the others do not move."""
        return Axis(self.size, tuple(stride if n in tensors else 0 for n, stride in enumerate(self.strides)))


def axes_of(what: str, views: Sequence[View], shape: Sequence[int]) -> list[Axis]:
    """Return a loop for each dimension of `shape`. A view of size 1 there is broadcast. Raises EmitError for other sizes."""
    for view in views:
        if len(view.shape) != len(shape) or any(a not in (1, b) for a, b in zip(view.shape, shape, strict=True)):
            raise EmitError(f"{what}: a view has shape {view.shape}, need {tuple(shape)}, or 1 in place of a size")
    strides = [[0 if view.shape[n] == 1 else view.strides[n] for view in views] for n in range(len(shape))]
    return [Axis(size, tuple(by)) for size, by in zip(shape, strides, strict=True)]


def joined(axes: Sequence[Axis]) -> list[Axis]:
    """Join a loop to the next inner one where it continues at the address at which that ends, for every tensor."""
    found: list[Axis] = []
    for axis in axes:
        if axis.size == 1:
            continue
        if found and found[-1].strides == tuple(axis.size * stride for stride in axis.strides):
            found[-1] = Axis(found[-1].size * axis.size, axis.strides)
        else:
            found.append(axis)
    return found


def next_turn(k: Function, turns: Sequence[Value], sizes: Sequence[Value]) -> list[Value]:
    """Return the next turn of nested loops without dividing. turns: of each loop, the fastest first, the last without an end.

    sizes: how often each of the others runs.
    """
    *others, last = turns
    found, carry = [], k.const(I64, 1)
    for turn, size in zip(others, sizes, strict=True):
        following = turn + carry
        ends = k.compare("eq", following, size)
        found.append(k.select(ends, k.const(I64, 0), following))
        carry = k.convert("zext", ends, I64)
    return [*found, last + carry]
