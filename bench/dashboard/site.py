"""A service with data on every page: models, a measured machine, runs, a plan and jobs. The service itself makes them."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from app.settings import DEMO_MODELS, Settings
from bench.dashboard.models import EXPORT, long
from bench.jobs import add, wait_for
from bench.local import serving
from graph.formats.registry import read
from profiler.device.profile import DeviceProfile
from profiler.report.document import Op, Totals
from scheduler.build import current_build
from scheduler.local import local_device
from scheduler.profile_run import measure_model
from scheduler.store import Store

SLOWDOWN = 3
_TIMES = ("p50_ns", "p90_ns", "min_ns", "first_ns", "wall_p50_ns", "wall_p90_ns", "wall_min_ns", "unattributed_ns")


@dataclass(frozen=True)
class Site:
    """The service's address, and the ids of what it stores. model: file of the export that `runs` measured.

    counted: a run that was counted and not timed.
    slowed: two copies of the first run without its noise; the second takes SLOWDOWN times as long.
    impossible: a run with ops that are faster than their roofline allows.
    """

    address: str
    client: httpx.Client
    db: str
    model: Path
    runs: tuple[int, int]
    counted: int
    slowed: tuple[int, int]
    impossible: int
    plan: str
    device: str
    jobs: tuple[int, ...]


@contextlib.contextmanager
def site(folder: Path, export: bytes, probe_s: float = 0.3) -> Iterator[Site]:
    """Run the service on a free port until the block ends.

    export: the model to measure. probe_s: seconds to measure the machine for; the default is too short for exact figures.
    """
    models = folder / "models"
    models.mkdir()
    for name in ("digits.onnx", "digits.json"):
        (models / name).write_bytes((DEMO_MODELS / name).read_bytes())
    model = models / f"{EXPORT}.onnx"
    model.write_bytes(export)
    (models / "long.onnx").write_bytes(long())
    db = f"sqlite:///{folder / 'site.sqlite'}"
    with Store(db) as store:
        device = local_device(store, probe_s)
    settings = Settings(models=models, db=db, max_upload_bytes=8 << 20)
    with serving(settings) as client:
        jobs = [_done(client, "probe", seconds=probe_s)]
        for threads in (1, None):
            jobs.append(_done(client, "trace", EXPORT, runs=10, threads=threads))
        first, second = (job["result"]["profile_id"] for job in jobs[1:])
        counted = _posted(client, "/v1/profiles", model="long")["id"]
        plan = _posted(client, "/v1/plans", model=EXPORT, max_threads=1)["id"]
        slowed = _slowed(first, db)
        impossible = _impossible(model, device, db)
        numbers = tuple(job["id"] for job in jobs)
        address = str(client.base_url).rstrip("/")
        yield Site(address, client, db, model, (first, second), counted, slowed, impossible, plan, device.fingerprint, numbers)


def _done(client: httpx.Client, kind: str, model: str | None = None, **request: object) -> dict[str, Any]:
    asked = {name: value for name, value in request.items() if value is not None}
    job = wait_for(client, add(client, kind=kind, request=asked, **({"model": model} if model else {}))["id"])
    assert job["state"] == "done", job
    return job


def _posted(client: httpx.Client, path: str, **asked: object) -> dict[str, Any]:
    reply = client.post(path, json=asked, timeout=120)
    assert reply.status_code == 200, reply.text
    found: dict[str, Any] = reply.json()
    return found


def _slowed(number: int, db: str) -> tuple[int, int]:
    """Store two copies of a run: one without noise, one in which every time is SLOWDOWN times as long. Return their ids."""

    def longer(part: Op | Totals) -> dict[str, Any]:
        found = {name: getattr(part, name, None) for name in _TIMES}
        return {name: SLOWDOWN * value for name, value in found.items() if value is not None}

    with Store(db) as store:
        noisy = store.profiles.get(number).report
        steady = noisy.model_copy(update={"totals": noisy.totals.model_copy(update={"wall_p90_ns": noisy.totals.wall_p50_ns})})
        ops = tuple(op.model_copy(update=longer(op)) for op in steady.ops)
        totals = steady.totals.model_copy(update=longer(steady.totals))
        slow = steady.model_copy(update={"ops": ops, "totals": totals})
        before, after = (store.profiles.save(report, current_build().id) for report in (steady, slow))
    return before, after


def _impossible(path: Path, device: DeviceProfile, db: str) -> int:
    """Store a run that is checked against a device profile whose peak FLOP/s are 1000 times too low. Return its id."""
    peaks = [
        peak.model_copy(update={"rate": peak.rate.model_copy(update={"value": peak.rate.value / 1000})}) for peak in device.peaks
    ]
    slow = device.model_copy(update={"peaks": tuple(peaks)})
    with Store(db) as store:
        report = measure_model(read(path), slow, store, runs=5, threads=1)
        assert not report.check.ok
        return store.profiles.save(report, current_build().id)
