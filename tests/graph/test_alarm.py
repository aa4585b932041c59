"""The alarm of runs: it rings at deadlines, in any order, for runs that are under way, and in forked children too."""

import os
import threading
import time

from bench.waiting import until
from graph.run.alarm import Alarm, shared_alarm
from graph.run.bounds import RunBounds


def in_s(seconds: float) -> RunBounds:
    return RunBounds(time.monotonic_ns() + round(seconds * 1e9))


def test_it_rings_at_each_deadline_whatever_their_order() -> None:
    alarm, late, soon, never = Alarm(), in_s(1000), in_s(0.05), RunBounds()
    with alarm.set_for(late), alarm.set_for(soon), alarm.set_for(never):
        until(lambda: soon.watched)
        assert soon.stop[0] == 1
        assert (late.watched, never.watched) == (False, False)
        with alarm.set_for(sooner := in_s(0.01)):
            until(lambda: sooner.watched)
    assert not alarm._runs


def test_it_does_not_ring_for_a_run_that_has_ended() -> None:
    alarm, ended = Alarm(), in_s(0.05)
    with alarm.set_for(ended):
        pass
    with alarm.set_for(after := in_s(0.1)):
        until(lambda: after.watched)
    assert not ended.watched


def test_runs_that_follow_one_another_do_not_wake_it() -> None:
    alarm = Alarm()
    with alarm.set_for(in_s(1000)):
        until(lambda: alarm._next_ns < float("inf"))
    wakes = []
    alarm._wake = lambda: wakes.append(1)
    for _ in range(100):
        with alarm.set_for(in_s(1000)):
            pass
    assert wakes == []


def test_without_a_deadline_it_starts_no_thread() -> None:
    alarm = Alarm()
    with alarm.set_for(RunBounds()):
        assert alarm._thread is None


def test_a_forked_child_has_an_alarm_of_its_own() -> None:
    with shared_alarm().set_for(first := in_s(0.01)):
        until(lambda: first.watched)
    child = os.fork()
    if not child:  # pragma: no cover  in the child
        with shared_alarm().set_for(second := in_s(0.01)):
            while not second.watched:
                time.sleep(0.01)
        os._exit(7)
    killer = threading.Timer(30, os.kill, [child, 9])
    killer.start()
    _, status = os.waitpid(child, 0)
    killer.cancel()
    assert os.waitstatus_to_exitcode(status) == 7
