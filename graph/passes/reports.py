"""What each rewrite pass removed from a graph: nodes, arithmetic and bytes moved. Counted where it is asked for."""

from __future__ import annotations

from collections.abc import Mapping

from graph.ir import CONTROL_FLOW, Graph, Node, Specs
from graph.passes.optimise import optimise
from graph.shapes import propagate
from kernels.errors import DataDependentError
from kernels.record import record
from kernels.registry import find
from kernels.spec import Spec


@record
class PassReport:
    """What a pass removed in all its runs. bytes: inputs and outputs of nodes, each once. Negative where it added some."""

    name: str
    nodes_removed: int
    flops_removed: int
    bytes_removed: int


@record
class _Totals:
    nodes: int
    flops: int
    nbytes: int


def report_passes(graph: Graph, inputs: Mapping[str, Spec]) -> tuple[PassReport, ...]:
    """Rewrite a graph for these input shapes as `optimise` does, and return a report for every pass that changed it."""
    reports: dict[str, PassReport] = {}
    before = _count(graph, propagate(graph, inputs))

    def report(name: str, changed: Graph, specs: Specs) -> None:
        nonlocal before
        after, known = _count(changed, specs), reports.get(name, PassReport(name, 0, 0, 0))
        reports[name] = PassReport(
            name,
            known.nodes_removed + before.nodes - after.nodes,
            known.flops_removed + before.flops - after.flops,
            known.bytes_removed + before.nbytes - after.nbytes,
        )
        before = after

    optimise(graph, inputs, changed=report)
    return tuple(reports.values())


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
