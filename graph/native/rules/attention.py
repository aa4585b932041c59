"""Attention over heads in any strides: slices of one matrix, packed side by side, or transposed."""

from __future__ import annotations

import math

from graph.ir import Node
from graph.native.facts import F32, Facts, optional_input
from graph.native.lowering import Lowering
from graph.native.place import Storage, Viewed
from graph.native.rule import one_algorithm
from graph.native.rules.elementwise import apply_fused, refuses_fused
from kernels.expression import Apply
from kernels.native.families.attention import Attention, attention_tiles, emit_attention
from kernels.native.memory.view import View
from kernels.spec import BOOL


def refuses(node: Node, facts: Facts) -> str | None:
    """Return why an Attention has no native form, or None."""
    if any(node.inputs[4:]) or any(node.outputs[1:]):
        return "it has a cache, lengths, or more than one output"
    masks = [name for name in (_mask(node),) if name and facts.spec(name).dtype != BOOL]
    if reason := facts.not_f32(*node.inputs[:3], *masks, node.outputs[0]):
        return reason
    attrs = node.attrs
    if attrs["softcap"] or max(attrs["left_window_size"], attrs["right_window_size"]) >= 0:
        return "its scores are capped, or seen through a window"
    if _mask(node) and facts.spec(_mask(node)).shape[-1] != facts.spec(node.inputs[1]).shape[-2]:
        return "its mask is shorter than the keys"
    return refuses_fused(node, facts)


def lower(b: Lowering, node: Node) -> None:
    """Append one call, after copies of operands whose heads have gaps, and one for an epilogue."""
    attrs = node.attrs
    names = ("q_num_heads", "kv_num_heads", "kv_num_heads")
    places = {what: _heads(b, value, attrs[name]) for what, value, name in zip("qkv", node.inputs, names, strict=False)}
    y = b.values.new(node.outputs[0])
    seen = _by_head(y.view, attrs["q_num_heads"])
    if seen is None or _has_gaps(seen):
        y = b.values.new_dense(node.outputs[0])
        seen = _by_head(y.view, attrs["q_num_heads"])
    mask = None
    if _mask(node):
        places["mask"] = _added(b, _mask(node))
        shape = places["mask"].view.shape
        mask = View.dense((1,) * (4 - len(shape)) + shape)
    q, k, v = (places[what].view for what in "qkv")
    scale = 1 / math.sqrt(q.shape[3]) if attrs["scale"] is None else float(attrs["scale"])
    attention = Attention(q, k, v, seen or y.view, scale, mask, causal=bool(attrs["is_causal"]), blind="zero")
    kernel = emit_attention(attention, attention_tiles(attention, b.isa, 1)[0], b.isa)
    b.calls.append(kernel, {name: place.storage for name, place in (*places.items(), ("y", y))})
    apply_fused(b, node, y)


def _mask(node: Node) -> str:
    return optional_input(node, 3)


def _added(b: Lowering, mask: str) -> Viewed:
    """Return a mask as numbers to add to the scores; a mask of bools becomes 0 for true and -infinity for false."""
    place = b.values.dense(mask)
    if place.storage.dtype != BOOL:
        return place
    made = Viewed(Storage(mask, place.view.size, F32), place.view)
    seen, hidden = (Apply("constant", (), (value,)) for value in (0.0, -math.inf))
    b.calls.map((made, made.view), [(place, place.view)], [seen, hidden, Apply("where", (0, 1, 2))])
    return made


def _heads(b: Lowering, value: str, heads: int | None) -> Viewed:
    """Return a value as (batch, heads, length, size) with the elements of a head contiguous."""
    place = b.values.strided(value)
    seen = _by_head(place.view, heads)
    if seen is None or _has_gaps(seen):
        place = b.values.dense(value)
        seen = _by_head(place.view, heads)
    return place.under(seen or place.view)


def _by_head(view: View, heads: int | None) -> View | None:
    """Return a view as (batch, heads, length, size): as it is with rank 4, with its last dimension split with rank 3."""
    if len(view.shape) == 4:
        return view
    batch, length, width = view.shape
    apart = view.reshaped((batch, length, heads or 1, width // (heads or 1)))
    return None if apart is None else apart.transposed((0, 2, 1, 3))


def _has_gaps(view: View) -> bool:
    return view.shape[3] > 1 and view.strides[3] != 1


RULES = {"Attention": one_algorithm("fused", refuses, lower, kind="attention", wants="rows")}
