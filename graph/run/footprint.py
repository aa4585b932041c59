"""The memory that a prepared graph takes, known before any of it is allocated, and what takes the most of it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from functools import partial

from graph.backend import Segment
from graph.budget import RunBudget
from graph.ir import SEGMENT, Graph, Node, Specs
from graph.memory import Held, MemoryPlan
from kernels.record import record
from kernels.spec import Spec


@record
class Footprint:
    """The memory of one prepared graph.

    kept_bytes: of the arena, allocated once. run_bytes: of what each run allocates: graph outputs, and the most that the numpy
    kernel of any one step allocates. describe: says what takes the most, and its place, as the beginning of an error.
    Not counted: values whose size only a run knows, which a run counts as it allocates them.
    """

    kept_bytes: int
    run_bytes: int
    describe: Callable[[], str]

    @property
    def largest(self) -> str:
        """What takes the most memory, and where."""
        return self.describe()

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
        nodes = {name: node for node in graph.nodes for name in node.writes() if node.op != SEGMENT}
        taken: list[tuple[int, Callable[[], str]]] = [
            (spec.nbytes, partial(_value, node, name, spec))
            for name, node in nodes.items()
            if (spec := specs.get(name)) is not None
        ]
        for segment in segments.values():
            taken += [(item.nbytes, partial(_held, segment, item)) for item in segment.held]
        for sizes in ({name: nbytes for name, nbytes in workspace.items() if name not in segments}, scratch):
            taken += [
                (sizes[node.name], partial(_kernel, node, sizes[node.name])) for node in graph.nodes if sizes.get(node.name)
            ]
        largest = max(taken, key=lambda found: found[0], default=(0, lambda: graph.name))[1]
        return Footprint(memory.arena_bytes, run_bytes, functools.cache(largest))


def require_values(graph: Graph, specs: Specs, budget: RunBudget) -> None:
    """Raise LimitError for a value that alone exceeds the budget, before a segment is compiled for it."""
    for node in graph.nodes:
        for name in node.writes():
            if (spec := specs.get(name)) is not None and spec.nbytes > budget.free_bytes:
                budget.require(spec.nbytes, _value(node, name, spec))


def _value(node: Node, name: str, spec: Spec) -> str:
    return f"{node.op}: output {name!r} is {spec}, {spec.nbytes} bytes (node {node.name!r})"


def _held(segment: Segment, item: Held) -> str:
    node = next((node for node in segment.nodes if item.name in node.writes()), None)
    if node is None:
        return f"{SEGMENT}: memory of {item.name!r} takes {item.nbytes} bytes"
    return f"{node.op}: output {item.name!r} takes {item.nbytes} bytes (node {node.name!r})"


def _kernel(node: Node, nbytes: int) -> str:
    return f"{node.op}: its kernel works in {nbytes} bytes beside its inputs and outputs (node {node.name!r})"
