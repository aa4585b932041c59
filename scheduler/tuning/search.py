"""The search for the fastest candidate of every node: what to run next, and when to stop.

In stages. A stage takes the contests in which most can still be gained, and of each the best arm and those that promise most.
It makes variants of the model so that each of these arms is in at least one (all other nodes run as is best known), runs the
variants in turns, and puts out what was beaten, or is predicted to be by what was learned. The search ends when less than half a
percent of the model could still be gained, when the budget is spent, or when it is told to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from scheduler.strategy import Strategy
from scheduler.tuning.contests import Arm, Contest, model_ns
from scheduler.workload import Workload

WORTH: Final = 0.005  # of the model's time: with less to gain, the search is over
TURNS: Final = 8  # of each variant in a stage at most, after a first one that does not count
WIDTH: Final = (
    3  # arms of a contest in one stage: compiling takes longer than running, and what is learned of some tells of others
)
COMPILE_SHARE: Final = 0.25  # of the time that is left: for what a stage compiles
COMPILE_S: Final = 0.1  # for a candidate, before it is known
SAVE_S: Final = 3.0

Assignment = Mapping[str, Strategy]  # node -> how to run it


class Variant(Protocol):
    """A model that is ready to run one way."""

    def run(self) -> Mapping[str, int]:
        """Run once; nanoseconds of every node."""


class VariantBuilder(Protocol):
    """What makes variants."""

    def screen(self, assignment: Assignment) -> Mapping[str, str]:
        """Nodes whose candidate is not worth a run, and why."""

    def variants(self, assignments: Sequence[Assignment]) -> Sequence[Variant]:
        """Make the model ready, as many ways at once as there is memory and time for: a beginning of what was asked for."""


@dataclass(slots=True)
class Limits:
    """When to stop. clock: seconds. ends_s: on that clock. stop: asked between runs. spent: something did not fit any more."""

    clock: Callable[[], float]
    ends_s: float
    stop: Callable[[], bool]
    spent: bool = False

    @property
    def reached(self) -> bool:
        """Whether no run may be started."""
        return self.spent or self.stop() or self.clock() >= self.ends_s

    def fits(self, seconds: float) -> bool:
        """Whether work of so many seconds may be begun. Once some may not, the end is reached: what it was for cannot be had."""
        self.spent = self.spent or self.clock() + seconds >= self.ends_s
        return not self.reached


class Search:
    """One search over the contests of a model.

    Args: save: called every few seconds, and at the end, to keep what was measured. learn: called behind every stage, to predict
          anew what was not run yet. say: called with what happens now.
    """

    def __init__(
        self,
        contests: Sequence[Contest],
        builder: VariantBuilder,
        limits: Limits,
        save: Callable[[], None] = lambda: None,
        learn: Callable[[], None] = lambda: None,
        say: Callable[[str], None] = lambda _now: None,
    ) -> None:
        self.contests = contests
        self.runs = 0
        self._builder, self._limits, self._save, self._learn, self._say = builder, limits, save, learn, say
        self._saved_s = limits.clock()
        self._by_node = {node: contest for contest in contests for node in contest.nodes}
        self._screened: set[tuple[Workload, Strategy]] = set()
        self._compile_s = COMPILE_S

    def run(self) -> str:
        """Search to the end. Returns why it ended."""
        try:
            while True:
                for contest in self.contests:
                    contest.eliminate()
                open_contests = self._open()
                if not open_contests:
                    return "nothing worth is left to find out"
                before = sum(len(arm.samples) for contest in open_contests for arm in contest.arms)
                if self._limits.reached or not self._stage(open_contests):
                    return "stopped" if self._limits.stop() else "the budget is spent"
                if sum(len(arm.samples) for contest in open_contests for arm in contest.arms) == before:
                    return "what is left to find out does not run"
        finally:
            self._save()

    def _open(self) -> list[Contest]:
        """The contests to go on with, those with most to gain first; empty when too little is left to gain."""
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
        """Run some arms of the open contests in turns. False when a limit was reached before all were run."""
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
        """Run as many of them in turns as there is memory for. Returns how many, 0 when a limit was reached."""
        variants = self._builder.variants(assignments)
        return len(variants) if variants and self._turns(assignments[: len(variants)], variants) else 0

    def _fields(self, contests: Sequence[Contest]) -> dict[str, list[Arm]]:
        """The arms that run in a stage, by contest: of as many contests as compiling them leaves time for, at least one.

        The first stage runs the model one way only: which nodes take long is worth knowing before their candidates are compiled.
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
        """Of every contest in the stage its arm of that number, round and round; of all others the best."""
        chosen = {}
        for contest in self.contests:
            arms = [arm for arm in fields.get(contest.key, ()) if not arm.out] or [contest.best]
            chosen.update(dict.fromkeys(contest.nodes, arms[number % len(arms)].strategy))
        return chosen

    def _screen(self, assignment: Assignment) -> None:
        """Compile, and drop what is not worth a run."""
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
        """Run every variant in turns, forth and back. False when a limit was reached."""
        for turn in range(TURNS + 1):
            order = range(len(variants)) if turn % 2 == 0 else reversed(range(len(variants)))
            for number in order:
                if self._limits.reached:
                    return False
                taken = variants[number].run()
                self.runs += 1
                if turn:
                    self._note(assignments[number], taken)
            self._say(f"turn {turn} of {TURNS}, {len(variants)} variants")
        return True

    def _note(self, assignment: Assignment, taken: Mapping[str, int]) -> None:
        """Give every arm its runs."""
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
    """Each once, in order."""
    return list({tuple(sorted((n, str(s)) for n, s in a.items())): a for a in assignments}.values())
