"""The search for the fastest candidate of every node: which candidates to run next, and when to stop.

The search goes in stages. A stage takes the contests in which most time can still be saved, and of each the best arm and the most
promising others. It builds variants of the model so that each of these arms is in at least one of them, with the best known
candidate for every other node; runs the variants in turns; and eliminates the arms that were beaten, or are predicted to be by
what was learned. The search ends when less than half a percent of the model's time could still be saved, when the budget is
spent, or when it is stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from profiler.device.quiet import Quietness, refused
from scheduler.strategy import Strategy
from scheduler.tuning.contests import Arm, Contest, model_ns
from scheduler.workload import Workload

WORTH: Final = 0.005  # share of the model's time: with less to save, the search ends
TURNS: Final = 8  # runs of each variant in a stage at most, after a first one that does not count
WIDTH: Final = 3  # arms of a contest in one stage: compiling is slow, and the runs of some arms improve predictions of others
COMPILE_SHARE: Final = 0.25  # of the remaining time, for compiling the arms of a stage
COMPILE_S: Final = 0.1  # to compile a candidate, assumed before the first one
SAVE_S: Final = 3.0  # between saves of what was measured
WATCHED_S: Final = 0.5  # of runs that are judged together, at least: a look at the machine takes half a millisecond

NOTHING_LEFT: Final = f"stopped early: the remaining candidates are not likely to save {WORTH:.1%} of the time"
BUDGET_SPENT: Final = "stopped because the time budget ran out"
STOPPED: Final = "stopped on request"
NEVER_RUN: Final = "stopped: the remaining candidates are of nodes that never run"

Assignment = Mapping[str, Strategy]  # node name -> the strategy to run it by


class Variant(Protocol):
    """A model ready to run by one assignment."""

    def run(self) -> Mapping[str, int]:
        """Run once. Returns the nanoseconds of every node, by name."""


class VariantBuilder(Protocol):
    """Builds variants of a model and compiles their kernels."""

    def screen(self, assignment: Assignment) -> Mapping[str, str]:
        """Compile an assignment. Returns the nodes whose candidate is not worth running, and why."""

    def variants(self, assignments: Sequence[Assignment]) -> Sequence[Variant]:
        """Build the first of these assignments, as many as there is memory and time for; empty where there is none."""


@dataclass(slots=True)
class Limits:
    """When to stop.

    clock: gives seconds. ends_s: by that clock. stop: asked between runs. spent: whether some work did not fit.
    """

    clock: Callable[[], float]
    ends_s: float
    stop: Callable[[], bool]
    spent: bool = False

    @property
    def reached(self) -> bool:
        """Whether no further run may be started."""
        return self.spent or self.stop() or self.clock() >= self.ends_s

    def fits(self, seconds: float) -> bool:
        """Say whether work of that many seconds may begin. Once some work may not, the limit counts as reached."""
        self.spent = self.spent or self.clock() + seconds >= self.ends_s
        return not self.reached


@dataclass(slots=True)
class _Watched:
    """Runs that are judged together. seen: says what was seen of the machine since they began."""

    seen: Callable[[], Quietness]
    began_s: float
    runs: list[tuple[Assignment, Mapping[str, int]]] = field(default_factory=list)
    turns: int = 0


class Search:
    """One search over the contests of a model.

    Args: builder: of variants of the model. save: called every few seconds, and at the end, to store measurements. learn: called
          after every stage, to renew the predictions of arms that have not run. say: called with the activity that begins.
          watch: begins to watch the machine; the function that it returns says what was seen since. Runs of a busy machine count
          for nothing and are repeated.
    """

    def __init__(
        self,
        contests: Sequence[Contest],
        builder: VariantBuilder,
        limits: Limits,
        save: Callable[[], None] = lambda: None,
        learn: Callable[[], None] = lambda: None,
        say: Callable[[str], None] = lambda _now: None,
        watch: Callable[[], Callable[[], Quietness]] = lambda: Quietness,
    ) -> None:
        self.contests = contests
        self.runs = 0
        self.refused: list[Quietness] = []  # what was seen of the machine during runs that count for nothing
        self._watch = watch
        self._builder, self._limits, self._save, self._learn, self._say = builder, limits, save, learn, say
        self._saved_s = limits.clock()
        self._by_node = {node: contest for contest in contests for node in contest.nodes}
        self._screened: set[tuple[Workload, Strategy]] = set()
        self._compile_s = COMPILE_S

    def run(self) -> str:
        """Search until a limit is reached or nothing is left to save. Returns a sentence that says why it ended."""
        try:
            while True:
                for contest in self.contests:
                    contest.eliminate()
                open_contests = self._open()
                if not open_contests:
                    return NOTHING_LEFT
                before = sum(len(arm.samples) for contest in open_contests for arm in contest.arms)
                if self._limits.reached or not self._stage(open_contests):
                    return STOPPED if self._limits.stop() else BUDGET_SPENT
                if sum(len(arm.samples) for contest in open_contests for arm in contest.arms) == before:
                    return NEVER_RUN
        finally:
            self._save()

    def _open(self) -> list[Contest]:
        """Return the contests to go on with, those that can save most first; empty when too little is left to save."""
        unseen = [contest for contest in self.contests if contest.best.summary is None]
        ranked = sorted((c for c in self.contests if not c.settled), key=lambda c: (-c.gain_ns, c.key))
        total = max(model_ns(self.contests), 1e-9)
        left = sum(contest.gain_ns for contest in ranked)
        taken: list[Contest] = []
        while ranked and left > WORTH / 2 * total and (taken or left > WORTH * total):
            taken.append(ranked.pop(0))
            left -= taken[-1].gain_ns
        return taken or unseen

    def _stage(self, contests: Sequence[Contest]) -> bool:
        """Run some arms of the open contests in turns. Returns False when a limit was reached before all had run."""
        fields = self._fields(contests)
        width = max(map(len, fields.values()))
        self._say(f"compiling {self._unscreened(fields.values())} candidates")
        for number in range(width):
            if self._limits.reached:
                return False
            self._screen(self._assignment(number, fields))
        if self._limits.reached:
            return False
        assignments = _distinct([self._assignment(number, fields) for number in range(width)])
        while assignments:
            self._say(f"preparing {len(assignments)} variants")
            count = self._group(assignments)
            if not count:
                return False
            assignments = assignments[count:]
        self._save()
        self._learn()
        return True

    def _group(self, assignments: Sequence[Assignment]) -> int:
        """Run as many of these variants in turns as fit into memory. Returns how many, 0 when a limit was reached."""
        variants = self._builder.variants(assignments)
        return len(variants) if variants and self._turns(assignments[: len(variants)], variants) else 0

    def _fields(self, contests: Sequence[Contest]) -> dict[str, list[Arm]]:
        """Return the arms to run in a stage, by contest: of as many contests as there is time to compile, at least one.

        The first stage runs the model by one assignment only: it tells which nodes take long, before more is compiled for them.
        """
        if not self.runs and any(contest.best.summary is None for contest in self.contests):
            return {contest.key: contest.field(1) for contest in self.contests}
        left_s = self._limits.ends_s - self._limits.clock()
        fields: dict[str, list[Arm]] = {}
        for contest in contests:
            fields[contest.key] = contest.field(WIDTH)
            if self._unscreened(fields.values()) * self._compile_s > COMPILE_SHARE * left_s and len(fields) > 1:
                fields.pop(contest.key)
        return fields

    def _unscreened(self, fields: Iterable[Sequence[Arm]]) -> int:
        return sum((arm.load, arm.strategy) not in self._screened for arms in fields for arm in arms)

    def _assignment(self, number: int, fields: Mapping[str, Sequence[Arm]]) -> dict[str, Strategy]:
        """Assign to every contest in the stage its arm of that number, cyclically, and to all others their best arm."""
        chosen = {}
        for contest in self.contests:
            arms = [arm for arm in fields.get(contest.key, ()) if not arm.out] or [contest.best]
            chosen.update(dict.fromkeys(contest.nodes, arms[number % len(arms)].strategy))
        return chosen

    def _screen(self, assignment: Assignment) -> None:
        """Compile an assignment, and eliminate arms that are not worth running."""
        new = {
            (arm.load, arm.strategy)
            for contest in self.contests
            for arm in contest.arms
            if arm.strategy == assignment[contest.nodes[0]]
        }
        new -= self._screened
        if not new:
            return
        began_s = self._limits.clock()
        for node, why in self._builder.screen(assignment).items():
            self._by_node[node].drop(assignment[node], why)
        self._screened |= new
        self._compile_s = (self._limits.clock() - began_s) / len(new)

    def _turns(self, assignments: Sequence[Assignment], variants: Sequence[Variant]) -> bool:
        """Run the variants in turns, in alternating order. Returns False when a limit was reached.

        Turns of a busy machine are repeated; a first one, which warms up, counts for nothing either.
        """
        turn, counted, watched = 0, 0, self._watched()
        while counted < TURNS:
            for number in range(len(variants)) if turn % 2 == 0 else reversed(range(len(variants))):
                if self._limits.reached:
                    self._settle(watched)
                    return False
                taken = variants[number].run()
                self.runs += 1
                if turn:
                    watched.runs.append((assignments[number], taken))
            watched.turns += turn > 0
            turn += 1
            self._say(f"turn {counted + watched.turns} of {TURNS}, {len(variants)} variants")
            if counted + watched.turns >= TURNS or self._limits.clock() - watched.began_s >= WATCHED_S:
                counted += self._settle(watched)
                watched = self._watched()
        return True

    def _watched(self) -> _Watched:
        return _Watched(self._watch(), self._limits.clock())

    def _settle(self, watched: _Watched) -> int:
        """Note runs, or forget them where the machine was busy. Returns the number of turns that count."""
        if refused(quietness := watched.seen()):
            self.refused.append(quietness)
            self._say(f"measuring again: {quietness.text}")
            return 0
        for assignment, taken in watched.runs:
            self._note(assignment, taken)
        return watched.turns

    def _note(self, assignment: Assignment, taken: Mapping[str, int]) -> None:
        """Add the times of one run to the arms that ran in it."""
        for contest in self.contests:
            by_strategy: dict[Strategy, list[int]] = {}
            for node in contest.nodes:
                if node in taken:
                    by_strategy.setdefault(assignment[node], []).append(taken[node])
            for arm in contest.arms:
                if arm.strategy in by_strategy:
                    arm.add(by_strategy[arm.strategy])
        if self._limits.clock() - self._saved_s >= SAVE_S:
            self._save()
            self._saved_s = self._limits.clock()


def _distinct(assignments: Sequence[Assignment]) -> list[Assignment]:
    """Return the assignments without duplicates, in order."""
    return list({tuple(sorted((n, str(s)) for n, s in a.items())): a for a in assignments}.values())
