"""A graph lowered once, for all values of the symbols in its sizes: binding them to values makes a graph that is ready to run."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace

from graph.budget import RunBudget
from graph.choice import Choice
from graph.ir import Graph, Specs
from graph.native.engine import Native
from graph.native.facts import HintedSpecs
from graph.native.place import PackedConstant
from graph.native.segment import LoweredSegment
from graph.order import without_unread
from graph.run.footprint import require_values
from graph.run.prepared import PreparedGraph
from kernels.errors import UnsupportedError, memory_errors_of
from kernels.native.target.isa import available_cores
from kernels.size import PLAIN, Evaluation, Scope, Size, Sizes, sizes_in
from kernels.spec import Spec, bound_array


class LoweredGraph:
    """A graph whose native segments are lowered, compiled and packed, for the sizes that its guards allow.

    Args:    specs: of every value; their sizes may depend on the symbols of `scope`. Others as of `graph.run.executor.Executor`.
    Raises:  as `Executor`.
    """

    def __init__(
        self,
        graph: Graph,
        specs: Specs,
        choices: Mapping[str, Choice],
        threads: int | None,
        native: Native | None,
        budget: RunBudget,
        scope: Scope | None = None,
    ) -> None:
        self.graph, self.specs, self.threads = graph, specs, threads
        self._native = native
        self._scope = scope
        self._algorithms = {name: choice.algorithm for name, choice in choices.items() if choice.backend == "numpy"}
        self._rest = without_unread(graph)
        self._segments: Mapping[str, LoweredSegment] = {}
        self._workers = 1
        self._evaluation: Evaluation | None = None
        self._evaluating = threading.Lock()
        require_values(self._rest, HintedSpecs(specs), budget)
        with memory_errors_of(f"{graph.name}: preparing it"):
            if native is not None:
                self._workers = available_cores() if threads is None else threads
                self._rest, self._segments = native.lowered(self._rest, specs, self._workers, choices, budget)
            elif wanted := next((name for name in choices if name not in self._algorithms), None):
                raise UnsupportedError(f"node {wanted!r}: {choices[wanted]} was chosen, this executor has numpy only")

    def sizes(self, values: Sequence[int] | None) -> Sizes:
        """Return the values of all sizes for values of the symbols; None: for their hints.

        Raises: GuardError where the lowering is not true for these values.
        """
        if self._scope is None:
            return PLAIN
        with self._evaluating:
            if self._evaluation is None:
                found: dict[Size, None] = {}
                sizes_in([spec.shape for spec in self.specs.values() if spec is not None], found)
                sizes_in([spec.value for spec in self.specs.values() if spec is not None], found)
                sizes_in(dict(self.graph.constants), found)
                for segment in self._segments.values():
                    segment.find_sizes(found)
                self._evaluation = Evaluation(self._scope, found)
        return self._evaluation.at(self._scope.hints if values is None else values)

    def prepare(self, sizes: Sizes, budget: RunBudget) -> tuple[PreparedGraph, frozenset[PackedConstant]]:
        """Return the graph ready to run for some values of its sizes, and its packed weights."""
        with memory_errors_of(f"{self.graph.name}: preparing it"):
            graph, specs = self._bound(sizes)
            segments, packed = {}, frozenset[PackedConstant]()
            if self._native is not None:
                packed = self._native.count_packed(self._segments.values(), budget, self.graph.name)
                segments = self._native.bind(self._segments, sizes, self._workers)
            return PreparedGraph(graph, specs, self._algorithms, segments, self._workers, budget), packed

    def _bound(self, sizes: Sizes) -> tuple[Graph, Specs]:
        """Return what is left of the graph beside its segments, and its specs, with values for all sizes."""
        if sizes.are_plain:
            return self._rest, self.specs
        constants = {name: bound_array(array, sizes) for name, array in self._rest.constants.items()}
        inner = [node for segment in self._segments.values() for node in segment.nodes]
        names = {port.name for port in (*self._rest.inputs, *self._rest.outputs)} | set(constants)
        names.update(name for node in (*self._rest.nodes, *inner) for name in (*node.reads(), *node.writes()))
        return replace(self._rest, constants=constants), {name: bound_spec(self.specs.get(name), sizes) for name in names}


def bound_spec(spec: Spec | None, sizes: Sizes) -> Spec | None:
    """Return a spec with values for all sizes."""
    if spec is None:
        return None
    return Spec(sizes.all(spec.shape), spec.dtype, None if spec.value is None else bound_array(spec.value, sizes))
