"""Running sums and products along an axis that is a constant of the model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

from graph.ir import Node
from graph.native.facts import Facts
from graph.native.lowering import Lowering
from graph.native.rule import one_algorithm
from graph.native.rules.elementwise import apply_fused, refuses_fused
from kernels.native.families.cumulative import Cumulative, emit_cumulative
from kernels.native.memory.view import View

_KINDS: Mapping[str, Literal["add", "mul"]] = {"CumSum": "add", "CumProd": "mul"}


def refuses(node: Node, facts: Facts) -> str | None:
    """Return why a running total has no native form, or None."""
    if node.inputs[1] not in facts.constants:
        return f"its axis {node.inputs[1]!r} is not a constant"
    return refuses_fused(node, facts)


def lower(b: Lowering, node: Node) -> None:
    """Append the call of the totals, and of what is fused behind them."""
    shape = b.spec(node.inputs[0]).shape
    axis = b.constants[node.inputs[1]].item() % max(len(shape), 1)
    view = View.dense((math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])))
    x, y = b.values.dense(node.inputs[0]), b.values.new_dense(node.outputs[0])
    what = Cumulative(view, view, _KINDS[node.op], x.storage.dtype, bool(node.attrs["exclusive"]), bool(node.attrs["reverse"]))
    b.calls.append(emit_cumulative(what, b.isa), {"x": x.storage, "y": y.storage})
    apply_fused(b, node, y)


RULES = dict.fromkeys(_KINDS, one_algorithm("cumulative", refuses, lower))
