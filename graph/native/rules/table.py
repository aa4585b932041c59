"""Every rule in one table: which ops have a native form."""

from __future__ import annotations

from collections.abc import Mapping

from graph.ir import Node
from graph.memory import is_static
from graph.native.facts import VALUES, Facts
from graph.native.rule import Rule
from graph.native.rules import attention as attentions
from graph.native.rules import concat as concats
from graph.native.rules import conv as convolutions
from graph.native.rules import conv_transpose as conv_transposes
from graph.native.rules import elementwise
from graph.native.rules import gather as gathers
from graph.native.rules import matmul as matrices
from graph.native.rules import normalize as rows
from graph.native.rules import pool as pools
from graph.native.rules import rearrange as moves
from graph.native.rules import reduce as reductions
from graph.native.rules import resize as resizes
from graph.native.rules import view as views

MAX_RANK = 8
RULES: Mapping[str, Rule] = {
    **convolutions.RULES,
    **conv_transposes.RULES,
    **pools.RULES,
    **resizes.RULES,
    **matrices.RULES,
    **views.RULES,
    **rows.RULES,
    **reductions.RULES,
    **attentions.RULES,
    **elementwise.RULES,
    **concats.RULES,
    **moves.RULES,
    **gathers.RULES,
}


def refusal(node: Node, facts: Facts) -> str | None:
    """Why a node cannot run natively, or None."""
    rule = RULES.get(node.op)
    if rule is None:
        return f"{node.op} has no native form"
    if not is_static(node, facts.specs):
        return "its shapes are only known at run time"
    found = (_refuses_value(name, facts) for name in (*node.reads(), *node.writes()))
    return next((reason for reason in found if reason), None) or rule.refuses(node, facts)


def _refuses_value(name: str, facts: Facts) -> str | None:
    """Why no segment holds a value, or None. Empty constants only say things, like the shape of a scalar."""
    spec = facts.spec(name)
    if spec.dtype not in VALUES:
        return f"{name!r} is {spec}, a segment holds float32, float64, bools and integers of 8 to 64 bits"
    if spec.rank > MAX_RANK:
        return f"{name!r} has {spec.rank} dimensions, kernels loop over {MAX_RANK}"
    return f"{name!r} is empty" if not spec.elements and name not in facts.constants else None
