from __future__ import annotations

import pytest

from profiler.device.topology import Confinement, read_hardware
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
