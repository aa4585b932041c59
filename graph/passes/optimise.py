"""The driver of the rewrite passes: it repeats them in a fixed order until none changes the graph, and reports their savings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from graph.ir import CONTROL_FLOW, Graph, Node, Specs
from graph.limits import Check, go_on
from graph.native.facts import HintedSpecs
from graph.passes.activations import find_activations
from graph.passes.affine import fold_scales_and_shifts
from graph.passes.attentions import find_attentions
from graph.passes.batch_norms import fold_batch_norms, split_batch_norms
from graph.passes.constants import fold_constants
from graph.passes.dead import remove_dead
from graph.passes.duplicates import merge_duplicates
from graph.passes.editor import Pass, sizes
from graph.passes.einsums import expand_einsums
from graph.passes.epilogues import fuse_epilogues
from graph.passes.expansions import expand_fused
from graph.passes.gemms import make_gemms
from graph.passes.identities import remove_identities
from graph.passes.layer_norms import find_layer_norms
from graph.passes.pads import fold_pads
from graph.passes.views import collapse_views, reshape_unmoved, sink_views
from graph.shapes import propagate
from kernels.errors import DataDependentError
from kernels.registry import find
from kernels.spec import Spec

MAX_GROWTH_BYTES = 256 << 20  # constants may take this much more than the model's own
_MAX_ROUNDS = 16


@dataclass(frozen=True, slots=True)
class PassReport:
    """What a pass removed in all its runs. bytes: inputs and outputs of nodes, each once. Negative where it added some."""

    name: str
    nodes_removed: int
    flops_removed: int
    bytes_removed: int


@dataclass(frozen=True, slots=True)
class Optimised:
    """An equivalent graph for one set of input shapes, the spec of every value in it, and what each pass did."""

    graph: Graph
    specs: dict[str, Spec | None]
    reports: tuple[PassReport, ...]


@dataclass(frozen=True, slots=True)
class _Totals:
    nodes: int
    flops: int
    nbytes: int


def optimise(graph: Graph, inputs: Mapping[str, Spec], check: Check = go_on) -> Optimised:
    """Rewrite a graph for these input shapes. Names and order of its inputs and outputs stay.

    check: called between passes and between nodes that are inferred or computed; what it raises ends the work.
    Epilogues are fused last, when no other pass changes anything, since they hide nodes from other passes. Batch norms that were
    not folded are split into elementwise ops just ahead of that, and elementwise ops move before views.
    """
    run = _Run(graph, inputs, check)
    limit_bytes = sizes(graph.constants) + MAX_GROWTH_BYTES
    passes: dict[str, Pass] = {
        "constant-folding": partial(fold_constants, limit_bytes=limit_bytes, check=check),
        "dead-code": remove_dead,
        "expansions": expand_fused,
        "einsums": expand_einsums,
        "identities": remove_identities,
        "views": collapse_views,
        "unmoved": reshape_unmoved,
        "duplicates": merge_duplicates,
        "activations": find_activations,
        "layer-norms": find_layer_norms,
        "attentions": find_attentions,
        "batch-norms": fold_batch_norms,
        "scales-and-shifts": fold_scales_and_shifts,
        "pads": fold_pads,
        "gemms": make_gemms,
    }
    for _ in range(_MAX_ROUNDS):
        before = run.graph
        for name, rewrite in passes.items():
            run.apply(name, rewrite)
        if run.graph is before:
            break
    run.apply("batch-norms", split_batch_norms)
    run.apply("sunk-views", sink_views)
    run.apply("views", collapse_views)
    run.apply("dead-code", remove_dead)
    run.apply("epilogues", fuse_epilogues)
    return Optimised(run.graph, run.specs, tuple(run.reports.values()))


class _Run:
    """The graph between passes, and what each pass removed so far."""

    def __init__(self, graph: Graph, inputs: Mapping[str, Spec], check: Check) -> None:
        self.graph = graph
        self.inputs = inputs
        self.check = check
        self.specs = propagate(graph, inputs, check=check)
        self.reports: dict[str, PassReport] = {}
        self._totals = _count(graph, HintedSpecs(self.specs))

    def apply(self, name: str, rewrite: Pass) -> None:
        """Run one pass. Where it changed the graph, infer its specs and note what was removed."""
        report = self.reports.setdefault(name, PassReport(name, 0, 0, 0))
        self.check()
        graph = rewrite(self.graph, self.specs)
        if graph is self.graph:
            return
        self.graph, self.specs = graph, propagate(graph, self.inputs, check=self.check)
        before, after = self._totals, _count(graph, HintedSpecs(self.specs))
        self._totals = after
        self.reports[name] = PassReport(
            name,
            report.nodes_removed + before.nodes - after.nodes,
            report.flops_removed + before.flops - after.flops,
            report.bytes_removed + before.nbytes - after.nbytes,
        )


def _count(graph: Graph, specs: Specs) -> _Totals:
    """Return nodes, known flops, and bytes that the nodes read and write. Control flow counts as a node alone."""
    nbytes = flops = 0
    for node in graph.nodes:
        touched = [specs.get(name) for name in {*node.reads(), *node.writes()}]
        nbytes += sum(spec.nbytes for spec in touched if spec is not None)
        if node.op not in CONTROL_FLOW and all(spec is not None for spec in touched):
            flops += _flops(node, specs)
    return _Totals(len(graph.nodes), flops, nbytes)


def _flops(node: Node, specs: Specs) -> int:
    """Return the flops of a node and its epilogue; 0 for ops without a formula."""
    total, out = 0, ""
    for name, inputs, attrs in [(node.op, node.inputs, node.attrs), *((f.op, f.inputs, f.attrs) for f in node.epilogue)]:
        op = find(name)
        operands = [specs.get(value or out) for value in inputs]
        try:
            cost = op.count(operands, op.infer_specs(operands, attrs), attrs)
        except DataDependentError:
            return 0
        total += 0 if cost is None else cost.flops
        out = node.outputs[0]
    return total
