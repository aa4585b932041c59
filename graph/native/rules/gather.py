"""Gathers: a constant scalar index gives a view, other indices are read at run time, one by one or as tuples."""

from __future__ import annotations

import math
from collections.abc import Callable

from graph.ir import Node
from graph.native.facts import Facts
from graph.native.lowering import Lowering
from graph.native.place import Viewed
from graph.native.rule import Rule, one_algorithm
from graph.native.rules.elementwise import apply_fused, refuses_fused
from graph.native.rules.view import define_view
from kernels.native.families.elements import Elements, emit_elements
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
    shape = b.spec(node.inputs[0]).shape
    x = _table(b, node.inputs[0], (math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])))
    indices, y = b.values.dense(node.inputs[1]), b.values.new_dense(node.outputs[0])
    outer, rows, elements = x.view.shape
    picked = View.dense((outer, b.spec(node.inputs[1]).elements, elements))
    kernel = emit_gather(Gather.along(x.view, picked, x.storage.dtype, indices.storage.dtype), b.isa)
    places = {"x": x.storage, "indices": indices.storage, "y": y.storage, "fault0": b.calls.watch(node, rows)}
    b.calls.append(kernel, places)
    apply_fused(b, node, y)


def lower_nd(b: Lowering, node: Node) -> None:
    """Append a call that picks rows by tuples of indices. Axes of the batch are one outer axis."""
    x_shape, shape, batch = b.spec(node.inputs[0]).shape, b.spec(node.inputs[1]).shape, node.attrs["batch_dims"]
    depth, outer = shape[-1], math.prod(x_shape[:batch])
    rows = x_shape[batch : batch + depth]
    x = _table(b, node.inputs[0], (outer, *rows, math.prod(x_shape[batch + depth :])))
    indices, y = b.values.dense(node.inputs[1]), b.values.new_dense(node.outputs[0])
    count = math.prod(shape[batch:-1])
    tuples, picked = View.dense((outer, count, depth)), View.dense((outer, count, x.view.shape[-1]))
    kernel = emit_gather(Gather(x.view, tuples, picked, x.storage.dtype, indices.storage.dtype), b.isa)
    faults = {f"fault{d}": b.calls.watch(node, size) for d, size in enumerate(rows)}
    b.calls.append(kernel, {"x": x.storage, "indices": indices.storage, "y": y.storage, **faults})
    apply_fused(b, node, y)


def lower_elements(b: Lowering, node: Node) -> None:
    """Append a call that picks elements one by one."""
    axis = node.attrs["axis"] % b.spec(node.inputs[0]).rank
    x, indices = b.values.strided(node.inputs[0]), b.values.dense(node.inputs[1])
    y = b.values.new_dense(node.outputs[0])
    what = Elements(x.view, indices.view, y.view, axis, None, x.storage.dtype, indices.storage.dtype)
    places = {"indices": indices.storage, "other": y.storage, "table": x.storage}
    b.calls.append(emit_elements(what, b.isa), {**places, "fault": b.calls.watch(node, x.view.shape[axis])}, ("other",))
    apply_fused(b, node, y)


def _table(b: Lowering, value: str, shape: tuple[int, ...]) -> Viewed:
    """Return a value under another shape, the last dimension contiguous."""
    array = b.constants.get(value)
    if array is not None and array.flags.c_contiguous and array.flags.aligned:  # tables are large: read in place, without a copy
        return Viewed(b.packed.storage(array, "in place", lambda: array.reshape(-1), array.dtype), View.dense(shape))
    for place in b.values.places(value):
        seen = None if (found := place.strided) is None else found.view.reshaped(shape)
        if seen is not None and (shape[-1] == 1 or seen.strides[-1] == 1):
            return Viewed(place.storage, seen)
    return b.values.dense(value).under(View.dense(shape))


def _copies(lower: Callable[[Lowering, Node], None], refuses: Callable[[Node, Facts], str | None] = refuses_fused) -> Rule:
    """Return the rule of an operator that copies rows."""
    return one_algorithm("rows", refuses, lower, kind="copy", wants="rows")


RULES = {"Gather": _copies(lower, refuses), "GatherND": _copies(lower_nd), "GatherElements": _copies(lower_elements)}
