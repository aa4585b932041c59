"""The memory that a prepared graph takes, known before any of it is allocated, and what takes the most of it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from graph.budget import RunBudget
from graph.ir import SEGMENT, Graph, Node, Specs
from graph.memory import MemoryPlan
from graph.native.segment import Segment


@dataclass(frozen=True, slots=True)
class Footprint:
    """The memory of one prepared graph.

    kept_bytes: of the arena, allocated once. run_bytes: of what each run allocates: graph outputs, and the most that the numpy
    kernel of any one step allocates. largest: what takes the most, and its place, as the beginning of an error.
    Not counted: values whose size only a run knows, which a run counts as it allocates them.
    """

    kept_bytes: int
    run_bytes: int
    largest: str

    @staticmethod
    def of(
        graph: Graph,
        specs: Specs,
        memory: MemoryPlan,
        segments: Mapping[str, Segment],
        workspace: Mapping[str, int],
        scratch: Mapping[str, int],
    ) -> Footprint:
        """Sum up. By node name: segments, bytes of workspace in the arena, and bytes of scratch that kernels allocate."""
        outputs = (specs.get(port.name) for port in graph.outputs)
        run_bytes = sum(spec.nbytes for spec in outputs if spec is not None) + max(scratch.values(), default=0)
        inner = [inner for segment in segments.values() for inner in segment.nodes]
        written = {name for node in graph.nodes for name in node.writes()}
        held = {item.name: item.nbytes for segment in segments.values() for item in segment.held}
        taken = [*_values([*graph.nodes, *inner], specs, written | held.keys())]
        taken += _kernels(graph.nodes, {name: n for name, n in workspace.items() if name not in segments})
        taken += _kernels(graph.nodes, scratch)
        return Footprint(memory.arena_bytes, run_bytes, max(taken, default=(0, graph.name))[1])


def require_values(graph: Graph, specs: Specs, budget: RunBudget) -> None:
    """Raise LimitError for a value that alone exceeds the budget, before a segment is compiled for it."""
    for nbytes, what in _values(graph.nodes, specs):
        budget.require(nbytes, what)


def _values(nodes: Iterable[Node], specs: Specs, among: Collection[str] | None = None) -> Iterator[tuple[int, str]]:
    """Yield the size of each value that the nodes write, and its name and place. among: the values to look at; None = all."""
    for node in nodes:
        for name in node.writes():
            spec = specs.get(name)
            if node.op != SEGMENT and spec is not None and (among is None or name in among):
                yield spec.nbytes, f"{node.op}: output {name!r} is {spec}, {spec.nbytes} bytes (node {node.name!r})"


def _kernels(nodes: Iterable[Node], sizes: Mapping[str, int]) -> Iterator[tuple[int, str]]:
    for node in nodes:
        if nbytes := sizes.get(node.name, 0):
            yield nbytes, f"{node.op}: its kernel works in {nbytes} bytes beside its inputs and outputs (node {node.name!r})"
