"""The table of all rules by op."""

from __future__ import annotations

from collections.abc import Mapping

from graph.cuda.facts import Facts
from graph.cuda.rule import Rule
from graph.cuda.rules import attention, concat, conv, elementwise, gather, pool, product, rows, view
from graph.ir import Node
from graph.memory import is_static
from graph.native.facts import VALUES
from kernels.registry import find, is_registered

_FAMILIES = (attention, concat, conv, gather, pool, product, rows, view)
RULES: Mapping[str, Rule] = {op: rule for family in _FAMILIES for op, rule in family.RULES.items()}

MOST_DIMENSIONS = 6
MOST_ELEMENTS = 1 << 31


def rule_of(op: str) -> Rule | None:
    """Return the rule of an op, or None where it has none."""
    if op in RULES:
        return RULES[op]
    return elementwise.RULE if is_registered(op) and find(op).expression is not None else None


def refusal(node: Node, facts: Facts) -> str | None:
    """Return why a node cannot run on a GPU, or None where it can."""
    rule = rule_of(node.op)
    if rule is None:
        return f"{node.op} has no form for GPUs"
    if not is_static(node, facts.specs):
        return "its shapes are only known at run time"
    found = (_refuses_value(name, facts) for name in (*node.reads(), *node.writes()))
    return next((reason for reason in found if reason), None) or rule.refuses(node, facts)


def _refuses_value(name: str, facts: Facts) -> str | None:
    """Return why a segment cannot hold a value, or None. Empty constants are parameters, like axes, and allowed."""
    spec = facts.spec(name)
    if spec.dtype not in VALUES:
        return f"{name!r} is {spec}, a GPU holds float32, bools and integers of 8 to 64 bits"
    if spec.elements >= MOST_ELEMENTS:
        return f"{name!r} has {spec.elements} elements, kernels count {MOST_ELEMENTS - 1}"
    return f"{name!r} is empty" if not spec.elements and name not in facts.constants else None
