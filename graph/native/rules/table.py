"""The table of all native rules by op, collected from the modules of this folder."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType, ModuleType

from graph.ir import Node
from graph.memory import is_static
from graph.native import rules
from graph.native.facts import VALUES, Facts
from graph.native.rule import Rule
from kernels.errors import EdgewiseError
from kernels.half import is_half

MAX_RANK = 8

# Ops whose native forms hold float16 and bfloat16, since they convert elements or copy them
HALVES = frozenset(
    {"Cast", "CastLike", "Concat", "Flatten", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"}
)


def merge(modules: Iterable[ModuleType]) -> Mapping[str, Rule]:
    """Return the `RULES` of all modules, by op. Raises EdgewiseError where two modules have a rule for one op."""
    found: dict[str, tuple[Rule, str]] = {}
    for module in modules:
        for op, rule in getattr(module, "RULES", {}).items():
            if op in found:
                raise EdgewiseError(f"{op}: it has rules in {found[op][1]} and {module.__name__}, need one")
            found[op] = (rule, module.__name__)
    return MappingProxyType({op: rule for op, (rule, _) in found.items()})


def _families() -> Iterator[ModuleType]:
    """Import the other modules of this folder."""
    names = sorted(f"{rules.__name__}.{info.name}" for info in pkgutil.iter_modules(rules.__path__))
    return (importlib.import_module(name) for name in names if name != __name__)


RULES = merge(_families())


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
