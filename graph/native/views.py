"""Reshapes, transposes and slices: other names for memory where strides can say so."""

from __future__ import annotations

from graph.ir import Node
from graph.native.elementwise import tape_behind
from graph.native.lowering import Lowering, overwritable
from graph.native.place import Viewed
from graph.native.rule import Facts, Rule, is_f32, only, plain
from kernels.native.view import View


def _refuses(node: Node, facts: Facts) -> str | None:
    """Why a reshape or transpose has no native form, or None."""
    if not is_f32(facts.spec(node.inputs[0]), facts.spec(node.outputs[0])):
        return "it is not fp32"
    return facts.refuses_epilogue(node)


def _define(b: Lowering, node: Node, place: Viewed) -> None:
    """Let the node's value be that memory, or what is fused behind the node makes of it."""
    if not node.epilogue:
        b.define(node.outputs[0], place)
        return
    operands, steps = tape_behind(b, node)
    made = b.new(node.outputs[0], overwritable(operands, [place]))
    whole = [(operand, operand.view.broadcast(made.view.shape)) for operand in operands]
    b.map((made, made.view), [(place, place.view), *whole], steps)


def _reshape(b: Lowering, node: Node) -> None:
    """Another shape for the same elements in the same order."""
    shape = b.spec(node.outputs[0]).shape
    for place in b.everywhere(node.inputs[0]):
        if (found := place.strided) is not None and (seen := found.view.reshaped(shape)) is not None:
            _define(b, node, found.under(seen))
            return
    _define(b, node, b.dense(node.inputs[0]).under(View.dense(shape)))


def _transpose(b: Lowering, node: Node) -> None:
    """The same elements with their dimensions in another order."""
    place = b.strided(node.inputs[0])
    axes = node.attrs["perm"] or tuple(range(len(place.view.shape)))[::-1]
    _define(b, node, place.under(place.view.transposed(axes)))


def _refuses_gather(node: Node, facts: Facts) -> str | None:
    index = facts.constants.get(node.inputs[1])
    if index is None or index.ndim:
        return "its index is no constant scalar"
    return _refuses(node, facts)


def _gather(b: Lowering, node: Node) -> None:
    """One element of a dimension."""
    place = b.strided(node.inputs[0])
    axis = node.attrs["axis"] % len(place.view.shape)
    index = int(b.constants[node.inputs[1]])
    _define(b, node, place.under(place.view.picked(axis, index % place.view.shape[axis])))


def _refuses_split(node: Node, facts: Facts) -> str | None:
    if not all(node.outputs):
        return "not all of its outputs are named"
    return "ops are fused behind it" if node.epilogue else _refuses(node, facts)


def _split(b: Lowering, node: Node) -> None:
    """Pieces of a dimension."""
    place = b.strided(node.inputs[0])
    axis, start = node.attrs["axis"] % len(place.view.shape), 0
    for value in node.outputs:
        count = b.spec(value).shape[axis]
        b.define(value, place.under(place.view.sliced(axis, start, count)))
        start += count


def _refuses_slice(node: Node, facts: Facts) -> str | None:
    if any(name and name not in facts.constants for name in node.inputs[1:]):
        return "its bounds are no constants"
    return _refuses(node, facts)


def _slice(b: Lowering, node: Node) -> None:
    """A range of some dimensions."""
    place = b.strided(node.inputs[0])
    view = place.view
    starts, ends, axes, steps = (b.constants[name].tolist() if name else [] for name in (*node.inputs[1:], "", "")[:4])
    for n, start in enumerate(starts):
        axis = (axes[n] if axes else n) % len(view.shape)
        taken = range(view.shape[axis])[start : ends[n] : steps[n] if steps else 1]
        view = view.sliced(axis, taken.start, len(taken), taken.step)
    _define(b, node, place.under(view))


_SHAPES = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout")
RULES = {
    **dict.fromkeys(_SHAPES, Rule(_refuses, _reshape, only("view"), plain("view", wants="rows"), view=True)),
    "Transpose": Rule(_refuses, _transpose, only("view"), plain("view", wants="rows"), view=True),
    "Gather": Rule(_refuses_gather, _gather, only("view"), plain("view", wants="rows"), view=True),
    "Split": Rule(_refuses_split, _split, only("view"), plain("view", wants="rows"), view=True),
    "Slice": Rule(_refuses_slice, _slice, only("view"), plain("view", wants="rows"), view=True),
}
