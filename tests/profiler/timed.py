"""An executor that runs nothing and reports given times."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from graph.formats.onnx.reader import read
from graph.ir import Graph, Node, Specs
from graph.run.executor import VIEW
from graph.shapes import bind, propagate
from graph.timing import RunClock
from kernels.registry import find
from tests.profiler.models import small_convnet


@dataclass
class Step:
    node: Node
    algorithm: str
    macs: int | None = None


@dataclass
class Outcome:
    step_ns: Sequence[int]
    wall_ns: int

    @property
    def clock(self) -> RunClock:
        """Return a clock on which the steps follow each other from 0 ns on."""
        return RunClock(0, [0, *itertools.accumulate(self.step_ns)], {})


class ScriptedExecutor:
    """Each run reports the next (step_ns, wall_ns) of the script."""

    def __init__(self, graph: Graph, specs: Specs, script: Iterable[tuple[Sequence[int], int]]) -> None:
        self.graph, self.specs = graph, specs
        self.steps = [Step(node, VIEW if find(node.op).view else find(node.op).kernels[0].algorithm) for node in graph.nodes]
        self._script = iter(script)
        self.runs = 0

    def run_timed(self, feeds: Mapping[str, Any]) -> Outcome:
        self.runs += 1
        return Outcome(*next(self._script))


def scripted(script: Iterable[tuple[Sequence[int], int]], batch: int = 1) -> ScriptedExecutor:
    """Return an executor of the small convnet, which has eleven steps."""
    graph = read(small_convnet()).graph
    return ScriptedExecutor(graph, propagate(graph, bind(graph, dims={"batch": batch})), script)
