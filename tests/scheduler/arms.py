"""Make contests by hand, and a builder whose times come from a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from graph.native.work import Work
from scheduler.cost.fitting import Prediction
from scheduler.strategy import Strategy
from scheduler.tuning.contests import Arm, Contest
from scheduler.tuning.search import Assignment
from scheduler.workload import Workload

LOAD = Workload(Work("direct", 1e6), 1)


def strategy(name: str) -> Strategy:
    return Strategy("native", name)


def prediction(ns: float, factor: float = 2.5, *, fitted: bool = False) -> Prediction:
    return Prediction(ns, ns / factor, ns * factor, fitted, "compute", "L1")


def contest(key: str, names: Sequence[str], nodes: int = 1, ns: float = 1000.0) -> Contest:
    arms = [Arm(strategy(name), LOAD, prediction(ns)) for name in names]
    return Contest(key, "Conv", tuple(f"{key}{n}" for n in range(nodes)), arms)


class Clock:
    """A clock in seconds that only the builder moves."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class TableBuilder:
    """A builder whose runs take the times that `ns` gives by node and strategy, with seeded noise.

    Every run and every compilation moves the clock. spills: reasons why strategies spill. most: variants that fit into memory.
    ran: all assignments that ran.
    """

    def __init__(
        self,
        clock: Clock,
        ns: Callable[[str, Strategy], float],
        noise: float = 0.02,
        spills: Mapping[Strategy, str] | None = None,
        most: int = 64,
    ) -> None:
        self.clock, self.ns, self.noise, self.spills, self.most = clock, ns, noise, spills or {}, most
        self.rng = np.random.default_rng(0)
        self.ran: list[Assignment] = []

    def screen(self, assignment: Assignment) -> Mapping[str, str]:
        self.clock.now_s += 0.01
        return {node: self.spills[s] for node, s in assignment.items() if s in self.spills}

    def variants(self, assignments: Sequence[Assignment]) -> Sequence[TableVariant]:
        return [TableVariant(self, assignment) for assignment in assignments[: self.most]]


class TableVariant:
    def __init__(self, builder: TableBuilder, assignment: Assignment) -> None:
        self.builder, self.assignment = builder, assignment

    def run(self) -> Mapping[str, int]:
        builder = self.builder
        builder.ran.append(self.assignment)
        taken = {
            node: round(builder.ns(node, s) * (1 + builder.noise * abs(builder.rng.standard_normal())))
            for node, s in self.assignment.items()
        }
        builder.clock.now_s += sum(taken.values()) / 1e9 + 0.001
        return taken
