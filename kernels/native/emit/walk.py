"""Loops over several tensors at once: dimensions joined where all of them allow it, and addresses that move together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kernels.native.emit.builder import Function, Operand, Value
from kernels.native.emit.functions import Activation
from kernels.native.emit.math import BINARY
from kernels.native.emit.types import I64
from kernels.native.errors import EmitError
from kernels.native.memory.view import View


@dataclass(frozen=True, slots=True)
class Join:
    """One step of an epilogue over views: value = op(value, operand), or op(operand, value) where swapped. op: of math.BINARY.

    operand: has the output's rank, and in each dimension its size or 1.
    """

    op: str
    operand: View
    swapped: bool = False


Steps = tuple[Activation | Join, ...]


def operands_of(steps: Steps) -> tuple[View, ...]:
    """What the steps read, in order."""
    return tuple(step.operand for step in steps if isinstance(step, Join))


def operand_names(steps: Steps) -> tuple[str, ...]:
    """The pointer arguments of a kernel with these steps, between its own and "y": one for each operand."""
    return tuple(f"r{n}" for n in range(len(operands_of(steps))))


def finish(k: Function, steps: Steps, value: Value, operands: Sequence[Callable[[], Value]]) -> Value:
    """The steps on one vector of results. operands: what loads the vector that it meets, of each in order."""
    waiting = list(operands)
    for step in steps:
        if isinstance(step, Activation):
            value = step(k, value)
        else:
            other = waiting.pop(0)()
            value = BINARY[step.op](k, other, value) if step.swapped else BINARY[step.op](k, value, other)
    return value


@dataclass(frozen=True, slots=True)
class Axis:
    """One loop: how often it runs, and how many elements each tensor moves every time."""

    size: int
    strides: tuple[int, ...]

    def of(self, tensors: Sequence[int]) -> Axis:
        """The same loop for some of the tensors; the others stand still."""
        return Axis(self.size, tuple(stride if n in tensors else 0 for n, stride in enumerate(self.strides)))


def axes_of(what: str, views: Sequence[View], shape: Sequence[int]) -> list[Axis]:
    """A loop for each dimension of `shape`. A view of size 1 there repeats its element. Raises EmitError for other sizes."""
    for view in views:
        if len(view.shape) != len(shape) or any(a not in (1, b) for a, b in zip(view.shape, shape, strict=True)):
            raise EmitError(f"{what}: a view has shape {view.shape}, need {tuple(shape)}, or 1 in place of a size")
    strides = [[0 if view.shape[n] == 1 else view.strides[n] for view in views] for n in range(len(shape))]
    return [Axis(size, tuple(by)) for size, by in zip(shape, strides, strict=True)]


def joined(axes: Sequence[Axis]) -> list[Axis]:
    """The same loops in the same order, as few as possible: one that goes on where the next inner one ends is joined to it."""
    found: list[Axis] = []
    for axis in axes:
        if axis.size == 1:
            continue
        if found and found[-1].strides == tuple(axis.size * stride for stride in axis.strides):
            found[-1] = Axis(found[-1].size * axis.size, axis.strides)
        else:
            found.append(axis)
    return found


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where each of several tensors is read or written."""

    values: tuple[Value, ...]

    def move(self, k: Function, axis: Axis, steps: Operand) -> Addresses:
        """All of them that many steps along a loop."""
        count = k.coerce(steps, I64)
        return Addresses(tuple(k.offset(a, count * stride) for a, stride in zip(self.values, axis.strides, strict=True)))

    def unravel(self, k: Function, axes: Sequence[Axis], number: Value) -> Addresses:
        """All of them at turn `number` of nested loops, the last the fastest."""
        at = self
        for axis in reversed(axes[1:]):
            at = at.move(k, axis, number % axis.size)
            number = number // axis.size
        return at.move(k, axes[0], number) if axes else at

    def load(self, k: Function, tensor: int, axis: Axis, lanes: int) -> Value:
        """A vector of a tensor along a loop whose stride is 1, or 0 for one element in every lane."""
        if axis.strides[tensor] == 0:
            return k.broadcast(k.f32, self.values[tensor])
        return k.load_part(k.f32, self.values[tensor], lanes)
