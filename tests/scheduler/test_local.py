from __future__ import annotations

import pytest

from profiler.device.profile import DeviceProfile
from profiler.device.quiet import Quietness
from profiler.device.topology import Confinement, read_hardware
from profiler.errors import MachineBusyError
from scheduler import local
from scheduler.local import local_device, local_fingerprint
from tests.profiler.devices import device, hardware


@pytest.fixture
def measured(monkeypatch):
    """Replace the machine by one with four cores. Return a list that gets the seconds of each measurement."""
    times = []

    def probe(seconds, progress=None):
        times.append(seconds)
        return device(confinement=vars(local)["read_confinement"]())

    monkeypatch.setattr(local, "probe", probe)
    monkeypatch.setattr(local, "read_hardware", hardware)
    return times


def may_use(monkeypatch, **what):
    monkeypatch.setattr(local, "read_confinement", lambda: Confinement(**what))


def test_a_machine_is_measured_once(store, measured, monkeypatch):
    may_use(monkeypatch, affinity=8)
    store.devices.save(device())
    assert local_device(store, 1.0) == device()
    assert measured == []
    local_device(store, 1.0, again=True)
    assert measured == [1.0]


def test_a_machine_is_measured_again_when_more_of_it_may_be_used(store, measured, monkeypatch):
    store.devices.save(device(confinement=Confinement(affinity=2)))
    may_use(monkeypatch, affinity=8)
    assert local_device(store, 2.0).usable_cores == 4
    assert local_device(store, 2.0).usable_cores == 4
    assert measured == [2.0]


def test_what_may_be_used_is_of_now(store, measured, monkeypatch):
    store.devices.save(device())
    may_use(monkeypatch, affinity=2, cgroup_memory_bytes=1 << 30)
    found = local_device(store, 1.0)
    assert (found.usable_cores, found.memory_limit_bytes, measured) == (1, 1 << 30, [])


def test_salt_makes_another_device(monkeypatch):
    plain = local_fingerprint()
    monkeypatch.setenv("EDGEWISE_DEVICE_SALT", "two")
    assert local_fingerprint() != plain
    assert read_hardware().model.endswith(" two")


BUSY = Quietness(level="busy", reasons=("other processes used 3.9 of 4 cores",), lost=0.9)


def disturbed(found: DeviceProfile) -> DeviceProfile:
    return found.model_copy(update={"stability": found.stability.model_copy(update={"quietness": BUSY})})


def test_a_machine_that_stays_busy_is_measured_roughly_and_again_once_it_is_quiet(store, measured, monkeypatch):
    monkeypatch.setenv("EDGEWISE_WHEN_BUSY", "refuse")
    store.devices.save(device(confinement=Confinement(affinity=2)))
    may_use(monkeypatch, affinity=8)
    monkeypatch.setattr(local, "await_quiet", lambda _threads, _seconds: BUSY)
    quick = vars(local)["probe"]
    monkeypatch.setattr(local, "probe", lambda *arguments: disturbed(quick(*arguments)))
    assert local_device(store, 5.0).stability.quietness == BUSY
    assert local_device(store, 5.0).stability.quietness == BUSY
    assert measured == [1.0]
    monkeypatch.setattr(local, "await_quiet", lambda _threads, _seconds: Quietness())
    monkeypatch.setattr(local, "probe", quick)
    assert local_device(store, 5.0).stability.quietness == Quietness()
    assert measured == [1.0, 5.0]


def test_who_asks_to_measure_a_busy_machine_is_refused_and_the_stored_profile_stays(store, measured, monkeypatch):
    monkeypatch.setenv("EDGEWISE_WHEN_BUSY", "refuse")
    may_use(monkeypatch, affinity=8)
    store.devices.save(device())
    monkeypatch.setattr(local, "await_quiet", lambda _threads, _seconds: BUSY)
    with pytest.raises(MachineBusyError, match=r"device: the machine was busy: other .*nothing was stored"):
        local_device(store, 5.0, again=True)
    monkeypatch.setattr(local, "await_quiet", lambda _threads, _seconds: Quietness())  # it becomes busy meanwhile
    quick = vars(local)["probe"]
    monkeypatch.setattr(local, "probe", lambda *arguments: disturbed(quick(*arguments)))
    with pytest.raises(MachineBusyError):
        local_device(store, 5.0, again=True)
    assert DeviceProfile.from_json(store.devices.get(device().fingerprint).profile) == device()
