"""The batch curve agrees with numpy's least squares and tells when waiting for a larger batch pays."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.engine.curve import SAMPLES, BatchCurve


@given(st.lists(st.tuples(st.integers(1, 64), st.integers(1, 10**10)), min_size=1, max_size=2 * SAMPLES))
def test_the_line_is_least_squares_of_the_last_samples(samples: list[tuple[int, int]]) -> None:
    curve = BatchCurve()
    for rows, ns in samples:
        curve.ran(rows, ns)
    last = samples[-SAMPLES:]
    if len({rows for rows, _ in last}) < 2:
        assert curve.predict_ns(4) is None
        return
    x, y = np.array(last, np.float64).T
    slope, start = np.polyfit(x, y, 1)
    assert curve.predict_ns(4) == pytest.approx(max(start + 4 * slope, 0), rel=1e-6, abs=1e-3 * 10**6)


def test_plans_give_the_first_curve_and_runs_refine_it() -> None:
    curve = BatchCurve()
    assert (curve.source, curve.predict_ns(1)) == ("none", None)
    curve.planned({4: 4000.0, 1: 2500.0, 2: 3000.0})
    assert curve.source == "plan"
    assert [curve.predict_ns(rows) for rows in (1, 2, 3, 4, 8)] == [2500, 3000, 3500, 4000, 8000]
    for now_ns in range(0, 500, 100):
        curve.arrived(now_ns, 1)
    assert curve.patience_ns(1, 2) == 1000  # 2500 alone, 1500 each together
    for ns in (4000, 6000):
        curve.ran(1, ns)
    assert curve.source == "scaled"
    assert [curve.predict_ns(rows) for rows in (1, 2, 4)] == [5000, 6000, 8000]
    curve.ran(2, 5100)
    assert curve.source == "measured"
    assert curve.predict_ns(2) == pytest.approx(5100)
    assert curve.predict_ns(3) == pytest.approx(5200)


def test_waiting_lasts_as_long_as_its_gain_and_only_where_requests_come_in_time() -> None:
    curve = BatchCurve()
    assert curve.patience_ns(1, 2) is None
    for rows in (1, 2, 4):
        curve.ran(rows, 6000 + 1000 * rows)
    for now_ns in range(0, 5000, 1000):
        curve.arrived(now_ns, 1)
    assert curve.patience_ns(1, 2) == 3000  # 7000 alone, 4000 each together
    assert curve.patience_ns(2, 4) == 0  # two more take 2000, and gain 1500
    assert curve.patience_ns(0, 2) == 0


def test_a_size_pays_when_a_row_takes_less_time_in_it() -> None:
    curve = BatchCurve()
    for ns in (1000, 5000, 1010):
        curve.ran(1, ns)
    curve.ran(2, 1500)
    assert curve.gains(1, 2) is None
    for _ in range(2):
        curve.ran(2, 9000)
    assert curve.gains(1, 2) is True
    for _ in range(3):
        curve.ran(4, 2980)
    assert curve.gains(2, 4) is False
