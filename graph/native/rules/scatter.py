"""Scatters: a copy of the data, and then updates written to it by indices that are read at run time."""

from __future__ import annotations

import math

from graph.ir import Node
from graph.native.facts import Facts
from graph.native.lowering import Lowering
from graph.native.place import Viewed
from graph.native.rule import one_algorithm
from graph.native.rules.elementwise import apply_fused, refuses_fused
from kernels.native.families.elements import Elements, emit_elements
from kernels.native.families.scatter import Scatter, emit_scatter
from kernels.native.memory.view import View
from kernels.spec import BOOL


def refuses(node: Node, facts: Facts) -> str | None:
    """Return why a scatter has no native form, or None."""
    x, reduction = facts.spec(node.inputs[0]), node.attrs["reduction"]
    if x.dtype == BOOL and reduction != "none":
        return f"x is {x}, bools are not combined by {reduction}"
    return refuses_fused(node, facts)


def lower_elements(b: Lowering, node: Node) -> None:
    """Append a copy, and a call that writes elements one by one."""
    axis = node.attrs["axis"] % b.spec(node.inputs[0]).rank
    indices, updates = b.values.dense(node.inputs[1]), b.values.strided(node.inputs[2])
    y = _copied(b, node)
    what = Elements(y.view, indices.view, updates.view, axis, node.attrs["reduction"], y.storage.dtype, indices.storage.dtype)
    places = {"indices": indices.storage, "other": updates.storage, "table": y.storage}
    b.calls.append(emit_elements(what, b.isa), {**places, "fault": b.calls.watch(node, y.view.shape[axis])}, (), ("table",))
    apply_fused(b, node, y)


def lower_nd(b: Lowering, node: Node) -> None:
    """Append a copy, and a call that writes rows by tuples of indices."""
    shape = b.spec(node.inputs[1]).shape
    indices, updates = b.values.dense(node.inputs[1]), b.values.dense(node.inputs[2])
    y = _copied(b, node)
    rows = y.view.shape[: shape[-1]]
    table = View.dense((*rows, math.prod(y.view.shape[shape[-1] :])))
    what = Scatter(table, math.prod(shape[:-1]), node.attrs["reduction"], y.storage.dtype, indices.storage.dtype)
    faults = {f"fault{d}": b.calls.watch(node, size) for d, size in enumerate(rows)}
    places = {"indices": indices.storage, "updates": updates.storage, "table": y.storage, **faults}
    b.calls.append(emit_scatter(what, b.isa), places, (), ("table",))
    apply_fused(b, node, y)


def _copied(b: Lowering, node: Node) -> Viewed:
    """Append a copy of the data to where the result is made, and return that place."""
    x, y = b.values.strided(node.inputs[0]), b.values.new_dense(node.outputs[0])
    b.calls.map((y, y.view), [(x, x.view)])
    return y


_ELEMENTS = one_algorithm("rows", refuses, lower_elements, kind="copy", wants="rows")
RULES = {
    "ScatterElements": _ELEMENTS,
    "Scatter": _ELEMENTS,
    "ScatterND": one_algorithm("rows", refuses, lower_nd, kind="copy", wants="rows"),
}
