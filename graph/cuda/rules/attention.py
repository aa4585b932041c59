"""Attention over heads in any strides: slices of one matrix, packed side by side, or transposed."""

from __future__ import annotations

from graph.cuda.facts import F32, Facts
from graph.cuda.finishing import behind, finish
from graph.cuda.layouts import is_aligned, storage_of
from graph.cuda.lowering import Lowering, Option
from graph.cuda.rule import Rule
from graph.ir import Node
from graph.native.facts import optional_input
from graph.native.place import Viewed
from kernels.cuda.families.attention import AttentionForm, Mask
from kernels.cuda.families.attention_problem import Attention, Steps
from kernels.cuda.families.candidates import attention_candidates
from kernels.native.memory.view import View
from kernels.spec import BOOL

WIDEST = 256  # elements of a head
# Tiles of queries, warps, keys and teams that are fast on an H200 at batch 1, of 128 and 197 tokens (2026-12-01).
GOOD = ((1, 2, 64, 2), (1, 2, 64, 4), (1, 2, 32, 4), (1, 1, 32, 4), (1, 2, 32, 2), (1, 2, 128, 2), (2, 1, 64, 4), (1, 4, 64, 1))


def refuses(node: Node, facts: Facts) -> str | None:
    """Return why an Attention cannot run on a GPU, or None."""
    if any(node.inputs[4:]) or any(node.outputs[1:]):
        return "it has a cache, lengths, or more than one output"
    mask = optional_input(node, 3)
    if reason := facts.not_f32(*node.inputs[:3], node.outputs[0]):
        return reason
    if mask and facts.spec(mask).dtype not in (BOOL, F32):
        return f"its mask is {facts.spec(mask)}, need bool or fp32"
    attrs = node.attrs
    if attrs["softcap"] or max(attrs["left_window_size"], attrs["right_window_size"]) >= 0:
        return "its scores are capped, or seen through a window"
    if mask and facts.spec(mask).shape[-1] != facts.spec(node.inputs[1]).shape[-2]:
        return "its mask is shorter than the keys"
    if attrs["scale"] is not None and attrs["scale"] <= 0:
        return f"its scale is {attrs['scale']}, need more than 0"
    q, k, v = (
        _by_head(View.dense(facts.spec(name).shape), attrs[heads]) for name, heads in zip(node.inputs, _HEADS, strict=False)
    )
    if q.shape[3] > WIDEST or q.shape[3] != v.shape[3]:
        return f"its heads have {q.shape[3]} and {v.shape[3]} elements, need equally many, {WIDEST} at most"
    if q.shape[3] % 4:
        return f"its heads have {q.shape[3]} elements, need a multiple of 4"
    if attrs["is_causal"] and q.shape[2] != k.shape[2]:
        return "it is causal, with fewer queries than keys"
    return facts.refuses_epilogue(node)


_HEADS = ("q_num_heads", "kv_num_heads", "kv_num_heads")


def lower(b: Lowering, node: Node) -> None:
    """Append an attention in every way that the GPU has room for."""
    attrs = node.attrs
    q, k, v = (_heads(b, value, attrs[heads]) for value, heads in zip(node.inputs, _HEADS, strict=False))
    batch, heads, queries, depth = q.view.shape
    value = node.outputs[0]
    made = Viewed.new(value, (batch, queries, heads, depth), b.dtype)  # as what follows joins the heads of a token
    y = made.view.transposed((0, 2, 1, 3))
    shape = b.spec(value).shape
    whole = made.under(y) if len(shape) == 4 else made.under(View.dense(shape))
    b.define(value, whole)
    names = {"q": b.address(q), "k": b.address(k), "v": b.address(v), "y": b.address(made)}
    mask: tuple[int, int, int, int] | None = None
    kind: Mask | None = None
    if wanted := optional_input(node, 3):
        place = b.place(wanted)
        of_batch, of_head, of_query, of_key = place.view.broadcast((batch, heads, queries, k.view.shape[2])).strides
        mask = of_batch, of_head, of_query, of_key
        kind = "bool" if place.storage.dtype == BOOL else storage_of(place.storage.dtype)
        names["mask"] = b.address(place)
    scale = depth**-0.5 if attrs["scale"] is None else float(attrs["scale"])
    keys = k.view.shape[2]
    of_q, of_k, of_v, of_y = (_steps(view) for view in (q.view, k.view, v.view, y))
    attention = Attention(batch, heads, k.view.shape[1], queries, keys, depth, of_q, of_k, of_v, of_y, scale, mask)
    forms = attention_candidates(b.precision, attention, b.device, causal=bool(attrs["is_causal"]), mask=kind)
    ranked = sorted(forms, key=_rank)
    b.launch(
        "attention",
        *(
            Option(
                attention.launch(form, **names),
                (
                    ("keys", str(form.keys)),
                    ("tall", str(form.tall)),
                    ("teams", str(form.teams)),
                    ("warps", str(form.warps)),
                ),
            )
            for form in ranked
        ),
    )
    finish(b, node, whole, behind(b, node))


def _rank(form: AttentionForm) -> int:
    """Return where a form stands among those that are fast at batch 1, the others behind these."""
    shape = form.tall, form.warps, form.keys, form.teams
    return GOOD.index(shape) if shape in GOOD else len(GOOD)


def _steps(view: View) -> Steps:
    batch, head, row, _ = view.strides
    return batch, head, row


def _heads(b: Lowering, value: str, heads: int | None) -> Viewed:
    """Return a value as (batch, heads, length, size) with the elements of a head side by side."""
    place = b.place(value)
    seen = _by_head_or_none(place.view, heads)
    if seen is not None and seen.strides[3] == 1 and is_aligned(place):
        return place.under(seen)
    place = b.dense(value)
    return place.under(_by_head(place.view, heads))


def _by_head(view: View, heads: int | None) -> View:
    seen = _by_head_or_none(view, heads)
    assert seen is not None, f"{view}: a dense view must split into {heads} heads"  # noqa: S101
    return seen


def _by_head_or_none(view: View, heads: int | None) -> View | None:
    """Return a view as (batch, heads, length, size): as it is with rank 4, with its last dimension split with rank 3."""
    if len(view.shape) == 4:
        return view
    batch, length, width = view.shape
    apart = view.reshaped((batch, length, heads or 1, width // (heads or 1)))
    return None if apart is None else apart.transposed((0, 2, 1, 3))


RULES = {"Attention": Rule(refuses, lower)}
