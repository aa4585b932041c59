"""Concatenations: producers that can write their input in place do; other inputs are copied."""

from __future__ import annotations

from graph.cuda.facts import F32, Facts
from graph.cuda.layouts import is_aligned, new_view
from graph.cuda.lowering import Lowering
from graph.cuda.rule import Rule
from graph.ir import Node
from graph.native.expressions import express_epilogue
from graph.native.place import Viewed
from kernels.native.memory.view import View
from kernels.registry import find

_PRODUCERS = ("Conv", "MaxPool", "AveragePool")  # whose kernels write pixels at any distance


def refuses(node: Node, facts: Facts) -> str | None:
    """Return why a Concat cannot run on a GPU, or None."""
    if not all(facts.spec(name).elements for name in node.inputs):
        return "one of its inputs is empty"
    return facts.refuses_epilogue(node)


def reserve(b: Lowering, node: Node) -> None:
    """Reserve parts of an image's channels for the producers of what a concatenation joins."""
    value = node.outputs[0]
    shape = b.spec(value).shape
    axis = node.attrs["axis"] % len(shape)
    if b.spec(value).dtype != F32 or len(shape) != 4 or axis != 1 or node.epilogue or len(set(node.inputs)) < len(node.inputs):
        return
    whole = b.reserved(value) or Viewed.new(value, shape, b.dtype).under(new_view(shape, "pixels"))
    b.reserve(value, whole)
    first = 0
    for name in node.inputs:
        count = b.spec(name).shape[1]
        part = whole.under(whole.view.sliced(1, first, count))
        producer = b.dataflow.producer(name)
        writes = producer is not None and (producer.op in _PRODUCERS or find(producer.op).expression is not None)
        if writes and is_aligned(part) and name not in b.dataflow.results and b.reserved(name) is None:
            b.reserve(name, part)
        first += count


def lower(b: Lowering, node: Node) -> None:
    """Append copies of the inputs that are not in place yet, or maps where something is fused behind."""
    value = node.outputs[0]
    shape = b.spec(value).shape
    axis, first = node.attrs["axis"] % len(shape), 0
    places = [b.place(name) for name in node.inputs]
    bound = express_epilogue(node, b.facts.sources)
    others = [b.place(name) for name in bound.operands[1:]]
    largest = max(places, key=lambda place: place.view.size)
    y = b.new_like(value, View(shape, largest.view.strides))
    for place in places:
        count = place.view.shape[axis]
        part = y.under(y.view.sliced(axis, first, count))
        if bound.expression.steps:
            mine = [other.under(other.view.broadcast(shape).sliced(axis, first, count)) for other in others]
            b.map(part, [place, *mine], bound.expression)
        elif (place.storage, place.view) != (part.storage, part.view):
            b.copy(place, part)
        first += count


RULES = {"Concat": Rule(refuses, lower, reserve=reserve)}
