"""GridSample over images, which lie in blocks of channels."""

from __future__ import annotations

from graph.ir import Node
from graph.native.facts import Facts
from graph.native.lowering import Lowering
from graph.native.rule import one_algorithm
from graph.native.rules.elementwise import apply_fused_in_blocks, refuses_fused
from kernels.native.families.grid_sample import GridSample, emit_grid_sample


def refuses(node: Node, facts: Facts) -> str | None:
    """Return why a GridSample has no native form, or None."""
    if reason := facts.not_f32(*node.inputs, node.outputs[0]) or facts.not_image(node.inputs[0], (4,)):
        return reason
    return refuses_fused(node, facts)


def lower(b: Lowering, node: Node) -> None:
    """Append one call, and the epilogue's if there is one."""
    x, grid = b.values.blocked(node.inputs[0]), b.values.strided(node.inputs[1])
    y = b.values.new_image(node.outputs[0])
    attrs = node.attrs
    what = GridSample(x.image, y.image, grid.view, attrs["mode"], attrs["padding_mode"], bool(attrs["align_corners"]))
    b.calls.append(emit_grid_sample(what, b.isa), {"x": x, "grid": grid, "y": y})
    apply_fused_in_blocks(b, node, y)


RULES = {"GridSample": one_algorithm("grid", refuses, lower, kind="resize", wants="blocks")}
