"""Reshapes, transposes and slices: views of memory where strides can express them, copies otherwise."""

from __future__ import annotations

from collections.abc import Callable

from graph.ir import Node
from graph.native.facts import Facts
from graph.native.lowering import Lowering
from graph.native.place import Viewed
from graph.native.rule import Rule, one_algorithm, unfused_values
from graph.native.rules.channels import fits, in_blocks, lower_shuffle, take_channels
from graph.native.rules.elementwise import fused_operands, refuses_fused
from graph.native.values import overwritable
from kernels.native.memory.view import View
from kernels.operands import taken_by_slice
from kernels.size import surely_equal


def define_view(b: Lowering, node: Node, place: Viewed) -> None:
    """Define a node's value as a view, or, with an epilogue, append the kernel that computes it from that view."""
    if not node.epilogue:
        b.values.define(node.outputs[0], place)
        return
    places, steps = fused_operands(b, node, place)
    made = b.values.new(node.outputs[0], overwritable(places))
    b.calls.map((made, made.view), [(each, each.view.broadcast(made.view.shape)) for each in places], steps)


def _reshape(b: Lowering, node: Node) -> None:
    """Define the elements in the same order under another shape."""
    if lower_shuffle(b, node):
        return
    shape = b.spec(node.outputs[0]).shape
    for place in b.values.places(node.inputs[0]):
        if (found := place.strided) is not None and (seen := found.view.reshaped(shape)) is not None:
            define_view(b, node, found.under(seen))
            return
    define_view(b, node, b.values.dense(node.inputs[0]).under(View.dense(shape)))


def _transpose(b: Lowering, node: Node) -> None:
    """Define a view with the dimensions in another order."""
    place = b.values.strided(node.inputs[0])
    axes = node.attrs["perm"] or tuple(range(len(place.view.shape)))[::-1]
    define_view(b, node, place.under(place.view.transposed(axes)))


def _refuses_dropout(node: Node, facts: Facts) -> str | None:
    if any(node.outputs[1:]) or any(node.inputs[2:]):
        return "its mask is used, or it may be training"
    return refuses_fused(node, facts)


def _refuses_split(node: Node, facts: Facts) -> str | None:
    if not all(node.outputs):
        return "not all of its outputs are named"
    return refuses_fused(node, facts)


def _split(b: Lowering, node: Node) -> None:
    """Define the parts of a dimension. An epilogue applies to the first part, and no other part is read then."""
    axis, start = node.attrs["axis"] % b.spec(node.inputs[0]).rank, 0
    image = in_blocks(b, node.inputs[0]) if axis == 1 and not node.epilogue else None
    if image is not None:
        for value in node.outputs:
            count = b.spec(value).shape[1]
            take_channels(b, value, image, range(start, start + count))
            start += count
        return
    place = b.values.strided(node.inputs[0])
    if node.epilogue:
        define_view(b, node, place.under(place.view.sliced(axis, 0, b.spec(node.outputs[0]).shape[axis])))
        return
    for value in node.outputs:
        count = b.spec(value).shape[axis]
        b.values.define(value, place.under(place.view.sliced(axis, start, count)))
        start += count


def _refuses_slice(node: Node, facts: Facts) -> str | None:
    if facts.computed(node.inputs[1:]):
        return "its bounds are not constants"
    return refuses_fused(node, facts)


def _slice(b: Lowering, node: Node) -> None:
    """Define ranges of some dimensions."""
    shape = b.spec(node.inputs[0]).shape
    starts, ends, axes, steps = (b.constants[name].tolist() if name else [] for name in (*node.inputs[1:], "", "")[:4])
    taken = {(axes[n] if axes else n) % len(shape): (start, ends[n], steps[n] if steps else 1) for n, start in enumerate(starts)}
    kept = {axis: taken_by_slice(shape[axis], *bounds) for axis, bounds in taken.items()}
    image = in_blocks(b, node.inputs[0]) if [a for a, k in kept.items() if not surely_equal(k, (0, shape[a], 1))] == [1] else None
    if image is not None and not node.epilogue:
        channels = range(kept[1].first, kept[1].first + kept[1].number * kept[1].step, kept[1].step)
        if fits(b, [(0, channel) for channel in channels]):
            take_channels(b, node.outputs[0], image, channels)
            return
    place = b.values.strided(node.inputs[0])
    view = place.view
    for axis, rows in kept.items():
        view = view.sliced(axis, *rows)
    define_view(b, node, place.under(view))


def _rule(lower: Callable[[Lowering, Node], None], refuses: Callable[[Node, Facts], str | None] = refuses_fused) -> Rule:
    return one_algorithm("view", refuses, lower, wants="rows", view=True, holds=unfused_values, moves=True)


RULES = {
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity"), _rule(_reshape)),
    "Transpose": _rule(_transpose),
    "Dropout": _rule(_reshape, _refuses_dropout),
    "Split": _rule(_split, _refuses_split),
    "Slice": _rule(_slice, _refuses_slice),
}
