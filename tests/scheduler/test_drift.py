from __future__ import annotations

import random
import threading

import pytest

from scheduler import drift
from scheduler.drift import KEPT_WINDOWS, MAX_WATCHED, SUSTAINED, TOLERANCE, WINDOW, Alone, Drift, bounds_of
from tests.scheduler.samples import HERE, plan

MEASURED = plan(measured_ns=1000.0)


@pytest.fixture
def told():
    return []


@pytest.fixture
def watch(told):
    return Drift(lambda found_plan, served: told.append((found_plan, served)))


def serve(watch, found_plan, windows, latency):
    for _ in range(windows * WINDOW):
        watch.observe(found_plan, latency() if callable(latency) else latency)


def test_a_plan_that_takes_what_it_says_has_not_drifted(watch, told):
    rng = random.Random(0)
    serve(watch, MEASURED, 10, lambda: 1000.0 * rng.lognormvariate(0, 0.3))
    (served,) = watch.served()
    assert (told, served.drifted, served.count) == ([], False, 10 * WINDOW)
    assert served.ratio == pytest.approx(1, abs=0.2)
    assert served.windows[-1].p50_ns < served.windows[-1].p90_ns


def test_one_bad_window_is_noise(watch, told):
    for latency in (1000.0, 5000.0, 5000.0, 1000.0, 5000.0, 5000.0):
        serve(watch, MEASURED, 1, latency)
    assert told == []


def test_a_tenth_of_slow_runs_is_noise(watch, told):
    rng = random.Random(0)
    serve(watch, MEASURED, 10, lambda: 50_000.0 if rng.random() < 0.1 else 1000.0)
    assert told == []


@pytest.mark.parametrize("factor", [1.4, 0.7, 10])
def test_a_sustained_ratio_is_told_once(watch, told, factor):
    serve(watch, MEASURED, SUSTAINED, 1000.0 * factor)
    ((found_plan, served),) = told
    assert found_plan is MEASURED
    assert (served.plan_id, served.drifted, served.ratio) == (MEASURED.id, True, pytest.approx(factor))
    assert f"{factor:.2f} times" in served.reason
    serve(watch, MEASURED, 5, 1000.0 * factor)
    assert len(told) == 1


def test_windows_on_both_sides_are_no_drift(watch, told):
    for factor in (2, 0.2, 2, 0.2, 2):
        serve(watch, MEASURED, 1, 1000.0 * factor)
    assert told == []


def test_a_plan_that_recovers_and_drifts_again_is_told_again(watch, told):
    for factor in (2, 1, 2):
        serve(watch, MEASURED, SUSTAINED, 1000.0 * factor)
    assert len(told) == 2


def test_bounds_of_a_prediction_are_its_uncertainty():
    found = bounds_of(plan())
    assert (found.expected_ns, found.low_ns, found.high_ns, found.measured) == (200.0, 100.0, 400.0, False)
    assert bounds_of(plan(low_ns=199.0, high_ns=201.0)).high_ns == pytest.approx(200 * TOLERANCE)
    assert [found.side(value) for value in (99.0, 100.0, 400.0, 401.0)] == [-1, 0, 0, 1]


def test_memory_is_bounded(watch):
    plans = [plan(why=str(n)) for n in range(MAX_WATCHED + 10)]
    for one in plans:
        watch.observe(one, 1.0)
    assert len(watch.served()) == MAX_WATCHED
    assert watch.served()[0].plan_id == plans[-1].id
    serve(watch, plans[-1], KEPT_WINDOWS + 5, 1.0)
    assert len(watch.served()[0].windows) == KEPT_WINDOWS


def test_a_run_is_alone_while_no_other_was_under_way():
    runs = Alone()
    with runs.run() as first:
        assert first()
        with runs.run() as second:
            assert not first()
            assert not second()
        assert not first()
    with runs.run() as third:
        assert third()


def test_threads_lose_no_run(watch, monkeypatch):
    monkeypatch.setattr(drift, "WINDOW", 7)
    threads = [threading.Thread(target=lambda: [watch.observe(MEASURED, 1000.0) for _ in range(500)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (served,) = watch.served()
    assert served.count == 2000
    assert {window.count for window in served.windows} == {7}


def test_a_stored_plan_is_labelled_until_it_is_saved_again(store):
    store.plans.save(plan())
    store.plans.drifted(plan().id, "twice as slow")
    found = store.plans.get(plan().id, HERE).plan
    assert (found.state.status, found.state.reason, found.id) == ("drifted", "twice as slow", plan().id)
    assert store.plans.page(HERE).items[0].plan.state.status == "drifted"
    changed = type(HERE)("feedfeed", HERE.build)
    assert store.plans.get(plan().id, changed).plan.state.status == "stale"
    store.plans.save(plan())
    assert store.plans.get(plan().id, HERE).plan.state.status == "current"
