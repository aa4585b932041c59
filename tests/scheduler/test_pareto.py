"""Plans by latency and error: which of them no other beats."""

from __future__ import annotations

from scheduler.pareto import tradeoffs
from scheduler.plan import State
from scheduler.store import StoredPlan
from tests.scheduler.samples import plan


def stored(
    predicted_ns: float, error: float, *, measured_ns: float | None = None, device: str = "a" * 16, status: str = "current"
) -> StoredPlan:
    changes = {
        "predicted_ns": predicted_ns,
        "measured_ns": measured_ns,
        "error_estimate": error,
        "device_fingerprint": device,
        "state": State(status=status),
    }
    return StoredPlan(plan().model_copy(update=changes), 0)


def front(*plans: StoredPlan) -> list[bool]:
    found = {id(item.stored): item.efficient for item in tradeoffs(plans)}
    return [found[id(item)] for item in plans]


def test_a_plan_that_another_beats_in_both_is_not_on_the_front() -> None:
    assert front(stored(10, 0.1), stored(5, 0.2), stored(11, 0.15)) == [True, True, False]


def test_a_plan_that_another_equals_in_one_and_beats_in_the_other_is_not_either() -> None:
    assert front(stored(10, 0.1), stored(10, 0.2)) == [True, False]


def test_equals_stand_side_by_side() -> None:
    assert front(stored(10, 0.1), stored(10, 0.1)) == [True, True]


def test_what_was_measured_counts() -> None:
    assert front(stored(1, 0.1, measured_ns=20), stored(10, 0.1)) == [False, True]


def test_a_stale_plan_beats_nobody_and_another_device_neither() -> None:
    assert front(stored(1, 0.1, status="stale"), stored(1, 0.1, device="b" * 16), stored(10, 0.2)) == [False, True, True]


def test_the_most_exact_comes_first() -> None:
    assert [item.stored.plan.error_estimate for item in tradeoffs([stored(1, 0.2), stored(9, 0.1)])] == [0.1, 0.2]
