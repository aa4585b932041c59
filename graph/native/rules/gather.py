"""Gathers: a constant scalar index gives a view, other indices are read at run time."""

from __future__ import annotations

import math

from graph.ir import Node
from graph.native.facts import Facts
from graph.native.lowering import Lowering
from graph.native.place import Viewed
from graph.native.rule import one_algorithm
from graph.native.rules.elementwise import apply_fused, refuses_fused
from graph.native.rules.view import define_view
from kernels.native.families.gather import Gather, emit_gather
from kernels.native.memory.view import View


def refuses(node: Node, facts: Facts) -> str | None:
    """Return why a Gather has no native form, or None."""
    x = facts.spec(node.inputs[0])
    if not x.shape[node.attrs["axis"]]:
        return f"x is {x}, its axis {node.attrs['axis']} is empty"
    return refuses_fused(node, facts)


def lower(b: Lowering, node: Node) -> None:
    """Define a view, or append a call that reports indices out of range."""
    axis = node.attrs["axis"] % b.spec(node.inputs[0]).rank
    known = b.constants.get(node.inputs[1])
    if known is not None and not known.ndim:
        place = b.values.strided(node.inputs[0])
        define_view(b, node, place.under(place.view.picked(axis, int(known) % place.view.shape[axis])))
        return
    x, indices = _table(b, node.inputs[0], axis), b.values.dense(node.inputs[1])
    y = b.values.new_dense(node.outputs[0])
    outer, rows, elements = x.view.shape
    picked = View.dense((outer, b.spec(node.inputs[1]).elements, elements))
    kernel = emit_gather(Gather.along(x.view, picked, x.storage.dtype, indices.storage.dtype), b.isa)
    places = {"x": x.storage, "indices": indices.storage, "y": y.storage, "fault0": b.calls.watch(node, rows)}
    b.calls.append(kernel, places)
    apply_fused(b, node, y)


def _table(b: Lowering, value: str, axis: int) -> Viewed:
    """Return a value as (elements before the axis, the axis, elements after it), the last dimension contiguous."""
    shape = b.spec(value).shape
    three = (math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :]))
    array = b.constants.get(value)
    if array is not None and array.flags.c_contiguous and array.flags.aligned:  # tables are large: read in place, without a copy
        return Viewed(b.packed.storage(array, "in place", lambda: array.reshape(-1), array.dtype), View.dense(three))
    for place in b.values.places(value):
        seen = None if (found := place.strided) is None else found.view.reshaped(three)
        if seen is not None and (three[2] == 1 or seen.strides[2] == 1):
            return Viewed(place.storage, seen)
    return b.values.dense(value).under(View.dense(three))


RULES = {"Gather": one_algorithm("rows", refuses, lower, kind="copy", wants="rows")}
