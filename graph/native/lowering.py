"""The builder that rules lower nodes with: facts, places of values, packed constants, and the list of calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from graph.choice import Choice
from graph.ir import Node
from graph.native.calls import CallList
from graph.native.constants import ConstantCache, ConstantStorages
from graph.native.dataflow import Dataflow
from graph.native.expressions import Sources
from graph.native.facts import Facts
from graph.native.values import Values
from kernels.spec import Spec


class Lowering:
    """The lowering of one segment under construction.

    Args:    nodes: of the segment, in order. facts: of the whole graph. results: values that are read outside of the segment.
             cache: of packed constants. choices: how to compute each node, by its name.
    """

    def __init__(
        self, nodes: Sequence[Node], facts: Facts, results: Sequence[str], cache: ConstantCache, choices: Mapping[str, Choice]
    ) -> None:
        self.facts, self.constants, self.isa = facts, facts.constants, facts.isa
        self.dataflow = Dataflow(nodes, results)
        self.packed = ConstantStorages(cache)
        self.calls = CallList(facts.isa)
        self.values = Values(facts, self.dataflow, self.packed, self.calls)
        self.done: set[str] = set()  # names of nodes that an earlier one has lowered together with itself
        self._choices = choices

    @property
    def sources(self) -> Sources:
        """What the operands of expressions are, but for values that nobody has made yet."""
        return self.facts.sources

    @property
    def late_sources(self) -> Sources:
        """What the operands of expressions are; values that nobody has made yet are computed of what these are made of."""
        return replace(self.facts.sources, deferred=self.values.deferred)

    def spec(self, value: str) -> Spec:
        """Return the shape and dtype of a value."""
        return self.facts.spec(value)

    def choice(self, node: Node) -> Choice:
        """Return the algorithm and parameters chosen for a node."""
        return self._choices[node.name]
