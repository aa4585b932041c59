from __future__ import annotations

import pytest

from scheduler.build import Build
from scheduler.errors import RecordFormatError
from scheduler.store import Here, pruning
from scheduler.store.records import now_us
from tests.scheduler.samples import BUILD, DEVICE, HERE, measurement, plan, report

DAY_US = 86_400 * 1_000_000
NEWER = Here(DEVICE.fingerprint, Build("0.2.0+new", BUILD.kernels))


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    monkeypatch.setattr(pruning.Pruning._walk, "__defaults__", (3,))


def signatures(store):
    return {found.measurement.signature for found in store.measurements.page(HERE, limit=200).items}


def test_what_is_old_goes(store):
    now = now_us()
    store.measurements.save([measurement(f"Conv({n})", measured_us=now - n * DAY_US) for n in range(10)])
    assert store.prune(HERE, older_than_days=4.5).measurements == 5
    assert signatures(store) == {f"Conv({n})" for n in range(5)}


def test_what_is_stale_goes_and_the_rest_stays(store):
    store.measurements.save(
        [
            measurement("Conv(1)"),
            measurement("Conv(2)", engine_build="0.0.9+old"),
            measurement("Conv(3)", kernel_source="0ddba11f"),
            measurement("Relu(1)", op="Relu", kernel_source=BUILD.kernel_source("Relu")),
        ]
    )
    store.plans.save(plan())
    assert (store.prune(HERE, stale=True).measurements, store.prune(HERE, stale=True).plans) == (2, 0)
    assert signatures(store) == {"Conv(1)", "Relu(1)"}
    pruned = store.prune(NEWER, stale=True)
    assert (pruned.measurements, pruned.plans) == (2, 1)
    assert signatures(store) == set()


def test_stale_and_old_is_both(store):
    now = now_us()
    store.measurements.save([measurement(f"Conv({n})", measured_us=now - n * DAY_US, engine_build="old") for n in range(4)])
    store.measurements.save([measurement("Conv(9)", measured_us=now - 9 * DAY_US)])
    assert store.prune(HERE, older_than_days=1.5, stale=True).measurements == 2
    assert signatures(store) == {"Conv(0)", "Conv(1)", "Conv(9)"}


def test_runs_and_ended_jobs_go_by_age(store):
    for _ in range(5):
        store.profiles.save(report(), BUILD.id)
    waiting, ended = (store.jobs.add("probe", DEVICE.fingerprint).id for _ in range(2))
    store.jobs.cancel(ended)
    pruned = store.prune(HERE, older_than_days=0)
    assert (pruned.profiles, pruned.jobs) == (5, 1)
    assert [job.id for job in store.jobs.page().items] == [waiting]
    assert store.profiles.page().items == ()
    assert store.prune(HERE, stale=True).jobs == 0


@pytest.mark.parametrize("asked", [{}, {"older_than_days": -1}, {"older_than_days": float("nan")}, {"older_than_days": 1e9}])
def test_pruning_everything_by_mistake_is_refused(store, asked):
    store.measurements.save([measurement()])
    with pytest.raises(RecordFormatError, match="prune"):
        store.prune(HERE, **asked)
    assert len(signatures(store)) == 1
