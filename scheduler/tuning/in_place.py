"""Timing candidates in place: inside the whole model, with the caches and neighbours that they will have.

A variant is the model with one candidate for each node, compiled so that a run gives the nanoseconds of every node. Candidates
whose inner loops spill more vectors to the stack than another candidate's are slow, as compiling shows, and are not timed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from graph.run.executor import Executor
from kernels.confinement import free_memory_bytes
from kernels.native.code.compile import SPILL_LIMIT
from kernels.native.code.farm import Pace
from kernels.spec import Array
from scheduler.planning.subject import Subject
from scheduler.strategy import Strategy
from scheduler.tuning.search import Assignment

MEMORY_SHARE: Final = 0.25  # of free memory, for the variants built at once
MOST_VARIANTS: Final = 64
COMPILED_AT_ONCE: Final = 16  # kernels whose code is emitted before they are compiled


class TimedVariant:
    """A model compiled for one assignment and timed node by node."""

    def __init__(self, executor: Executor, feeds: Mapping[str, Array]) -> None:
        self._executor, self._feeds = executor, feeds
        self._names = [step.node.name for step in executor.steps]

    def run(self) -> Mapping[str, int]:
        """Run once. Returns the nanoseconds of every node, by name."""
        return dict(zip(self._names, self._executor.run_timed(self._feeds).step_ns, strict=True))


class InPlaceBuilder:
    """Builds variants of one model at one thread count.

    Args: fits: says whether work of that many seconds may begin; asked before each kernel is compiled and each variant is built,
          with the time that earlier ones took. Work that does not fit is left out.
    """

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
        self._least_spills: dict[str, float] = {}  # of any candidate of a node: no tile avoids what its epilogue spills
        self._kept: Sequence[TimedVariant] = ()  # the last ones: they hold packed weights that the next ones reuse

    def screen(self, assignment: Assignment) -> Mapping[str, str]:
        """Compile the kernels of an assignment, as time allows. Returns the nodes whose kernels spill too much, and how much."""
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
                    f"need at most {100 * (least + SPILL_LIMIT):.0f} %: {100 * SPILL_LIMIT:.0f} more than another candidate's"
                )
        return dropped

    def variants(self, assignments: Sequence[Assignment]) -> Sequence[TimedVariant]:
        """Build the first of these assignments, as many as there is memory and time for; memory limits only the later ones."""
        limit = MEMORY_SHARE * free_memory_bytes()
        made: list[TimedVariant] = []
        used = 0
        for assignment in assignments[:MOST_VARIANTS]:
            used += self._nbytes(assignment)
            if (made and used > limit) or not self._fits(self._variant_s):
                break
            if used > limit / 2:
                self._kept = ()
            began_s = time.monotonic()
            made.append(TimedVariant(executor_of(self._subject, self._threads, assignment), self._feeds))
            self._variant_s = time.monotonic() - began_s
        self._kept = made
        return made

    def _nbytes(self, assignment: Assignment) -> int:
        """Return an upper bound of a variant's memory: packed weights that variants share are counted for each."""
        values = sum(spec.nbytes for spec in self._subject.specs.values() if spec is not None)
        return values + sum(self._weights.get((node, strategy), 0) for node, strategy in assignment.items())


def executor_of(subject: Subject, threads: int, strategies: Mapping[str, Strategy]) -> Executor:
    """Build the model's executor for an assignment."""
    choices = {node: strategy.choice for node, strategy in strategies.items()}
    return Executor(subject.graph, subject.specs, choices, threads, subject.native)


def race(executors: Sequence[Executor], feeds: Mapping[str, Array], seconds: float, least: int = 3) -> list[list[int]]:
    """Run whole models in turns, in alternating order, for about that long and at least `least` times each.

    Returns: the nanoseconds of every run, for each executor; a first run of each, which warms up, is left out.
    """
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
