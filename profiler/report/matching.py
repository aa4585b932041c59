"""Runs side by side: which steps of one are which of another, whatever was fused with what.

Steps belong together when they stand for a common ONNX node; a step of one run may be several of another. Runs of different
models share the nodes that have one name.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from profiler.report.document import Op, Report


@dataclass(frozen=True, slots=True)
class Match:
    """Steps that do the same work, of every run those that do it; none where a run has no such step.

    key: the first ONNX node they stand for.
    """

    key: str
    op: str
    name: str
    steps: tuple[tuple[Op, ...], ...]

    @property
    def p50_ns(self) -> tuple[float | None, ...]:
        """What each run takes for it; None where it has no such step, or no times."""
        return tuple(_total([op.p50_ns for op in ops]) for ops in self.steps)

    @property
    def flops(self) -> tuple[int | None, ...]:
        """What each run computes for it."""
        return tuple(sum(op.flops for op in ops) if ops else None for ops in self.steps)

    @property
    def strategies(self) -> tuple[str, ...]:
        """How each run does it; "" where it has no such step."""
        return tuple(" + ".join(dict.fromkeys(op.strategy for op in ops if op.strategy)) for ops in self.steps)

    @property
    def delta_ns(self) -> float | None:
        """What the last run takes more than the first."""
        first, *_, last = self.p50_ns
        return None if first is None or last is None else last - first

    @property
    def ratio(self) -> float | None:
        """The last run's time ÷ the first one's."""
        first, *_, last = self.p50_ns
        return None if first is None or last is None or not first else last / first


def match(runs: Sequence[Report]) -> list[Match]:
    """The work of all runs, each once, in the order of the first run that has it."""
    groups: dict[str, dict[tuple[int, int], Op]] = {}  # origin -> the steps of its group; merged groups are one object
    for number, run in enumerate(runs):
        for op in run.ops:
            group = {(number, op.index): op}
            for found in {id(groups[origin]): groups[origin] for origin in _origins(op) if origin in groups}.values():
                group.update(found)
            for origin in {origin for member in group.values() for origin in _origins(member)}:
                groups[origin] = group
    return [_match(group, len(runs)) for group in _distinct(groups)]


def _distinct(groups: dict[str, dict[tuple[int, int], Op]]) -> Iterator[dict[tuple[int, int], Op]]:
    distinct = {id(group): group for group in groups.values()}
    yield from sorted(distinct.values(), key=min)


def _match(group: dict[tuple[int, int], Op], runs: int) -> Match:
    first = group[min(group)]
    steps = tuple(tuple(group[key] for key in sorted(group) if key[0] == number) for number in range(runs))
    return Match(_origins(first)[0], first.op, first.name, steps)


def _origins(op: Op) -> tuple[str, ...]:
    return op.origins or (op.name,)


def _total(times_ns: Sequence[float | None]) -> float | None:
    known = [ns for ns in times_ns if ns is not None]
    return sum(known) if known and len(known) == len(times_ns) else None
