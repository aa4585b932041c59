"""The table of all native rules by op, collected from the modules of this folder."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType

from graph.ir import Node
from graph.memory import is_static
from graph.native import rules
from graph.native.facts import VALUES, Facts
from graph.native.rule import Rule
from graph.native.rules import elementwise
from graph.native.rules._index import DEFINES
from kernels.errors import EdgewiseError
from kernels.half import is_half
from kernels.index import homes, modules
from kernels.registry import find, is_registered, operators

MAX_RANK = 8

# Ops whose native forms hold float16 and bfloat16, since they convert elements or copy them
HALVES = frozenset(
    {"Cast", "CastLike", "Concat", "Flatten", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"}
)


class _Rules(Mapping[str, Rule]):
    """The native rule of every op that has one. A module is imported when a rule of it is first looked up."""

    def __getitem__(self, op: str) -> Rule:
        if (rule := _rule(op)) is None:
            raise KeyError(op)
        return rule

    def __iter__(self) -> Iterator[str]:
        return iter(all_rules())

    def __len__(self) -> int:
        return len(all_rules())


@functools.lru_cache(1024)
def _rule(op: str) -> Rule | None:
    if not (indexed := _homes()):
        return all_rules().get(op)
    if op in indexed:
        made: Mapping[str, Rule] = importlib.import_module(indexed[op]).RULES
        return made[op] if op in made else all_rules().get(op)
    return elementwise.RULE if is_registered(op) and find(op).expression is not None else None


@functools.cache
def _homes() -> Mapping[str, str]:
    return homes(rules, DEFINES)


@functools.cache
def all_rules() -> Mapping[str, Rule]:
    """Return every rule by op; all modules are imported. Raises EdgewiseError where two modules have a rule for one op."""
    expressible = [name for name, op in operators().items() if op.expression is not None]
    by_module = families()
    return merge([*by_module.items(), (elementwise.__name__, dict.fromkeys(expressible, elementwise.RULE))])


def families() -> Mapping[str, Mapping[str, Rule]]:
    """Return the `RULES` of each module of this folder that has some, by its name; all modules are imported."""
    names = [f"{rules.__name__}.{name}" for name in modules(rules)]
    found = {name: getattr(importlib.import_module(name), "RULES", {}) for name in names if name != __name__}
    return {name: made for name, made in found.items() if made}


def merge(families: Iterable[tuple[str, Mapping[str, Rule]]]) -> Mapping[str, Rule]:
    """Return the rules of all modules, by op. Raises EdgewiseError where two modules have a rule for one op."""
    found: dict[str, tuple[Rule, str]] = {}
    for module, made in families:
        for op, rule in made.items():
            if op in found:
                raise EdgewiseError(f"{op}: it has rules in {found[op][1]} and {module}, need one")
            found[op] = (rule, module)
    return MappingProxyType({op: rule for op, (rule, _) in found.items()})


RULES: Mapping[str, Rule] = _Rules()


def refusal(node: Node, facts: Facts) -> str | None:
    """Return why a node cannot run natively, or None where it can."""
    rule = RULES.get(node.op)
    if rule is None:
        return f"{node.op} has no native form"
    if not is_static(node, facts.specs):
        return "its shapes are only known at run time"
    found = (_refuses_value(node, name, facts) for name in (*node.reads(), *node.writes()))
    return next((reason for reason in found if reason), None) or rule.refuses(node, facts)


def _refuses_value(node: Node, name: str, facts: Facts) -> str | None:
    """Return why a segment cannot hold a value of a node, or None. Empty constants are parameters, like axes, and allowed."""
    spec = facts.spec(name)
    if spec.dtype not in VALUES and not (node.op in HALVES and is_half(spec.dtype)):
        return f"{name!r} is {spec}, a segment holds float32, float64, bools and integers of 8 to 64 bits"
    if spec.rank > MAX_RANK:
        return f"{name!r} has {spec.rank} dimensions, kernels loop over {MAX_RANK}"
    return f"{name!r} is empty" if not spec.elements and name not in facts.constants else None
