"""Steps whose shapes only a run knows: data-dependent nodes, and the bodies of If, Loop and Scan."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from graph.errors import LimitError
from graph.ir import Graph, Port, Specs
from graph.run.bounds import RunBounds
from graph.run.slots import aligned_empty
from graph.shapes import MAX_VALUE_BYTES, propagate
from kernels.expression import FLOAT
from kernels.registry import Op
from kernels.scratch import FIXED_BYTES
from kernels.spec import Array, Spec

_BODY_PROGRAMS = 4  # sets of input shapes that a body is prepared for; further ones share a graph prepared without shapes
_UNWANTED = Spec((0,), FLOAT)  # in place of an output that is not computed


class Runnable(Protocol):
    """A graph made ready (`graph.run.prepared.PreparedGraph`)."""

    def run(self, feeds: Sequence[Array], bounds: RunBounds) -> list[Array]:
        """Run once. feeds: of every graph input in order."""
        ...


class Body:
    """A subgraph of If, Loop or Scan, prepared for each set of input shapes that occurs, for a limited number of sets.

    Args: outer: specs of the values around it; known ones that it captures become constants. prepare: makes a graph ready.
    """

    def __init__(self, graph: Graph, outer: Specs, prepare: Callable[[Graph, Specs], Runnable]) -> None:
        self._prepare = prepare
        captured = sorted(graph.captures())
        known = {name: spec.value for name in captured if (spec := outer.get(name)) is not None and spec.value is not None}
        self._graph = replace(graph, constants={**graph.constants, **known})
        self.captures = tuple(name for name in captured if name not in known)
        self._programs: dict[tuple[Spec, ...], Runnable] = {}
        self._shapeless: Runnable | None = None

    def run(self, arrays: Sequence[Array], bounds: RunBounds) -> list[Array]:
        """Run once. arrays: the body's own inputs, then the captured values. Returns the outputs in new memory."""
        key = tuple(Spec(array.shape, array.dtype) for array in arrays)
        program = self._programs.get(key, self._shapeless)
        if program is None:
            program = self._prepared(key)
        return program.run(arrays, bounds)

    def _prepared(self, key: tuple[Spec, ...]) -> Runnable:
        names = (*(port.name for port in self._graph.inputs), *self.captures)
        ports = tuple(Port(name, spec.dtype, spec.shape) for name, spec in zip(names, key, strict=True))
        closed = replace(self._graph, inputs=ports)
        if len(self._programs) < _BODY_PROGRAMS:
            return self._programs.setdefault(key, self._prepare(closed, propagate(closed, dict(zip(names, key, strict=True)))))
        self._shapeless = self._prepare(closed, {name: Spec.of(array) for name, array in closed.constants.items()})
        return self._shapeless


def allocate(
    op: Op, inputs: Sequence[Array | None], attrs: Mapping[str, Any], wanted: Sequence[bool], bounds: RunBounds
) -> list[Array | None]:
    """Allocate the wanted outputs of an op for these inputs, None for the others.

    Raises: LimitError for an output past MAX_VALUE_BYTES, and where the bounds of the run do not allow it.
    """
    specs = op.infer_specs([None if array is None else Spec.of(array) for array in inputs], attrs)
    for spec in specs:
        if spec.nbytes > MAX_VALUE_BYTES:
            raise LimitError(f"{op.name}: an output is {spec}, the limit is {MAX_VALUE_BYTES} bytes")
    return [bounds.empty(spec, op.name) if want else None for spec, want in zip(specs, wanted, strict=False)]


def compute(
    op: Op,
    out: Sequence[Array | None],
    inputs: Sequence[Array | None],
    attrs: Mapping[str, Any],
    bounds: RunBounds,
    algorithm: str | None = None,
) -> None:
    """Choose a kernel for these arrays and run it. Raises LimitError where the bounds do not allow its scratch memory."""
    specs = [None if array is None else Spec.of(array) for array in inputs]
    kernel = op.choose(specs, attrs, algorithm)
    made = tuple(_UNWANTED if array is None else Spec(array.shape, array.dtype) for array in out)
    grows_bytes = max(0, kernel.temporary_bytes(made, specs, attrs) - FIXED_BYTES)  # the rest is small, and no array
    with bounds.scratch(grows_bytes, f"{op.name}: scratch memory"):
        extra = {} if kernel.workspace_bytes is None else {"workspace": aligned_empty(kernel.workspace_bytes(*specs, **attrs))}
        kernel.run(tuple(out), *inputs, **attrs, **extra)
