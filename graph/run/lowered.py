"""A graph lowered once, for all values of the symbols in its sizes: binding them to values makes a graph that is ready to run."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from graph.backend import Backend, LoweredSegment
from graph.budget import RunBudget
from graph.choice import Choice
from graph.errors import LimitError
from graph.ir import CONTROL_FLOW, Graph, Specs
from graph.mapped import LEAST_BYTES
from graph.native.facts import HintedSpecs, Kept
from graph.native.place import PackedConstant
from graph.order import without_unread
from graph.run.footprint import require_values
from graph.run.prepared import PreparedGraph
from graph.wide import half_of
from kernels.confinement import usable_cpus
from kernels.errors import UnsupportedError, memory_errors_of
from kernels.size import PLAIN, Evaluation, Scope, Size, Sizes, sizes_in
from kernels.spec import SizeArray, Spec, bound_array


class LoweredGraph:
    """A graph whose native segments are lowered, compiled and packed, for the sizes that its guards allow.

    graph: as it was given, but for float32 copies of halves (`graph.wide`) that are packed: there, the halves are the constants.

    Args:    specs: of every value; their sizes may depend on the symbols of `scope`. Others as of `graph.run.executor.Executor`.
    Raises:  as `Executor`.
    """

    def __init__(
        self,
        graph: Graph,
        specs: Specs,
        choices: Mapping[str, Choice],
        threads: int | None,
        backend: Backend | None,
        budget: RunBudget,
        scope: Scope | None = None,
        kept: Mapping[str, Kept] = MappingProxyType({}),
    ) -> None:
        self.graph, self.specs, self.threads = graph, specs, threads
        self.kept: Mapping[str, Kept] = {}
        self._backend = backend
        self._scope = scope
        self._algorithms = {name: choice.algorithm for name, choice in choices.items() if choice.backend == "numpy"}
        self._rest = without_unread(graph)
        self._segments: Mapping[str, LoweredSegment] = {}
        self._packed = frozenset[PackedConstant]()
        self._workers = 1
        self._evaluation: Evaluation | None = None
        self._evaluating = threading.Lock()
        require_values(self._rest, HintedSpecs(specs), budget)
        with memory_errors_of(f"{graph.name}: preparing it"):
            if backend is not None:
                self._workers = usable_cpus() if threads is None else threads
                if kept and backend.resizes:
                    self.kept = keepable(self._rest, kept, backend.refusals(self._rest, specs).keys() | self._algorithms.keys())
                    self._rest = replace(self._rest, outputs=tuple(p for p in self._rest.outputs if p.name not in self.kept))
                self._rest, self._segments = backend.lowered(self._rest, specs, self._workers, choices, budget, self.kept)
                self._packed = frozenset(constant for segment in self._segments.values() for constant in segment.packed)
                backend.count_packed(self._packed, budget, graph.name)
                self._drop_copies()
            elif wanted := next((name for name in choices if name not in self._algorithms), None):
                raise UnsupportedError(f"node {wanted!r}: {choices[wanted]} was chosen, this executor has numpy only")

    def _drop_copies(self) -> None:
        """Let halves stand for their float32 copies that only segments have read: these are packed there.

        Small ones stay: they may be parameters, whose values say what shapes a node makes.
        """
        read = {name for node in self._rest.nodes for name in node.reads()} | {port.name for port in self._rest.outputs}
        large = {name: array for name, array in self.graph.constants.items() if array.nbytes >= LEAST_BYTES and name not in read}
        halves = {name: half for name, array in large.items() if (half := half_of(array)) is not None}
        if not halves:
            return
        constants = {**self.graph.constants, **halves}
        self.graph, self._rest = replace(self.graph, constants=constants), replace(self._rest, constants=constants)
        specs = self.specs
        self.specs = {
            name: spec.with_value(None) if name in halves and spec is not None else spec for name, spec in specs.items()
        }
        for segment in self._segments.values():
            segment.replace_constants(self.specs, constants)

    def sizes(self, values: Sequence[int] | None) -> Sizes:
        """Return the values of all sizes for values of the symbols; None: for their hints.

        Raises: GuardError where the lowering is not true for these values.
        """
        if self._scope is None or not self._scope.names:
            return PLAIN
        with self._evaluating:
            if self._evaluation is None:
                found: dict[Size, None] = {}
                sizes_in([spec.shape for spec in self.specs.values() if spec is not None], found)
                sizes_in([spec.value for spec in self.specs.values() if spec is not None], found)
                sizes_in(dict(self.graph.constants), found)
                sizes_in([each.room for each in self.kept.values()], found)
                for segment in self._segments.values():
                    segment.find_sizes(found)
                self._evaluation = Evaluation(self._scope, found)
        return self._evaluation.at(self._scope.hints if values is None else values)

    def prepare(self, sizes: Sizes, budget: RunBudget) -> tuple[PreparedGraph, frozenset[PackedConstant]]:
        """Return the graph ready to run for some values of its sizes, and its packed weights."""
        with memory_errors_of(f"{self.graph.name}: preparing it"):
            graph, specs = self._bound(sizes)
            if self._backend is None:
                return PreparedGraph(graph, specs, self._algorithms, budget=budget), self._packed
            self._backend.count_packed(self._packed, budget, self.graph.name)
            try:
                segments = self._backend.bind(self._segments, sizes, self._workers, roomy=True)
                return PreparedGraph(graph, specs, self._algorithms, segments, self._workers, budget), self._packed
            except LimitError:  # perhaps for the room that larger sizes would need
                segments = self._backend.bind(self._segments, sizes, self._workers, roomy=False)
                return PreparedGraph(graph, specs, self._algorithms, segments, self._workers, budget), self._packed

    def _bound(self, sizes: Sizes) -> tuple[Graph, Specs]:
        """Return what is left of the graph beside its segments, and its specs, with values for all sizes."""
        if sizes.are_plain:
            return self._rest, self.specs
        constants = self._rest.constants
        if any(isinstance(array, SizeArray) for array in constants.values()):
            constants = {name: bound_array(array, sizes) for name, array in constants.items()}
        return replace(self._rest, constants=constants), BoundSpecs(self.specs, sizes)


def keepable(graph: Graph, kept: Mapping[str, Kept], in_numpy: Collection[str]) -> dict[str, Kept]:
    """Return the values that can grow in place: one Concat makes each of its input and what it appends, and native nodes read it.

    in_numpy: names of the nodes that do not run natively.
    """
    producers = {name: node for node in graph.nodes for name in node.writes()}
    foreign = {name for node in graph.nodes if node.name in in_numpy or node.op in CONTROL_FLOW for name in node.reads()}
    read = {name for node in graph.nodes for name in node.reads()}

    def can_grow(output: str, each: Kept) -> bool:
        node = producers.get(output)
        if node is None or node.op != "Concat" or node.epilogue or node.name in in_numpy or len(node.inputs) != 2:
            return False
        return node.inputs[0] == each.input != node.inputs[1] and output in read and not {output, each.input} & foreign

    return {output: each for output, each in kept.items() if can_grow(output, each)}


class BoundSpecs(Mapping[str, Spec | None]):
    """Specs with values for all sizes, each made when it is asked for."""

    def __init__(self, specs: Specs, sizes: Sizes) -> None:
        self._specs, self._sizes = specs, sizes
        self._bound: dict[str, Spec | None] = {}

    def __getitem__(self, value: str) -> Spec | None:
        if value not in self._bound:
            spec, sizes = self._specs[value], self._sizes
            self._bound[value] = None if spec is None else Spec(
                sizes.all(spec.shape), spec.dtype, None if spec.value is None else bound_array(spec.value, sizes)
            )  # fmt: skip
        return self._bound[value]

    def __iter__(self) -> Iterator[str]:
        return iter(self._specs)

    def __len__(self) -> int:
        return len(self._specs)
