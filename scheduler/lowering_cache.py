"""The lowerings of a model that a session keeps: each serves all shapes for which what it assumed of them holds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np

from graph.budget import RunBudget
from graph.ir import Graph, Port
from graph.run.lowered import LoweredGraph
from graph.symbols import SymbolicInputs, differing
from graph.wide import half_of, standing_for
from kernels.log import PLAN, debug, debug_level
from kernels.record import record
from kernels.size import LEAST, GuardError, Sizes
from kernels.spec import Array

if TYPE_CHECKING:
    from scheduler.plan import Plan

SHARED_BYTES: Final = 4096  # smaller constants are not worth comparing
MOST: Final = 16  # lowerings of one session
REACH: Final = 4  # a lowering serves sizes up to so many times those that it was made for, and down to as small a part

ShapesByName = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True, eq=False)
class Lowering:
    """One lowering. plan: that it follows; None = the first candidate of every op. budget: of constants that it made."""

    inputs: SymbolicInputs
    graph: LoweredGraph
    plan: Plan | None
    budget: RunBudget


@record
class Found:
    """A lowering, and the values of its sizes for some shapes."""

    lowering: Lowering
    sizes: Sizes


class LoweringCache:
    """Lowerings of one model, the one unused for longest dropped first. The caller lets one thread at a time use it."""

    def __init__(self) -> None:
        self._kept: list[Lowering] = []  # the last used one at the end
        self._varied: dict[tuple[int, ...], frozenset[tuple[str, int]]] = {}  # by the ranks of all inputs
        self._met: dict[tuple[int, ...], ShapesByName] = {}  # the last shapes, by ranks

    def find(self, shapes: ShapesByName, plan: Plan | None, room: int = 0) -> Found | None:
        """Return a lowering that serves these shapes and follows this plan; None where there is none.

        room: length that there is memory for of values that grow in place; 0 where none do.
        """
        refused = []
        for lowering in reversed(self._kept):
            if lowering.plan is not plan:
                continue
            try:
                sizes = _sizes(lowering, shapes, room)
            except GuardError as error:  # what was assumed does not hold for these shapes
                refused.append(str(error))
                continue
            self._use(lowering)
            return Found(lowering, sizes)
        if refused and debug_level() >= PLAN:
            debug("lowered again", shapes=shapes, because=refused)
        return None

    def varied(self, ports: Sequence[Port], shapes: ShapesByName) -> frozenset[tuple[str, int]]:
        """Return the axes whose sizes have differed between the shapes that lowerings were asked for, these included."""
        ranks = tuple(len(shapes[port.name]) for port in ports)
        known = self._varied.get(ranks, frozenset())
        if (before := self._met.get(ranks)) is not None:
            known |= differing(ports, before, shapes)
        self._varied[ranks], self._met[ranks] = known, shapes
        return known

    def keep(self, lowering: Lowering) -> Found:
        """Keep a lowering, as used now. Returns it with the sizes that it was made for."""
        self._kept.append(lowering)
        del self._kept[:-MOST]
        return Found(lowering, lowering.graph.sizes(None))

    def _use(self, lowering: Lowering) -> None:
        self._kept.remove(lowering)
        self._kept.append(lowering)

    def share_constants(self, graph: Graph, own: Mapping[str, Array]) -> Graph:
        """Return a graph whose constants are those of lowerings kept here, where they are equal bit by bit.

        Passes make constants anew for every set of shapes (a batch norm folded into weights); large ones are held once.

        Args: own: constants of the model itself, which all its graphs share already.
        """
        others = [lowering.graph.graph.constants for lowering in self._kept]
        constants = dict(graph.constants)
        for name, array in graph.constants.items():
            if array.nbytes >= SHARED_BYTES and array is not own.get(name):
                constants[name] = _shared(array, [other[name] for other in others if name in other])
        return replace(graph, constants=constants)


def _sizes(lowering: Lowering, shapes: ShapesByName, room: int) -> Sizes:
    """Return the values of a lowering's sizes for these shapes. Raises GuardError where it does not serve them."""
    values, scope = lowering.inputs.values(shapes, room), lowering.inputs.scope
    for value, name, hint in zip(values, scope.names, scope.hints, strict=True):
        if hint > REACH * value or value > REACH * hint:
            raise GuardError(f"sizes: {name} was {hint}, a lowering serves up to {REACH} times that and down to as small a part")
    return lowering.graph.sizes(values)


def distance(some: Sequence[tuple[int, ...]], other: Sequence[tuple[int, ...]]) -> float | None:
    """Return how far two sets of shapes are apart, as the sum of logarithms of ratios of sizes. None where they are not near.

    Shapes are near where no size differs by more than the factor that a lowering serves.
    """
    if [len(shape) for shape in some] != [len(shape) for shape in other]:
        return None
    apart = 0.0
    for a, b in ((a, b) for one, two in zip(some, other, strict=True) for a, b in zip(one, two, strict=True) if a != b):
        if min(a, b) < LEAST or max(a, b) > REACH * min(a, b):
            return None
        apart += math.log(max(a, b) / min(a, b))
    return apart


def _shared(array: Array, others: Sequence[Array]) -> Array:
    """Return the one of other arrays that has the same bits, or the array itself where none has.

    A float32 copy of a half is returned as the copy of another half, where only that is left of another lowering's copy.
    """
    if (half := half_of(array)) is None:
        return next((other for other in others if _same_bits(other, array)), array)
    for other in others:
        source = half_of(other)
        if _same_bits(other if source is None else source, half):
            return standing_for(array, other) if source is None else other
    return array


def _same_bits(a: Array, b: Array) -> bool:
    if a is b:
        return True
    if a.shape != b.shape or a.dtype != b.dtype or a.dtype.hasobject or not a.flags.c_contiguous or not b.flags.c_contiguous:
        return False
    return np.array_equal(a.reshape(-1).view(np.uint8), b.reshape(-1).view(np.uint8))
