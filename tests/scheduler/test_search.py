"""The search on a fake clock and a builder that answers from a table."""

from __future__ import annotations

import pytest

from profiler.device.quiet import Quietness
from scheduler.strategy import Strategy
from scheduler.tuning.contests import Contest, model_ns
from scheduler.tuning.search import BUDGET_SPENT, NEVER_RUN, NOTHING_LEFT, STOPPED, Limits, Search
from tests.scheduler.arms import Clock, TableBuilder, contest, prediction, strategy

TRUE = {"a": 1000e3, "b": 1300e3, "c": 900e3, "d": 905e3}


def table(node: str, found: Strategy) -> float:
    return TRUE[found.algorithm] * (0.001 if node.startswith("small") else 1)


def search(contests: list[Contest], budget_s: float = 60.0, **options) -> tuple[str, TableBuilder, Clock]:
    clock = Clock()
    stop = options.pop("stop", lambda: False)
    hooks = {name: options.pop(name) for name in ("save", "learn", "say", "watch") if name in options}
    builder = TableBuilder(clock, options.pop("ns", table), **options)
    why = Search(contests, builder, Limits(clock, budget_s, stop), **hooks).run()
    return why, builder, clock


def test_the_fastest_is_found_and_the_search_ends_early():
    contests = [contest("n", ["a", "b", "c"], 2), contest("m", ["b", "a"])]
    why, _, clock = search(contests)
    assert [c.best.strategy.algorithm for c in contests] == ["c", "a"]
    assert why == NOTHING_LEFT
    assert clock.now_s < 10


def test_a_tie_is_not_run_for_ever():
    found = contest("n", ["c", "d"])
    why, builder, _ = search([found], noise=0.01)
    assert why == NOTHING_LEFT
    assert found.settled
    assert len(builder.ran) < 1000


def test_the_budget_is_kept_to():
    contests = [contest(f"n{n}", ["a", "c", "d"]) for n in range(5)]
    why, _, clock = search(contests, budget_s=0.2, noise=0.5)
    assert why == BUDGET_SPENT
    assert clock.now_s < 0.25


def test_what_does_not_fit_any_more_ends_the_search_before_its_time():
    clock = Clock()
    limits = Limits(clock, 60.0, lambda: False)

    class Busy(TableBuilder):
        """A builder for which compiling the second variant would take longer than the remaining time."""

        def screen(self, assignment):
            return super().screen(assignment) if limits.fits(100.0 if clock() > 0 else 1.0) else {}

    contests = [contest("n", ["a", "b", "c"])]
    assert Search(contests, Busy(clock, table), limits).run() == BUDGET_SPENT
    assert clock() < 60
    assert sum(arm.runs > 0 for arm in contests[0].arms) <= 1


def test_stop_ends_it_and_what_was_run_is_kept():
    asked = [0]
    saved = [0]

    def stop() -> bool:
        asked[0] += 1
        return asked[0] > 12

    found = contest("n", ["a", "b", "c"])
    why, builder, _ = search([found], stop=stop, save=lambda: saved.__setitem__(0, saved[0] + 1))
    assert why == STOPPED
    assert saved[0] >= 1
    assert 0 < len(builder.ran) <= 12
    assert any(arm.runs for arm in found.arms)


def test_the_budget_goes_where_most_can_be_gained():
    contests = [contest("small", ["a", "c"]), contest("big", ["a", "c"])]
    for number, found in enumerate(contests):
        for arm in found.arms:
            arm.predicted = prediction(1e3 if number == 0 else 1e6)
    _, builder, _ = search(contests, noise=0.05)
    assert contests[1].best.strategy == strategy("c")
    assert len({a["big0"] for a in builder.ran}) == 2
    assert {a["small0"] for a in builder.ran} == {strategy("a")}


