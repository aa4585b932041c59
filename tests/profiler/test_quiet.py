"""What the system's counters, a fixed loop and the measured runs say of a machine."""

from dataclasses import replace

import pytest

from profiler.device.quiet import WHEN_BUSY, Counters, Quietness, Watch, await_quiet, judge, refused, require_quiet, when_busy
from profiler.errors import MachineBusyError, MeasurementError
from tests.burning import burning

BEGAN = Counters(at=100.0, own=5.0, waited=1.0, interrupted=10, busy=50.0, stolen=2.0, cpus=2)
IDLE = replace(BEGAN, at=101.0, own=7.0, waited=1.01, interrupted=12, busy=52.05)  # a second in which it had both cores
STEADY = [1000.0, 1010.0, 1020.0] * 10


def judged(ended: Counters = IDLE, *, threads: int = 2, cores: int = 2, loop=STEADY, runs=()) -> Quietness:
    return judge(BEGAN, BEGAN, ended, threads, cores, loop, runs)


def test_a_quiet_machine_gives_no_reason():
    found = judged(runs=[1e6, 1.05e6, 1.1e6, 1.2e6, 1.3e6])
    assert (found.level, found.reasons, found.text) == ("quiet", (), "")
    assert not refused(found)
    require_quiet("tune", found)


@pytest.mark.parametrize(
    ("ended", "says"),
    [
        (replace(IDLE, waited=2.6), "its threads waited for a core 44% of the time and were interrupted 2 times"),
        (replace(IDLE, busy=53.0), "other processes used 1.0 of 2 cores"),
        (replace(IDLE, stolen=2.4), "the hypervisor gave 20% of the CPU time to other machines"),
    ],
    ids=["waiting", "load", "steal"],
)
def test_each_counter_shows_a_busy_machine(ended: Counters, says: str):
    found = judged(ended)
    assert (found.level, found.reasons) == ("busy", (says,))
    assert found.text == f"the machine was busy: {says}"


def test_a_loop_and_runs_far_above_their_fastest_show_it_too():
    assert judged(loop=[1000.0, 3000.0]).reasons == ("a fixed loop took 2.0 times its fastest run on average",)
    slow = judged(runs=[1e6, 2e6, 3e6, 3e6, 3e6])
    assert (slow.level, slow.reasons) == ("busy", ("the median run took 3.0 times the fastest",))
    assert judged(runs=[1e3, 3e3, 3e3, 3e3, 3e3]).level == "quiet"  # too short for the clock


def test_the_worst_sign_decides_and_is_said_first():
    found = judged(replace(IDLE, waited=1.2, stolen=2.8))
    assert found.level == "busy"
    assert [reason.split()[1] for reason in found.reasons] == ["hypervisor", "threads"]
    mild = judged(replace(IDLE, waited=1.2))
    assert mild.level == "disturbed"
    assert mild.or_worse(found) == found == found.or_worse(mild)


def test_cores_that_are_left_to_others_are_no_load():
    ended = replace(IDLE, own=6.0, busy=52.0)
    assert judged(ended, threads=1).level == "quiet"
    assert judged(ended, threads=2).level == "busy"


def test_moments_are_too_short_for_what_the_system_counts_in_steps():
    ended = replace(BEGAN, at=100.1, own=5.0, busy=50.2, stolen=2.1)
    assert judged(ended).level == "quiet"


def test_a_system_that_does_not_say_how_long_threads_wait_is_judged_by_the_rest():
    silent = replace(IDLE, waited=None)
    assert judge(BEGAN, replace(BEGAN, waited=None), silent, 2, 2, STEADY, ()).level == "quiet"


def test_what_happens_to_busy_times_is_a_setting(monkeypatch: pytest.MonkeyPatch):
    busy = Quietness(level="busy", reasons=("other processes used 2.0 of 2 cores",), lost=0.5)
    monkeypatch.setenv(WHEN_BUSY, "store")
    assert not refused(busy)
    monkeypatch.delenv(WHEN_BUSY)
    assert refused(busy)
    with pytest.raises(MachineBusyError, match=r"device: the machine was busy: other .*nothing was stored"):
        require_quiet("device", busy)
    monkeypatch.setenv(WHEN_BUSY, "maybe")
    with pytest.raises(MeasurementError, match="EDGEWISE_WHEN_BUSY: 'maybe' is refused, need one of refuse, store"):
        when_busy()


def test_processes_that_burn_every_core_are_seen(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(WHEN_BUSY)
    with burning():
        watch = Watch(2)
        assert await_quiet(2, 0).level == "busy"
        found = watch.seen()
    assert found.level == "busy"
    assert any("other processes used" in reason for reason in found.reasons)
