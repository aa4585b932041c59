"""Which float32 values of a segment lie in memory as bfloat16.

Those are the values that a kernel which multiplies in bfloat16 reads or makes, if every kernel that reads or makes them can do so
(`Rule.holds`). All arithmetic but these products is in float32: a value is rounded where it is stored, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping

from graph.choice import Choice
from graph.native.facts import F32, Facts
from graph.native.partition import Part
from graph.native.rules.table import RULES
from kernels.spec import BFLOAT16, DType


def held_values(part: Part, facts: Facts, choices: Mapping[str, Choice]) -> dict[str, DType]:
    """Return the values that lie in memory as another type than their own, with that type. No output of the part does."""
    written = {name for node in part.nodes for name in node.writes()}
    wanted, refused, alike = set[str](), set(part.outputs), list[set[str]]()
    for node in part.nodes:
        floats = {name for name in (*node.reads(), *node.writes()) if facts.spec(name).dtype == F32}
        rule, choice = RULES[node.op], choices[node.name]
        able = set() if rule.holds is None else floats.intersection(rule.holds(node, choice))
        refused |= floats - able
        if choice.precision == "bf16":
            wanted |= able
        if rule.moves:
            alike.append(floats)
            refused |= floats - written
    _spread(refused, alike)
    _spread(wanted, alike)
    return dict.fromkeys(sorted(wanted & written - refused), BFLOAT16)


def _spread(names: set[str], alike: list[set[str]]) -> None:
    """Add to some names all that lie as one of them does."""
    count = -1
    while len(names) > count:
        count = len(names)
        for group in alike:
            if not names.isdisjoint(group):
                names |= group
