"""Reshapes, transposes, slices and expansions: views of memory where strides can express them, copies otherwise."""

from __future__ import annotations

from graph.cuda.facts import Facts
from graph.cuda.lowering import Lowering
from graph.cuda.rule import Rule
from graph.ir import Node
from graph.native.expressions import express_epilogue
from graph.native.place import Viewed
from kernels.native.memory.view import View
from kernels.operands import taken_by_slice


def refuses(node: Node, facts: Facts) -> str | None:
    """Return why an op that renames memory cannot run on a GPU, or None."""
    return facts.refuses_epilogue(node)


def define_view(b: Lowering, node: Node, place: Viewed) -> None:
    """Define a node's value as a view, or, with an epilogue, append the map that computes it from that view."""
    value = node.outputs[0]
    if not node.epilogue:
        b.define(value, place)
        return
    bound = express_epilogue(node, b.facts.sources)
    y = b.new_like(value, place.view)
    b.map(y, [b.place(name) if name else place for name in bound.operands], bound.expression)


def _reshape(b: Lowering, node: Node) -> None:
    """Define the elements in the same order under another shape."""
    shape = b.spec(node.outputs[0]).shape
    place = b.place(node.inputs[0])
    seen = place.view.reshaped(shape)
    define_view(b, node, b.dense(node.inputs[0]).under(View.dense(shape)) if seen is None else place.under(seen))


def _transpose(b: Lowering, node: Node) -> None:
    """Define a view with the dimensions in another order."""
    place = b.place(node.inputs[0])
    axes = node.attrs["perm"] or tuple(range(len(place.view.shape)))[::-1]
    define_view(b, node, place.under(place.view.transposed(axes)))


def _refuses_dropout(node: Node, facts: Facts) -> str | None:
    if any(node.outputs[1:]) or facts.computed(node.inputs[2:]):
        return "its mask is used, or its training mode is not a constant"
    return refuses(node, facts)


def _refuses_split(node: Node, facts: Facts) -> str | None:
    if not all(node.outputs) or node.epilogue:
        return "not all of its outputs are named, or something is fused behind one"
    return None


def _split(b: Lowering, node: Node) -> None:
    """Define the parts of a dimension."""
    place, start = b.place(node.inputs[0]), 0
    axis = node.attrs["axis"] % len(place.view.shape)
    for value in node.outputs:
        count = b.spec(value).shape[axis]
        b.define(value, place.under(place.view.sliced(axis, start, count)))
        start += count


def _refuses_slice(node: Node, facts: Facts) -> str | None:
    if facts.computed(node.inputs[1:]):
        return "its bounds are not constants"
    if len(node.inputs) > 4 and node.inputs[4] and min(facts.constants[node.inputs[4]].tolist()) < 0:
        return "it goes backwards"
    return refuses(node, facts)


def _slice(b: Lowering, node: Node) -> None:
    """Define ranges of some dimensions."""
    place = b.place(node.inputs[0])
    shape, view = place.view.shape, place.view
    starts, ends, axes, steps = (b.constants[name].tolist() if name else [] for name in (*node.inputs[1:], "", "")[:4])
    for n, start in enumerate(starts):
        axis = (axes[n] if axes else n) % len(shape)
        view = view.sliced(axis, *taken_by_slice(shape[axis], start, ends[n], steps[n] if steps else 1))
    define_view(b, node, place.under(view))


def _expand(b: Lowering, node: Node) -> None:
    """Define a view that repeats elements."""
    place = b.place(node.inputs[0])
    define_view(b, node, place.under(place.view.broadcast(b.spec(node.outputs[0]).shape)))


_SHAPES = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity")
RULES = {
    **dict.fromkeys(_SHAPES, Rule(refuses, _reshape, view=True)),
    "Transpose": Rule(refuses, _transpose, view=True),
    "Dropout": Rule(_refuses_dropout, _reshape, view=True),
    "Split": Rule(_refuses_split, _split, view=True),
    "Slice": Rule(_refuses_slice, _slice, view=True),
    "Expand": Rule(refuses, _expand, view=True),
}
