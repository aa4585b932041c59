"""The largest or smallest elements along an axis."""

from __future__ import annotations

import math

from graph.ir import Node
from graph.native.facts import F32, Facts
from graph.native.lowering import Lowering
from graph.native.place import Viewed
from graph.native.rule import one_algorithm
from graph.native.rules.elementwise import apply_fused, refuses_fused
from kernels.native.families.select import Select, emit_select
from kernels.native.memory.view import View
from kernels.spec import INTS

MOST_BYTES = 4  # of an element


def refuses(node: Node, facts: Facts) -> str | None:
    """Return why a TopK has no native form, or None."""
    x = facts.spec(node.inputs[0])
    if x.dtype != F32 and not (x.dtype in INTS and x.dtype.itemsize <= MOST_BYTES):
        return f"x is {x}, need fp32 or integers of up to {8 * MOST_BYTES} bits"
    if len(node.outputs) < 2 or not all(node.outputs):
        return "one of its outputs is absent"
    return refuses_fused(node, facts)


def lower(b: Lowering, node: Node) -> None:
    """Append the call of the selection, and of what is fused behind its values."""
    shape = b.spec(node.inputs[0]).shape
    axis = node.attrs["axis"] % len(shape)
    x = b.values.dense(node.inputs[0])
    values, indices = (b.values.new_dense(name) for name in node.outputs)
    three = View.dense((math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])))
    what = Select(three, b.spec(node.outputs[0]).shape[axis], bool(node.attrs["largest"]), x.storage.dtype)
    places: dict[str, Viewed] = {"x": x, "values": values, "indices": indices}
    b.calls.append(emit_select(what, b.isa), places, ("values", "indices"))
    apply_fused(b, node, values)


RULES = {"TopK": one_algorithm("heap", refuses, lower)}
