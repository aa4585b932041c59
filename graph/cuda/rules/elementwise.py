"""Elementwise ops that are not fused into another node, with their epilogues: one map that reads each operand once."""

from __future__ import annotations

from collections.abc import Sequence

from graph.cuda.facts import Facts, refuses_expression
from graph.cuda.lowering import Lowering
from graph.cuda.rule import Rule
from graph.ir import Node
from graph.native.expressions import express
from graph.native.place import Viewed
from kernels.native.memory.view import View


def refuses(node: Node, facts: Facts) -> str | None:
    """Return why an elementwise op cannot run on a GPU, or None."""
    return refuses_expression(lambda: express(node, facts.sources), "it")


def lower(b: Lowering, node: Node) -> None:
    """Append one map over the order in which the largest operand lies."""
    bound = express(node, b.facts.sources)
    places = [b.place(name) for name in bound.operands]
    y = b.new_like(node.outputs[0], order_of(places, b.spec(node.outputs[0]).shape))
    b.map(y, places, bound.expression)


def order_of(places: Sequence[Viewed], shape: tuple[int, ...]) -> View:
    """Return the view of an operand that has the result's shape, whose order the result takes; row-major without any."""
    return next((place.view for place in places if place.view.shape == shape), View.dense(shape))


RULE = Rule(refuses, lower)  # of every op that has an expression
