"""The backend of a model for NVIDIA GPUs, which its executors share: refusals, candidates, and segments."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import ClassVar, get_args

from graph.budget import RunBudget
from graph.choice import Choice
from graph.cuda.constants import DeviceConstants
from graph.cuda.contest import tune, wanted_contest
from graph.cuda.facts import Facts
from graph.cuda.gpu import Gpu, shared_gpu
from graph.cuda.rules.table import refusal, rule_of
from graph.cuda.segment import LoweredSegment, Segment
from graph.ir import Graph, Node, Specs
from graph.native.facts import Kept
from graph.native.partition import Part, gathered
from graph.native.place import PackedConstant
from kernels.cuda.families.product_work import Precision
from kernels.errors import UnsupportedError
from kernels.size import Sizes

PRECISIONS: tuple[Precision, ...] = get_args(Precision)


@dataclass(slots=True)
class Cuda:
    """The GPU backend of one model.

    precision: of products, and of what is stored between kernels: fp32, fp16, bf16, or tf32, stored as fp32. gpu: the GPU
    in use. contest: how many ways to compute each launch are tried when a segment is lowered, 0 for none.
    """

    name: ClassVar[str] = "cuda"
    resizes: ClassVar[bool] = False
    precision: Precision
    gpu: Gpu
    contest: int = 0
    constants: DeviceConstants = field(default_factory=DeviceConstants)

    @classmethod
    def of(cls, precision: str) -> Cuda:
        """Return the backend for a precision by its name, on the GPU of this process.

        Raises: UnsupportedError for a precision that it does not have; NoDriverError where there is no GPU.
        """
        if precision not in PRECISIONS:
            raise UnsupportedError(f"cuda: precision is {precision!r}, need one of {', '.join(PRECISIONS)}")
        return cls(precision, shared_gpu(), wanted_contest())

    @staticmethod
    def facts(graph: Graph, specs: Specs) -> Facts:
        """Return the facts that rules decide by."""
        return Facts(specs, graph.constants)

    def refusals(self, graph: Graph, specs: Specs) -> dict[str, str]:
        """Return why nodes cannot run on the GPU, by the name of each that cannot."""
        found = ((node.name, self.refusal(node, graph, specs)) for node in graph.nodes)
        return {name: reason for name, reason in found if reason is not None}

    def refusal(self, node: Node, graph: Graph, specs: Specs) -> str | None:
        """Return why a node cannot run on the GPU, or None where it can."""
        return refusal(node, self.facts(graph, specs))

    def candidates(self, node: Node, graph: Graph, specs: Specs, threads: int) -> Sequence[Choice]:
        """Return the ways to compute a node that is not refused, first the one to use unmeasured."""
        part = Part(
            (node,), tuple(dict.fromkeys(name for name in node.reads() if name not in graph.constants)), tuple(node.writes())
        )
        lowered = LoweredSegment(part, self.facts(graph, specs), {}, self.precision, self.gpu.device, self.constants)
        call = next((call for call in lowered.calls if len(call.options) > 1), next(iter(lowered.calls), None))
        return [] if call is None else [Choice("cuda", call.algorithm, o.params, self.precision) for o in call.options]

    def parts(self, graph: Graph, specs: Specs, choices: Mapping[str, Choice]) -> tuple[Graph, Mapping[str, Part]]:
        """Return the graph with the GPU's nodes gathered into segments, and these by their nodes' names: see `gathered`."""
        return gathered(graph, "cuda", self.refusals(graph, specs), choices, _renames)

    def lowered(
        self,
        graph: Graph,
        specs: Specs,
        threads: int,
        choices: Mapping[str, Choice],
        budget: RunBudget,
        kept: Mapping[str, Kept] = MappingProxyType({}),
    ) -> tuple[Graph, Mapping[str, LoweredSegment]]:
        """Return `parts` with every segment lowered. Its memory is the GPU's, which the budget does not count."""
        rest, parts = self.parts(graph, specs, choices)
        facts = self.facts(graph, specs)
        made = {
            name: LoweredSegment(part, facts, choices, self.precision, self.gpu.device, self.constants)
            for name, part in parts.items()
        }
        if self.contest:
            for segment in made.values():
                tune(segment, self.gpu, self.contest)
        return rest, made

    @staticmethod
    def count_packed(packed: Iterable[PackedConstant], budget: RunBudget, name: str) -> None:
        """Count packed weights in a budget of the host's memory: there are none."""

    def bind(self, segments: Mapping[str, LoweredSegment], sizes: Sizes, threads: int, *, roomy: bool) -> dict[str, Segment]:
        """Return what runs of lowered segments."""
        return {name: segment.bind(self.gpu) for name, segment in segments.items()}


def _renames(node: Node) -> bool:
    rule = rule_of(node.op)
    return rule is not None and rule.view
