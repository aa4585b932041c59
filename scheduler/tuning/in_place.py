"""Timing candidates where they will run: in the whole model.

A variant is the model with one candidate for each node, compiled so that a run gives the nanoseconds of every node. Candidates
whose code spills more vectors in its inner loops than another's are not timed: they are slow, and compiling told.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import psutil

from graph.run.executor import Executor
from kernels.native.code.compile import SPILL_LIMIT
from kernels.native.code.farm import Pace
from kernels.spec import Array
from profiler.device.topology import read_confinement
from scheduler.planning.subject import Subject
from scheduler.strategy import Strategy
from scheduler.tuning.search import Assignment

MEMORY_SHARE: Final = 0.25  # of the memory that is free: for variants that are ready at once
MOST_VARIANTS: Final = 64
COMPILED_AT_ONCE: Final = 16  # kernels whose code is written out before they are compiled


class TimedVariant:
    """The model run one way, node by node."""

    def __init__(self, executor: Executor, feeds: Mapping[str, Array]) -> None:
        self._executor, self._feeds = executor, feeds
        self._names = [step.node.name for step in executor.steps]

    def run(self) -> Mapping[str, int]:
        """Run once; nanoseconds of every node."""
        return dict(zip(self._names, self._executor.run_timed(self._feeds).step_ns, strict=True))


class InPlaceBuilder:
    """Makes variants of one model on one thread count. fits: whether work of so many seconds may be begun, asked before each
    kernel is compiled and each variant is made, with what those before them took. What does not fit is left."""

    def __init__(self, subject: Subject, threads: int, fits: Callable[[float], bool] = lambda _seconds: True) -> None:
        self._subject, self._threads, self._fits = subject, threads, fits
        self._pace, self._variant_s = Pace(fits), 0.0
        self._feeds = subject.feeds()
        self._weights = {
            (node.name, option.strategy): option.load.work.weight_bytes
            for node, options in zip(subject.graph.nodes, subject.options(threads), strict=True)
            for option in options
            if option.load is not None
        }
        self._spills: dict[str, float] = {}
        self._least_spills: dict[str, float] = {}  # of any candidate of a node: what its epilogue spills, tiles cannot help
        self._kept: Sequence[TimedVariant] = ()  # those before: what they packed need not be packed again

    def screen(self, assignment: Assignment) -> Mapping[str, str]:
        """Nodes whose kernels spill, and how much. All kernels are compiled by this that there is time for."""
        native = self._subject.native
        if native is None:
            return {}
        choices = {node: strategy.choice for node, strategy in assignment.items()}
        kernels = native.kernels(self._subject.graph, self._subject.specs, self._threads, choices)
        new = {kernel.name: kernel for found in kernels.values() for kernel in found if kernel.name not in self._spills}
        names = list(new)
        for first in range(0, len(names), COMPILED_AT_ONCE):
            if not self._fits(0.0):
                break
            some = names[first : first + COMPILED_AT_ONCE]
            shares = zip(some, native.spills([new[name] for name in some], self._pace), strict=True)
            self._spills.update({name: share for name, share in shares if share is not None})
        dropped = {}
        for node, found in kernels.items():
            share = max((self._spills.get(kernel.name, 0.0) for kernel in found), default=0.0)
            least = self._least_spills[node] = min(share, self._least_spills.get(node, share))
            if share - least > SPILL_LIMIT and node in assignment:
                dropped[node] = (
                    f"{100 * share:.0f} % of the vector instructions in its loops touch the stack, "
                    f"of another candidate's {100 * least:.0f} %, and {100 * SPILL_LIMIT:.0f} % more are the limit"
                )
        return dropped

    def variants(self, assignments: Sequence[Assignment]) -> Sequence[TimedVariant]:
        """As many of them as there is memory and time for; of memory, for at least one."""
        limit = MEMORY_SHARE * free_bytes()
        made: list[TimedVariant] = []
        used = 0
        for assignment in assignments[:MOST_VARIANTS]:
            used += self._nbytes(assignment)
            if (made and used > limit) or not self._fits(self._variant_s):
                break
            if used > limit / 2:
                self._kept = ()
            began_s = time.monotonic()
            made.append(TimedVariant(executor_of(self._subject, self._threads, assignment, timed=True), self._feeds))
            self._variant_s = time.monotonic() - began_s
        self._kept = made
        return made

    def _nbytes(self, assignment: Assignment) -> int:
        """Memory of a variant at most: packed weights that others have already are counted again."""
        values = sum(spec.nbytes for spec in self._subject.specs.values() if spec is not None)
        return values + sum(self._weights.get((node, strategy), 0) for node, strategy in assignment.items())


def executor_of(subject: Subject, threads: int, strategies: Mapping[str, Strategy], *, timed: bool = False) -> Executor:
    """The model ready to run that way."""
    choices = {node: strategy.choice for node, strategy in strategies.items()}
    return Executor(subject.graph, subject.specs, choices, threads, subject.native, timed=timed)


def free_bytes() -> int:
    """Memory that may be taken, under the cgroup's limit."""
    limit = read_confinement().cgroup_memory_bytes
    available = int(psutil.virtual_memory().available)
    return available if limit is None else min(available, limit)


def race(executors: Sequence[Executor], feeds: Mapping[str, Array], seconds: float, least: int = 3) -> list[list[int]]:
    """Run whole models in turns, forth and back, for about that long and at least that often: nanoseconds of every run."""
    taken: list[list[int]] = [[] for _ in executors]
    ends = time.perf_counter() + seconds
    turn = 0
    while turn <= least or time.perf_counter() < ends:
        numbers = range(len(executors)) if turn % 2 == 0 else reversed(range(len(executors)))
        for number in numbers:
            began = time.perf_counter_ns()
            executors[number].run(feeds)
            if turn:  # the first one warms up
                taken[number].append(time.perf_counter_ns() - began)
        turn += 1
    return taken
