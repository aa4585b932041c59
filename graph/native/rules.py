"""Every rule in one table: which ops have a native form."""

from __future__ import annotations

from collections.abc import Mapping

from graph.ir import Node
from graph.memory import is_static
from graph.native import (
    attentions,
    concats,
    conv_transposes,
    convolutions,
    elementwise,
    matrices,
    pools,
    reductions,
    resizes,
    rows,
    views,
)
from graph.native.rule import Facts, Rule

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
}


def refusal(node: Node, facts: Facts) -> str | None:
    """Why a node cannot run natively, or None."""
    rule = RULES.get(node.op)
    if rule is None:
        return f"{node.op} has no native form"
    if not is_static(node, facts.specs):
        return "its shapes are only known at run time"
    if any(len(facts.spec(name).shape) > 8 for name in (*node.reads(), *node.writes())):
        return "a value has more than 8 dimensions"
    return rule.refuses(node, facts)
