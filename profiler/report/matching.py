"""Matching the steps of several runs, however each run fused them.

Steps match when they stand for a common ONNX node, so one step of a run may match several of another. Runs of different models
match in nodes of equal name.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from kernels.record import record
from profiler.report.document import Op, Report


@record
class Match:
    """Steps that do the same work. steps: those of each run, in order of the runs; empty where a run has none.

    key: the first ONNX node that they stand for.
    """

    key: str
    op: str
    name: str
    steps: tuple[tuple[Op, ...], ...]

    @property
    def p50_ns(self) -> tuple[float | None, ...]:
        """The median time in each run; None where it has no such step, or no times."""
        return tuple(_total([op.p50_ns for op in ops]) for ops in self.steps)

    @property
    def flops(self) -> tuple[int | None, ...]:
        """The FLOPs in each run; None where it has no such step."""
        return tuple(sum(op.flops for op in ops) if ops else None for ops in self.steps)

    @property
    def strategies(self) -> tuple[str, ...]:
        """The strategies in each run; "" where it has no such step."""
        return tuple(" + ".join(dict.fromkeys(op.strategy for op in ops if op.strategy)) for ops in self.steps)

    @property
    def delta_ns(self) -> float | None:
        """The time in the last run less that in the first."""
        first, *_, last = self.p50_ns
        return None if first is None or last is None else last - first

    @property
    def ratio(self) -> float | None:
        """The time in the last run ÷ that in the first."""
        first, *_, last = self.p50_ns
        return None if first is None or last is None or not first else last / first


def match(runs: Sequence[Report]) -> list[Match]:
    """Match the steps of all runs. Returns every match once, in the order of the first run that has it."""
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
