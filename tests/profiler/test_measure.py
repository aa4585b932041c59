from __future__ import annotations

import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from profiler.device.measure import Effort, PinnedThreads, calibrate, sample_rates, summarise
from profiler.device.probe.bandwidth import ARRAYS, DRAM_MIN_BYTES, PATTERNS, TRANSFERS, working_sets
from profiler.errors import MeasurementError
from tests.profiler.devices import hardware


def test_team_runs_each_call_on_a_thread_of_its_own():
    meeting = threading.Barrier(3)  # only passed when all three run at once
    seen = []

    def call(name):
        meeting.wait(timeout=10)
        seen.append((name, threading.get_ident()))

    with PinnedThreads(3, ()) as team:
        team.run([lambda name=name: call(name) for name in "abc"])
    assert sorted(name for name, _ in seen) == ["a", "b", "c"]
    assert len({ident for _, ident in seen}) == 3


def test_team_reports_what_a_call_raised_and_goes_on():
    def fail():
        raise ValueError("broken")

    with PinnedThreads(2, ()) as team:
        with pytest.raises(ValueError, match="broken"):
            team.run([fail, lambda: None])
        assert team.run([lambda: None, lambda: None]) >= 0


def test_team_time_spans_the_longest_call():
    with PinnedThreads(2, ()) as team:
        elapsed_ns = team.run([lambda: time.sleep(0.02), lambda: None])
    assert elapsed_ns >= 20_000_000


def test_team_needs_one_call_a_thread():
    with PinnedThreads(2, ()) as team, pytest.raises(MeasurementError, match="1 calls for 2 threads"):
        team.run([lambda: None])


def test_team_without_enough_cores_does_not_pin():
    assert not PinnedThreads(2, (0,)).pinned


@given(st.floats(1, 1e7), st.floats(1e-4, 1.0))
def test_calibrate_fills_the_window(ns_per_turn, window_s):
    turns = calibrate(lambda turns: round(turns * ns_per_turn) + 1, window_s)
    window_ns = window_s * 1e9
    assert turns == 1 or window_ns * 0.5 < turns * ns_per_turn < window_ns * 2


def test_an_interruption_does_not_end_the_calibration():
    runs = []

    def run_ns(turns):
        runs.append(turns)
        return turns * 100 + (10**9 if len(runs) == 2 else 0)

    assert calibrate(run_ns, 0.01) == 100_000


def test_sample_rates_are_work_over_time():
    rates = sample_rates(lambda turns: turns * 500, work_per_turn=8, effort=Effort(0.001, 4))
    assert rates == [pytest.approx(16e6)] * 4  # 8 in 500 ns


@pytest.mark.parametrize(("statistic", "value"), [("max", 4.0), ("median", 2.0), ("min", 1.0)])
def test_summarise_takes_the_statistic(statistic, value):
    found = summarise([1.0, 2.0, 4.0], "ns", statistic, "by hand")
    assert found.value == value
    assert found.spread_percent == 150
    assert found.repeats == 3


def test_summarise_of_many_ignores_one_interruption():
    assert summarise([10.0] * 40 + [1000.0], "ns", "median", "m").spread_percent == 0


def test_working_sets_of_one_thread_are_half_of_each_cache():
    sets = working_sets(hardware(), 1, 64 << 30)
    assert [(s.level, s.bytes_per_thread) for s in sets] == [
        ("L1", 16 << 10),
        ("L2", 512 << 10),
        ("L3", 4 << 20),
        ("DRAM", DRAM_MIN_BYTES),
    ]


def test_working_sets_share_a_shared_cache():
    by_level = {s.level: s.bytes_per_thread for s in working_sets(hardware(), 4, 64 << 30)}
    assert by_level["L3"] == 2 << 20  # two cores beside each L3
    assert by_level["L2"] == 512 << 10
    assert by_level["DRAM"] == DRAM_MIN_BYTES // 4


def test_working_sets_skip_a_level_no_larger_than_the_one_before():
    caches = [c for c in hardware().caches if c.level < 3]
    small = caches[2].model_copy(update={"level": 3, "shared_by": 8, "instances": 1})
    levels = [s.level for s in working_sets(hardware(caches=(*caches, small)), 4, 64 << 30)]
    assert levels == ["L1", "L2", "DRAM"]


def test_working_sets_in_little_memory_are_capped_and_say_so():
    dram = working_sets(hardware(), 1, 40 << 20)[-1]
    assert dram.bytes_per_thread == 10 << 20
    assert "capped below 4 times the caches" in dram.note


def test_working_sets_of_unknown_caches_say_so():
    sets = working_sets(hardware(caches=()), 1, 64 << 30)
    assert [s.level for s in sets] == ["L1", "L2", "DRAM"]
    assert all("assumed" in s.note for s in sets[:-1])


def test_patterns_move_the_arrays_of_stream():
    assert TRANSFERS == {"read": 1, "copy": 2, "update": 2, "triad": 3}
    assert PATTERNS == tuple(TRANSFERS) == tuple(ARRAYS)
