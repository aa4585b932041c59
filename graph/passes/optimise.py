"""The driver of the rewrite passes: it repeats them in a fixed order until none changes the graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from graph.ir import Graph, Specs
from graph.limits import Check, go_on
from graph.passes.activations import find_activations
from graph.passes.affine import fold_scales_and_shifts
from graph.passes.attentions import find_attentions
from graph.passes.batch_norms import fold_batch_norms, split_batch_norms
from graph.passes.constants import fold_constants
from graph.passes.dead import remove_dead
from graph.passes.duplicates import merge_duplicates
from graph.passes.editor import Editor, Pass, sizes
from graph.passes.einsums import expand_einsums
from graph.passes.epilogues import fuse_epilogues
from graph.passes.expansions import expand_fused
from graph.passes.gemms import make_gemms
from graph.passes.identities import remove_identities
from graph.passes.integers import make_integers, move_integers
from graph.passes.layer_norms import find_layer_norms
from graph.passes.pads import fold_pads
from graph.passes.quantised import expand_quantised
from graph.passes.steps import fold_steps
from graph.passes.views import collapse_views, reshape_unmoved, sink_views
from graph.passes.widen import widen_halves
from graph.passes.zero_points import take_out_zero_points
from graph.shapes import propagate
from kernels.half import is_half
from kernels.record import record
from kernels.spec import Spec

MAX_GROWTH_BYTES = 256 << 20  # constants may take this much more than the model's own
_MAX_ROUNDS = 16

Changed = Callable[[str, Graph, Specs], None]  # told the name of a pass that changed the graph, the new graph and its specs


@record
class Optimised:
    """An equivalent graph for one set of input shapes, and the spec of every value in it."""

    graph: Graph
    specs: dict[str, Spec | None]


@record
class _Step:
    """A pass of every round. needs: the ops without which it finds nothing; a graph that lacks one of them is not searched."""

    name: str
    rewrite: Pass
    needs: frozenset[str] = frozenset()


_INTEGERS = (
    _Step("moved-integers", move_integers, frozenset({"DequantizeLinear"})),
    _Step("integers", make_integers, frozenset({"DequantizeLinear"})),
    _Step("zero-points", take_out_zero_points, frozenset({"MatMulInteger"})),
)


def optimise(
    graph: Graph,
    inputs: Mapping[str, Spec],
    check: Check = go_on,
    changed: Changed | None = None,
    *,
    native: bool = False,
) -> Optimised:
    """Rewrite a graph for these input shapes. Names, types and order of its inputs and outputs stay.

    check: called between passes and between nodes that are inferred or computed; what it raises ends the work. changed: called
    after each pass that changed the graph. native: for native kernels, which compute half precisions in float32 and
    quantised values in integers.
    Epilogues are fused last, when no other pass changes anything, since they hide nodes from other passes. Batch norms that were
    not folded are split into elementwise ops just ahead of that, and elementwise ops move before views.
    """
    run = _Run(graph, inputs, check, changed)
    limit_bytes = sizes(graph.constants) + MAX_GROWTH_BYTES
    if native:
        limit_bytes += sum(array.nbytes for array in graph.constants.values() if is_half(array.dtype))
    steps = (
        _Step("quantised", partial(expand_quantised, limit_bytes=limit_bytes, native=native)),
        *(_INTEGERS if native else ()),
        _Step("constant-folding", partial(fold_constants, limit_bytes=limit_bytes, check=check)),
        *([_Step("halves", widen_halves)] if native else []),
        _Step("dead-code", remove_dead),
        _Step("expansions", expand_fused),
        _Step("einsums", expand_einsums, frozenset({"Einsum"})),
        _Step("identities", remove_identities),
        _Step("views", collapse_views),
        _Step("unmoved", reshape_unmoved, frozenset({"Transpose"})),
        _Step("duplicates", merge_duplicates),
        _Step("activations", find_activations, frozenset({"Mul"})),
        _Step("layer-norms", find_layer_norms, frozenset({"Div", "ReduceMean"})),
        _Step("attentions", find_attentions),
        _Step("batch-norms", fold_batch_norms, frozenset({"BatchNormalization"})),
        _Step("scales-and-shifts", fold_scales_and_shifts),
        _Step("pads", fold_pads, frozenset({"Pad"})),
        _Step("gemms", make_gemms, frozenset({"Add", "MatMul"})),
    )
    for _ in range(_MAX_ROUNDS):
        before = run.graph
        for step in steps:
            run.apply(step)
        if run.graph is before:
            break
    for last in (
        *([_Step("steps", fold_steps, frozenset({"QuantizeLinear"}))] if native else []),
        _Step("batch-norms", split_batch_norms, frozenset({"BatchNormalization"})),
        _Step("sunk-views", sink_views),
        _Step("views", collapse_views),
        _Step("dead-code", remove_dead),
        _Step("epilogues", fuse_epilogues),
    ):
        run.apply(last)
    return Optimised(run.graph, run.specs)


class _Run:
    """The graph between passes. Specs of nodes that a pass leaves as they are, are kept.

    All passes that find nothing share one editor of a graph.
    """

    def __init__(self, graph: Graph, inputs: Mapping[str, Spec], check: Check, changed: Changed | None) -> None:
        self.graph = graph
        self.inputs = inputs
        self.check = check
        self.changed = changed
        self.specs = propagate(graph, inputs, check=check)
        self._editor = Editor(graph, self.specs)
        self._ops = {node.op for node in graph.nodes}
        self._searched: dict[Pass, Graph] = {}  # the newest graph in which a pass has found nothing

    def apply(self, step: _Step) -> None:
        """Run one pass, unless it cannot find anything. Where it changed the graph, infer the specs of what it changed."""
        if self._searched.get(step.rewrite) is self.graph or not step.needs <= self._ops:
            return
        self.check()
        step.rewrite(self._editor)
        graph = self._editor.finish()
        if graph is self.graph:
            self._searched[step.rewrite] = graph
            return
        self.specs = propagate(graph, self.inputs, check=self.check, before=(self.graph, self.specs))
        self.graph, self._ops = graph, {node.op for node in graph.nodes}
        self._editor = Editor(graph, self.specs)
        if self.changed is not None:
            self.changed(step.name, graph, self.specs)
