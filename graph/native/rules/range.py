"""Ranges of whole numbers whose bounds follow from shapes: numbers that are made when sizes are bound, and no work in a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from graph.ir import Node
from graph.native.facts import Facts
from graph.native.lowering import Lowering
from graph.native.place import Storage, Viewed
from graph.native.rule import one_algorithm
from graph.native.rules.elementwise import refuses_fused
from graph.native.rules.view import define_view
from kernels.native.memory.view import View
from kernels.spec import Spec


def _refuses(node: Node, facts: Facts) -> str | None:
    start, limit, step = (facts.spec(name) for name in node.inputs)
    if start.dtype != np.int64:
        return f"its numbers are {start.dtype.name}, need int64"
    if start.value is None or limit.value is None or step.value is None:
        return "its bounds do not follow from shapes"
    return refuses_fused(node, facts)


def _lower(b: Lowering, node: Node) -> None:
    start, _, step = (b.spec(name) for name in node.inputs)
    shape = b.spec(node.outputs[0]).shape
    storage = Storage.of_sizes(node.outputs[0], _progression, (_number(start), _number(step), *shape))
    define_view(b, node, Viewed(storage, View.dense(shape)))


def _number(spec: Spec) -> Any:
    return spec.known("Range").item()


def _progression(start: int, step: int, count: int) -> Sequence[int]:
    return range(start, start + count * step, step)


RULES = {"Range": one_algorithm("range", _refuses, _lower)}
