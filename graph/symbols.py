"""Inputs whose sizes are symbols: which axes vary, and how a set of shapes gives the symbols values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from graph.ir import Port
from kernels.record import record
from kernels.size import LEAST, GuardError, Scope, is_symbolic
from kernels.spec import Spec

Shapes = Mapping[str, tuple[int, ...]]
Axes = frozenset[tuple[str, int]]  # input names and axes


@record
class SymbolicInputs:
    """The inputs of a graph with symbols for the sizes of some axes.

    specs: of every input. axes: where the value of each symbol is found, in order. fixed: sizes of all other axes. room: a last
    symbol, for the length that there is memory for of values that grow in place; 0 where none do.
    """

    scope: Scope
    specs: Mapping[str, Spec]
    axes: Sequence[tuple[str, int]]
    fixed: Mapping[tuple[str, int], int]
    room: int

    @staticmethod
    def of(ports: Sequence[Port], shapes: Shapes, varied: Axes, room: int = 0) -> SymbolicInputs:
        """Return symbols for the varied axes of inputs that have these shapes now, which are the hints.

        Axes of one name share a symbol. Sizes of 0 and 1 are no symbols. room: see `room`; 0 where nothing grows in place.
        """
        scope = Scope()
        named: dict[str, int] = {}
        axes: list[tuple[str, int]] = []
        fixed: dict[tuple[str, int], int] = {}
        specs = {}
        for port in ports:
            made = []
            for axis, size in enumerate(shapes[port.name]):
                dim = port.dims[axis] if port.dims is not None else None
                if (port.name, axis) not in varied or size < LEAST:
                    fixed[port.name, axis] = size
                    made.append(size)
                elif isinstance(dim, str) and dim in named:
                    made.append(named[dim])
                else:
                    made.append(scope.symbol(dim if isinstance(dim, str) else f"{port.name}.{axis}", size))
                    axes.append((port.name, axis))
                    if isinstance(dim, str):
                        named[dim] = made[-1]
            specs[port.name] = Spec(tuple(made), port.dtype)
        return SymbolicInputs(scope, specs, axes, fixed, scope.symbol("room", room))

    def values(self, shapes: Shapes, room: int = 0) -> list[int]:
        """Return the values of the symbols for these shapes. Raises GuardError where another size differs from what it was."""
        if is_symbolic(self.room) != (room >= LEAST):
            raise GuardError(f"sizes: values {'do not grow' if is_symbolic(self.room) else 'grow'} in place here")
        for (name, axis), size in self.fixed.items():
            if shapes[name][axis] != size:
                raise GuardError(f"sizes: axis {axis} of {name!r} was {size} and is no symbol")
        for name, axis in self.axes:
            if shapes[name][axis] < LEAST:
                raise GuardError(f"sizes: axis {axis} of {name!r} is a symbol, which is {LEAST} at least")
        return [*(shapes[name][axis] for name, axis in self.axes), *([room] if is_symbolic(self.room) else [])]


def differing(ports: Sequence[Port], some: Shapes, other: Shapes) -> Axes:
    """Return the axes in which two sets of shapes of one rank differ, and those of the same name."""
    axes = {
        (port.name, axis)
        for port in ports
        for axis, (a, b) in enumerate(zip(some[port.name], other[port.name], strict=True))
        if a != b
    }
    names = {
        dim for port in ports for axis, dim in enumerate(port.dims or ()) if isinstance(dim, str) and (port.name, axis) in axes
    }
    return frozenset(axes | {(port.name, axis) for port in ports for axis, dim in enumerate(port.dims or ()) if dim in names})
