"""Ops that copy elements to other positions: repetition, padding, and moves between pixels and channels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from graph.ir import Node
from graph.native.facts import Facts, optional_input
from graph.native.lowering import Lowering
from graph.native.place import Imaged, Place
from graph.native.rule import one_algorithm
from graph.native.rules.elementwise import apply_fused, refuses_fused
from graph.native.rules.view import define_view
from kernels.native.families.elementwise import emit_map
from kernels.native.families.rearrange import pad_tensor
from kernels.native.memory.view import View
from kernels.ops.pad import amounts_of
from kernels.spec import Array, Spec

MAX_SIDES = 3  # axes padded in a mode other than constant: each triples the number of calls


def _expand(b: Lowering, node: Node) -> None:
    """Define a broadcast view."""
    place = b.values.strided(node.inputs[0])
    define_view(b, node, place.under(place.view.broadcast(b.spec(node.outputs[0]).shape)))


def _tile(b: Lowering, node: Node) -> None:
    """Append one copy; each axis of both sides is seen as (repeats, size)."""
    x, y = b.values.strided(node.inputs[0]), b.values.new_dense(node.outputs[0])
    pairs = [n for whole, size in zip(y.view.shape, x.view.shape, strict=True) for n in (whole // size, size)]
    strides = [n for stride in x.view.strides for n in (0, stride)]
    b.calls.map((y, View.dense(pairs)), [(x, View(tuple(pairs), tuple(strides), x.view.offset))])
    apply_fused(b, node, y)


def _depth_to_space(b: Lowering, node: Node) -> None:
    """Append one copy; the result is seen as (n, c, h, block, w, block)."""
    x, y, size = b.values.strided(node.inputs[0]), b.values.new_dense(node.outputs[0]), node.attrs["blocksize"]
    n, c, h, w = x.view.shape
    (ns, cs, hs, ws), depth = x.view.strides, c // size**2
    by_pixel, by_channel = (depth * cs, cs) if node.attrs["mode"] == "DCR" else (cs, size * size * cs)
    shape, strides = (n, depth, h, size, w, size), (ns, by_channel, hs, size * by_pixel, ws, by_pixel)
    b.calls.map((y, View.dense(shape)), [(x, View(shape, strides, x.view.offset))])
    apply_fused(b, node, y)


def _space_to_depth(b: Lowering, node: Node) -> None:
    """Append one copy; x is seen as (n, block, block, c, h, w), or with the channels before the blocks in mode CRD."""
    x, y, size = b.values.strided(node.inputs[0]), b.values.new_dense(node.outputs[0]), node.attrs["blocksize"]
    n, c, h, w = x.view.shape
    ns, cs, hs, ws = x.view.strides
    whole = View((n, c, size, size, h // size, w // size), (ns, cs, hs, ws, size * hs, size * ws), x.view.offset)
    seen = whole.transposed((0, 2, 3, 1, 4, 5)) if node.attrs["mode"] == "DCR" else whole
    b.calls.map((y, View.dense(seen.shape)), [(x, seen)])
    apply_fused(b, node, y)


def _refuses_pad(node: Node, facts: Facts) -> str | None:
    """Return why a Pad has no native form, or None."""
    if facts.computed(node.inputs[1:]):
        return "its pads or its fill are not constants"
    x, mode = facts.spec(node.inputs[0]), node.attrs["mode"]
    sides = _sides(node, x, facts.constants)
    if mode != "constant":
        if sum(max(side) > 0 for side in sides) > MAX_SIDES:
            return f"more than {MAX_SIDES} axes are padded in mode {mode}"
        for size, (before, after) in zip(x.shape, sides, strict=True):
            left = size + min(before, 0) + min(after, 0)
            most = {"reflect": left - 1, "wrap": left}.get(mode, max(before, after))
            if max(before, after, 0) > max(most, 0):
                return f"an axis of {left} is padded by {max(before, after)}, mode {mode} allows {most}"
    return refuses_fused(node, facts)


def _sides(node: Node, x: Spec, constants: Mapping[str, Array]) -> list[tuple[int, int]]:
    """Return how many elements are added before and after each axis; negative where elements are cut."""
    axes = optional_input(node, 3)
    return amounts_of(x.rank, Spec.of(constants[node.inputs[1]]), Spec.of(constants[axes]) if axes else None)


def _pad(b: Lowering, node: Node) -> None:
    """Append a copy of x, and the padding around it. An image in blocks stays in blocks where only its plane is padded."""
    value, spec = node.outputs[0], b.spec(node.inputs[0])
    sides = _sides(node, spec, b.constants)
    source = b.values.place(node.inputs[0])
    if isinstance(source, Imaged) and source.strided is None and not node.epilogue and not any(map(any, sides[:2])):
        image = b.values.new_image(value)
        plane = [(0, 0)] * (4 - spec.rank) + sides[2:]
        _around(b, node, (source, source.blocks), (image, image.blocks), [*sides[:2], *plane, (0, 0)])
        return
    x, y = b.values.strided(node.inputs[0]), b.values.new_dense(value)
    _around(b, node, (x, x.view), (y, y.view), sides)
    apply_fused(b, node, y)


def _around(b: Lowering, node: Node, x: tuple[Place, View], y: tuple[Place, View], sides: Sequence[tuple[int, int]]) -> None:
    """Append the calls that fill y with x and its padding. sides: before and after each axis of the views."""
    given = optional_input(node, 2)
    fill = b.constants[given].item() if given else 0
    kept = x[1]
    for axis, (before, after) in enumerate(sides):
        kept = kept.sliced(axis, max(-before, 0), kept.shape[axis] + min(before, 0) + min(after, 0))
    storages = {"x0": x[0].storage, "y": y[0].storage}
    for each in pad_tensor(kept, y[1], [max(before, 0) for before, _ in sides], node.attrs["mode"], fill, storages["y"].dtype):
        kernel = emit_map(each, b.isa)
        b.calls.append(kernel, {name: storages[name] for name in kernel.arguments})


RULES = {
    "Expand": one_algorithm("view", refuses_fused, _expand, wants="rows", view=True),
    "Tile": one_algorithm("copy", refuses_fused, _tile),
    "DepthToSpace": one_algorithm("copy", refuses_fused, _depth_to_space),
    "SpaceToDepth": one_algorithm("copy", refuses_fused, _space_to_depth),
    "Pad": one_algorithm("copy", _refuses_pad, _pad),
}
