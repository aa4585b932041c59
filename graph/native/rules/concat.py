"""Concatenations: producers that can write their input in place do; other inputs are copied."""

from __future__ import annotations

from graph.ir import Node
from graph.native.facts import F32, Kept
from graph.native.lowering import Lowering
from graph.native.place import Imaged, is_image
from graph.native.rule import one_algorithm, unfused_values
from graph.native.rules.channels import fits, in_blocks, pick_channels
from graph.native.rules.elementwise import apply_fused_in_blocks, fused_operands, refuses_fused

# Ops whose kernels write where their result is reserved.
_PRODUCERS = ("Conv", "ConvTranspose", "MaxPool", "AveragePool", "Resize", "Upsample")


def reserve(b: Lowering, node: Node) -> None:
    """Reserve parts of the result for the producers of the images that a concatenation joins.

    What is fused behind it overwrites the parts, so then the concatenation must be all that reads them.
    """
    value = node.outputs[0]
    shape = b.spec(value).shape
    if b.spec(value).dtype != F32 or not is_image(shape) or node.attrs["axis"] % len(shape) != 1:
        return
    sizes = [b.spec(name).shape[1] for name in node.inputs]
    if len(set(node.inputs)) < len(node.inputs) or not all(sizes) or any(size % b.isa.lanes for size in sizes[:-1]):
        return
    whole = Imaged.new(value, b.facts.image_in_blocks(value), b.facts.memory_dtype(value))
    b.values.reserve(value, whole)
    first = 0
    for name, size in zip(node.inputs, sizes, strict=True):
        producer = b.dataflow.producer(name)
        goes_there = producer is not None and producer.op in _PRODUCERS and name not in b.dataflow.results
        goes_there = goes_there and (not node.epilogue or b.dataflow.only_reader(name) is node)
        if goes_there and b.values.reserved(name) is None:
            b.values.reserve(name, whole.part(first, size))
        first += size


def lower(b: Lowering, node: Node) -> None:
    """Append copies of the inputs that are not in place yet, in blocks where the inputs are."""
    value = node.outputs[0]
    if (kept := b.facts.kept.get(value)) is not None:
        _append(b, node, kept)
        return
    whole = b.values.reserved(value)
    if isinstance(whole, Imaged):
        b.values.define(value, whole)
        first = 0
        for name in node.inputs:
            size = b.spec(name).shape[1]
            part = whole.part(first, size)
            if b.values.place(name) != part:
                blocks = b.values.blocked(name)
                b.calls.map((part, part.blocks), [(blocks, blocks.blocks)])
            first += size
        apply_fused_in_blocks(b, node, whole)
        return
    if _stays_in_blocks(b, node):
        made = pick_channels(b, value, [b.values.blocked(name) for name in node.inputs], _order(b, node))
        apply_fused_in_blocks(b, node, made)
        return
    y = b.values.new(value)
    axis, first = node.attrs["axis"] % len(y.view.shape), 0
    for name in node.inputs:
        count = b.spec(name).shape[axis]
        if not count:  # of a constant
            continue
        source = b.values.strided(name)
        places, steps = fused_operands(b, node, source)
        parts = [p.view if p is source else p.view.broadcast(y.view.shape).sliced(axis, first, count) for p in places]
        b.calls.map((y, y.view.sliced(axis, first, count)), list(zip(places, parts, strict=True)), steps)
        first += count


def _append(b: Lowering, node: Node, kept: Kept) -> None:
    """Copy what is appended to a value that grows behind what is there."""
    before, new = node.inputs
    shape = b.spec(node.outputs[0]).shape
    whole = b.values.strided(before).under(kept.view(shape))
    b.values.define(node.outputs[0], whole)
    source, first = b.values.strided(new), b.spec(before).shape[kept.axis]
    b.calls.map((whole, whole.view.sliced(kept.axis, first, shape[kept.axis] - first)), [(source, source.view)])


def _stays_in_blocks(b: Lowering, node: Node) -> bool:
    """Whether it joins channels of images of which at least one lies in blocks."""
    shape = b.spec(node.outputs[0]).shape
    along = is_image(shape) and node.attrs["axis"] % len(shape) == 1
    full = along and any(in_blocks(b, name) for name in node.inputs) and all(b.spec(name).elements for name in node.inputs)
    return full and fits(b, _order(b, node))


def _order(b: Lowering, node: Node) -> list[tuple[int, int]]:
    """Return for each channel of the result its input and its channel there."""
    return [(n, channel) for n, name in enumerate(node.inputs) for channel in range(b.spec(name).shape[1])]


RULES = {"Concat": one_algorithm("copy", refuses_fused, lower, reserve=reserve, holds=unfused_values, moves=True)}
