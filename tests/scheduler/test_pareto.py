"""The Pareto front holds the plans that no other plan beats in both latency and error."""

from __future__ import annotations

from scheduler.planning.pareto import tradeoffs
from scheduler.store.queries import PlanCard


def card(latency_ns: float, error: float, *, device: str = "a" * 16, stale: str = "", measured: bool = False) -> PlanCard:
    return PlanCard(
        plan_id=f"{latency_ns} {error} {device} {stale} {measured}",
        device=device,
        device_name="",
        objective="latency",
        precision="fp32",
        threads=1,
        latency_ns=latency_ns,
        measured=measured,
        error_estimate=error,
        memory_bytes=1,
        stale=stale,
        drift=None,
        created_us=0,
    )


def front(*plans: PlanCard) -> list[bool]:
    found = {item.plan_id: item.efficient for item in tradeoffs(plans, "a" * 16)}
    return [found[plan.plan_id] for plan in plans]


def test_a_plan_that_another_beats_in_both_is_not_on_the_front() -> None:
    assert front(card(10, 0.1), card(5, 0.2), card(11, 0.15)) == [True, True, False]


def test_a_plan_that_another_equals_in_one_and_beats_in_the_other_is_not_either() -> None:
    assert front(card(10, 0.1), card(10, 0.2)) == [True, False]


def test_equals_stand_side_by_side() -> None:
    assert [item.efficient for item in tradeoffs([card(10, 0.1), card(10, 0.1)], "")] == [True, True]


def test_neither_a_stale_plan_nor_one_of_another_device_beats_a_plan() -> None:
    assert front(card(1, 0.1, stale="old"), card(1, 0.1, device="b" * 16), card(10, 0.2)) == [False, True, True]


def test_the_most_exact_comes_first() -> None:
    assert [item.error_estimate for item in tradeoffs([card(1, 0.2), card(9, 0.1)], "")] == [0.1, 0.2]


def test_no_prediction_beats_a_measurement_and_any_measurement_beats_a_prediction() -> None:
    measured, hoped, exact = card(10, 0.2, measured=True), card(1, 0.2), card(12, 0.1)
    assert front(measured, hoped, exact) == [True, False, True]


def test_the_plans_of_this_device_come_first_and_devices_stay_apart() -> None:
    far, near = "b" * 16, "a" * 16
    found = tradeoffs([card(1, 0.1, device=far), card(9, 0.1, device=near), card(2, 0.3, device=far)], near)
    assert [item.device for item in found] == [near, far, far]
