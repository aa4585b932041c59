"""The statistics of contests: bounds, elimination, ties, and what may still be gained."""

from __future__ import annotations

import numpy as np
import pytest

from scheduler.tuning.contests import MIN_SAMPLES, Arm, Contest, Summary
from tests.scheduler.arms import LOAD, contest, prediction, strategy
from tests.scheduler.samples import measurement


def sampled(found: Contest, middles: list[float], runs: int = 40, noise: float = 0.02) -> Contest:
    rng = np.random.default_rng(1)
    for arm, middle in zip(found.arms, middles, strict=True):
        arm.add([round(middle * (1 + noise * abs(x))) for x in rng.standard_normal(runs)])
    return found


@pytest.mark.parametrize("samples", [5, 10, 100])
def test_the_interval_reaches_down_to_what_a_run_takes_undisturbed(samples: int):
    rng = np.random.default_rng(2)
    covered, errors = 0, []
    for _ in range(400):
        summary = Summary.of((1000 + rng.exponential(100, samples)).tolist())
        covered += summary.min_ns - summary.error_ns <= 1000
        errors.append(summary.error_ns)
    assert covered >= 0.87 * 400
    assert np.median(errors) < 6 * 100 / samples


def test_one_interruption_does_not_widen_the_interval():
    calm = Summary.of([100.0 + n % 3 for n in range(40)])
    hit = Summary.of([*[100.0 + n % 3 for n in range(39)], 100_000.0])
    assert hit.error_ns == pytest.approx(calm.error_ns, rel=0.5)


def test_what_was_stored_and_new_runs_add_up():
    first, second = [100.0, 110.0, 120.0], [90.0, 100.0, 95.0, 105.0]
    both = Summary.of(first).with_more(Summary.of(second))
    whole = Summary.of([*first, *second])
    assert (both.samples, both.min_ns) == (whole.samples, whole.min_ns)
    assert both.mean_ns == pytest.approx(whole.mean_ns)
    assert both.std_ns == pytest.approx(whole.std_ns)
    assert min(first + second) <= both.p50_ns <= max(first + second)


def test_an_arm_that_is_beaten_beyond_doubt_is_out_and_says_by_what():
    found = sampled(contest("a", ["fast", "slow"]), [1000, 1300])
    found.eliminate()
    assert [arm.strategy.algorithm for arm in found.active] == ["fast"]
    assert "fast" in found.arms[1].out
    assert found.settled
    assert not found.tied


def test_arms_that_noise_hides_stay():
    found = sampled(contest("a", ["one", "other"]), [1000, 1015], runs=6, noise=0.1)
    found.eliminate()
    assert len(found.active) == 2
    assert not found.settled
    assert found.gain_ns > 0


def test_arms_within_one_percent_are_a_tie():
    found = sampled(contest("a", ["one", "other"]), [1000, 1001], runs=100)
    found.eliminate()
    assert found.tied
    assert found.settled
    assert found.gain_ns == 0


def test_too_few_runs_eliminate_no_arm():
    found = contest("a", ["one", "other"])
    found.arms[0].add([1000] * (MIN_SAMPLES - 1))
    found.arms[1].add([2000] * (MIN_SAMPLES - 1))
    found.eliminate()
    assert len(found.active) == 2


def test_a_fitted_prediction_puts_an_arm_out_and_an_assumed_one_does_not():
    for fitted, left in ((True, 1), (False, 2)):
        found = contest("a", ["one", "other"])
        found.arms[0].add([1000] * 20)
        found.arms[1].predicted = prediction(4000, 1.2, fitted=fitted)
        found.eliminate()
        assert len(found.active) == left


def test_the_last_arm_is_never_dropped():
    found = contest("a", ["only"])
    found.drop(strategy("only"), "it spills")
    assert len(found.active) == 1


def test_the_gain_counts_every_node():
    one, four = (sampled(contest("a", ["x", "y"], nodes), [1000, 1020], runs=5) for nodes in (1, 4))
    assert four.gain_ns == pytest.approx(4 * one.gain_ns)


def test_a_stored_measurement_counts_as_runs():
    arm = Arm(strategy("x"), LOAD, prediction(5.0), measurement(samples=10, p50_ns=100.0))
    assert (arm.runs, arm.ns) == (10, 90.0)
    arm.add([100] * 10)
    assert arm.runs == 20
