"""The native backend of a model, which its executors share: refusals, candidates, and compiled segments."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import ClassVar

from graph.budget import RunBudget
from graph.choice import Choice
from graph.ir import Graph, Node, Specs
from graph.native.constants import ConstantCache
from graph.native.facts import Facts, Kept
from graph.native.lowering import Lowering
from graph.native.partition import Part, gathered
from graph.native.place import PackedConstant
from graph.native.rules.table import RULES, refusal
from graph.native.segment import LoweredSegment, Segment, complete_choices, lower
from graph.native.work import Work
from kernels.native.code.cache import CodeCache
from kernels.native.code.farm import Pace, compile_some
from kernels.native.code.resident import load_kernels
from kernels.native.emit.kernel import NativeKernel
from kernels.native.run.thread_pool import shared_thread_pool
from kernels.native.target.isa import Isa, host_isa, host_isas
from kernels.precision import Precision
from kernels.size import Sizes

_NONE: Mapping[str, Kept] = MappingProxyType({})


def find_native(backend: str, precisions: Sequence[Precision] = ("fp32",)) -> Native | None:
    """Return the native backend, or None where this machine has no instruction set for it and `backend` is not "native".

    precisions: as in `Native`.

    Raises: IsaError where `backend` is "native" and there is no instruction set, or EDGEWISE_ISA names one that is not here.
    """
    return Native(precisions=precisions) if backend == "native" or host_isas() else None


@dataclass(slots=True)
class Native:
    """The native backend of one model: its instruction set, its compiled code on disk, its weights as kernels read them.

    precisions: in which its candidates compute products of float32, the first one without a measurement.
    Raises: IsaError where this machine has no instruction set that is described.
    """

    name: ClassVar[str] = "native"
    resizes: ClassVar[bool] = True
    isa: Isa = field(default_factory=host_isa)
    cache: CodeCache | None = field(default_factory=CodeCache.default)
    constants: ConstantCache = field(default_factory=ConstantCache)
    precisions: Sequence[Precision] = ("fp32",)

    def refusals(self, graph: Graph, specs: Specs) -> dict[str, str]:
        """Return why nodes cannot run natively, by the name of each that cannot."""
        found = ((node.name, self.refusal(node, graph, specs)) for node in graph.nodes)
        return {name: reason for name, reason in found if reason is not None}

    def refusal(self, node: Node, graph: Graph, specs: Specs) -> str | None:
        """Return why a node cannot run natively, or None where it can."""
        return refusal(node, self._facts(graph, specs))

    def candidates(self, node: Node, graph: Graph, specs: Specs, threads: int) -> Sequence[Choice]:
        """Return the native ways to compute a node that is not refused, first the one to use on that many threads unmeasured."""
        return RULES[node.op].candidates(node, self._facts(graph, specs, threads).hinted)

    def work(self, node: Node, graph: Graph, specs: Specs, choice: Choice) -> Work:
        """Return what a candidate computes and moves."""
        work = RULES[node.op].work(node, self._facts(graph, specs).hinted, choice)
        return replace(work, precision=choice.precision)

    def _facts(self, graph: Graph, specs: Specs, threads: int = 1, kept: Mapping[str, Kept] = _NONE) -> Facts:
        return Facts(specs, graph.constants, self.isa, threads, kept, self.precisions)

    def blocked(self, graph: Graph, specs: Specs, threads: int, choices: Mapping[str, Choice]) -> frozenset[str]:
        """Return the values that their producers leave in blocks of channels, which no strides describe."""
        return frozenset(
            name
            for part, lowering in self._lowered(graph, specs, threads, choices)
            for node in part.nodes
            for name in node.writes()
            if lowering.values.lies(name) and lowering.values.place(name).strided is None
        )

    def kernels(
        self, graph: Graph, specs: Specs, threads: int, choices: Mapping[str, Choice]
    ) -> dict[str, tuple[NativeKernel, ...]]:
        """Return the kernels of each native node by its name, conversions of its operands included."""
        found: dict[str, tuple[NativeKernel, ...]] = {}
        for part, lowering in self._lowered(graph, specs, threads, choices):
            made: dict[int, list[NativeKernel]] = {}
            for call in lowering.calls:
                made.setdefault(call.node, []).append(call.kernel)
            found.update((node.name, tuple(made.get(at, ()))) for at, node in enumerate(part.nodes))
        return found

    def spills(self, kernels: Sequence[NativeKernel], pace: Pace | None = None) -> list[float | None]:
        """Return for each kernel the share of vector instructions in its innermost loops that access the stack.

        The kernels are compiled for this; None where `pace` leaves no time.
        """
        sources = [kernel.source for kernel in kernels]
        compiled = compile_some(sources, self.isa, pace, count_spills=True, cache=self.cache)
        return [None if found is None else found.spills or 0.0 for found in compiled]

    def _lowered(
        self, graph: Graph, specs: Specs, threads: int, choices: Mapping[str, Choice]
    ) -> Iterator[tuple[Part, Lowering]]:
        """Lower every segment without packing constants, to inspect the calls."""
        _, parts = self.parts(graph, specs, choices)
        facts = self._facts(graph, specs, threads)
        for part in parts.values():
            yield part, lower(part, facts, ConstantCache(dry=True), complete_choices(part, facts, choices))

    def parts(self, graph: Graph, specs: Specs, choices: Mapping[str, Choice]) -> tuple[Graph, Mapping[str, Part]]:
        """Return the graph with its native nodes gathered into segments, and these by their nodes' names: see `gathered`."""
        return gathered(graph, "native", self.refusals(graph, specs), choices, lambda node: RULES[node.op].view)

    def lowered(
        self,
        graph: Graph,
        specs: Specs,
        threads: int,
        choices: Mapping[str, Choice],
        budget: RunBudget,
        kept: Mapping[str, Kept] = _NONE,
    ) -> tuple[Graph, Mapping[str, LoweredSegment]]:
        """Return `parts` with every segment lowered for that many threads; its kernels are compiled and its weights packed.

        budget: packed weights are counted there, by their estimate before they are packed. kept: values that grow in place, by
        the name of the output; nodes in numpy read neither them nor what they are before.
        Raises: LimitError where the packed weights exceed the budget; OutOfMemoryError; CompileError.
        """
        rest, parts = self.parts(graph, specs, choices)
        facts = self._facts(graph, specs, threads, kept)
        chosen = {name: choice for part in parts.values() for name, choice in complete_choices(part, facts, choices).items()}
        self._require_packed(parts.values(), facts.hinted, chosen, budget)
        with ThreadPoolExecutor(threads, "packing") as workers:
            constants = self.constants.by(workers)
            made = {name: LoweredSegment(part, facts, chosen, constants) for name, part in parts.items()}
            kernels = {name: source for segment in made.values() for name, source in segment.kernels.items()}
            load_kernels(kernels, self.isa, self.cache)
        return rest, made

    @staticmethod
    def count_packed(packed: Iterable[PackedConstant], budget: RunBudget, name: str) -> None:
        """Count packed weights in a budget. name: of the graph."""
        for constant in packed:
            budget.share(constant, constant.array.nbytes, f"{name}: weights packed for native code")

    def bind(self, segments: Mapping[str, LoweredSegment], sizes: Sizes, threads: int, *, roomy: bool) -> dict[str, Segment]:
        """Return the programs of lowered segments for some values of their sizes. roomy: see `LoweredSegment.bind`."""
        pool = shared_thread_pool(threads)
        return {name: segment.bind(sizes, pool, self.cache, roomy=roomy) for name, segment in segments.items()}

    @staticmethod
    def _require_packed(parts: Iterable[Part], facts: Facts, choices: Mapping[str, Choice], budget: RunBudget) -> None:
        """Raise LimitError, naming the node that takes the most, where all packed weights will exceed the budget."""
        with_constants = [node for part in parts for node in part.nodes if not facts.constants.keys().isdisjoint(node.reads())]
        weights = [(RULES[node.op].work(node, facts, choices[node.name]).weight_bytes, node) for node in with_constants]
        nbytes, node = max(weights, key=lambda found: found[0], default=(0, None))
        if node is not None:
            largest = f"{node.op}: its weights take {nbytes} bytes packed (node {node.name!r})"
            budget.require(sum(nbytes for nbytes, _ in weights), largest)