def test_what_spills_is_dropped_with_the_reason_and_never_run():
    found = contest("n", ["a", "c"])
    _, builder, _ = search([found], spills={strategy("c"): "8 % touch the stack"})
    assert found.arms[1].out == "8 % touch the stack"
    assert {a["n0"] for a in builder.ran} == {strategy("a")}


def test_variants_run_in_turns_forth_and_back():
    _, builder, _ = search([contest("n", ["a", "b"])])
    ran = [a["n0"].algorithm for a in builder.ran]
    alone = ran.index("b") - 1  # the first stage knows one way only
    assert set(ran[:alone]) == {"a"}
    assert ran[alone : alone + 6] == ["a", "b", "b", "a", "a", "b"]


def test_without_memory_for_all_variants_they_come_in_groups():
    found = contest("n", ["a", "b", "c"])
    search([found], most=1)
    assert found.best.strategy == strategy("c")


def test_what_is_stored_is_not_run_again():
    found = contest("n", ["a", "b"])
    for arm, ns in zip(found.arms, (1000, 2000), strict=True):
        arm.add([ns] * 30)
    why, builder, _ = search([found])
    assert why == NOTHING_LEFT
    assert builder.ran == []


def test_nodes_without_a_choice_are_run_once_to_know_the_whole():
    contests = [contest("n", ["a"]), contest("m", ["b"])]
    search(contests)
    assert model_ns(contests) == pytest.approx(TRUE["a"] + TRUE["b"], rel=0.1)


def test_it_learns_between_stages():
    learned = [0]
    search([contest("n", ["a", "b", "c", "d"])], learn=lambda: learned.__setitem__(0, learned[0] + 1))
    assert learned[0] >= 2


def test_a_builder_whose_variants_run_nothing_ends_the_search():
    class Silent(TableBuilder):
        def variants(self, assignments):
            made = super().variants(assignments)
            for variant in made:
                variant.run = lambda: {}
            return made

    clock = Clock()
    why = Search([contest("n", ["a", "b"])], Silent(clock, table), Limits(clock, 10, lambda: False)).run()
    assert why == NEVER_RUN


def test_the_same_times_give_the_same_search():
    runs = []
    for _ in range(2):
        contests = [contest("n", ["a", "b", "c", "d"], 3), contest("m", ["d", "c"])]
        _, builder, _ = search(contests)
        runs.append(([sorted(map(str, a.values())) for a in builder.ran], [str(c.best.strategy) for c in contests]))
    assert runs[0] == runs[1]


BUSY = Quietness(level="busy", reasons=("other processes used 2.0 of 2 cores",), lost=0.9)


def test_runs_of_a_busy_machine_count_for_nothing_and_are_repeated(monkeypatch):
    monkeypatch.setenv("EDGEWISE_WHEN_BUSY", "refuse")
    looks = iter([BUSY, BUSY])
    contests = [contest("n", ["a", "b", "c"], 2), contest("m", ["b", "a"])]
    said: list[str] = []
    why, builder, _ = search(contests, watch=lambda: lambda: next(looks, Quietness()), say=said.append)
    assert why == NOTHING_LEFT
    assert [c.best.strategy.algorithm for c in contests] == ["c", "a"]
    assert said.count("measuring again: the machine was busy: other processes used 2.0 of 2 cores") == 2
    assert sum(len(arm.samples) for arm in contests[0].arms) < 2 * len(builder.ran)


def test_a_machine_that_stays_busy_spends_the_budget_and_leaves_nothing(monkeypatch):
    monkeypatch.setenv("EDGEWISE_WHEN_BUSY", "refuse")
    found = contest("n", ["a", "b"])
    clock = Clock()
    searched = Search([found], TableBuilder(clock, table), Limits(clock, 1.0, lambda: False), watch=lambda: lambda: BUSY)
    assert searched.run() == BUDGET_SPENT
    assert set(searched.refused) == {BUSY}
    assert not any(arm.samples for arm in found.arms)
    assert clock() < 1.1
