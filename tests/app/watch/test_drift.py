"""The service notices, while it serves, a plan whose runs take longer than the plan expects."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import numpy as np
import pytest

from app.engine.port import Engine
from app.engine.requests import Outcome
from app.models.repository import Served
from app.settings import DEMO_MODELS, Settings
from app.watch.drift import DriftWatch
from bench.waiting import until
from profiler.device.profile import DeviceProfile
from scheduler.build import current_build
from scheduler.drift import SUSTAINED, WINDOW
from scheduler.planning.planner import make_plan
from scheduler.session import Session
from scheduler.store import Here, Store

FEEDS = {"image": np.zeros((1, 1, 8, 8), np.float32)}


def infer(observed: DriftWatch, session: Session, times: int, feeds: dict[str, np.ndarray]) -> None:
    """Run a model `times` times on an engine and report each run to the drift watch, as the service does."""
    served = Served("digits", "1", DEMO_MODELS / "digits.onnx", session=session)
    engine = Engine(Settings())

    async def work() -> None:
        for _ in range(times):
            outcome = await engine.infer(served, feeds)
            assert outcome.outputs["digit"].shape == (len(feeds["image"]),)
            observed.ran(session, outcome)
        engine.stop()

    asyncio.run(work())
    engine.close()


def test_a_plan_that_promises_too_much_is_marked_and_tuned_again(tmp_path: Path, machine: DeviceProfile) -> None:
    with Store(f"sqlite:///{tmp_path / 'db.sqlite'}") as store:
        store.devices.save(machine)
        session = Session(DEMO_MODELS / "digits.onnx")
        model = session.model
        store.models.save(model.digest, model.source, model.nbytes)
        made = make_plan(model, machine, dims={"batch": 1}, max_threads=1, backend="numpy")
        store.plans.save(made)
        optimist = made.model_copy(update={"measured_ns": 1.0})  # an inference in a nanosecond
        session = Session(model, plan=optimist)
        observed = DriftWatch(lambda: store, retune=True)
        infer(observed, session, WINDOW * SUSTAINED, FEEDS)
        infer(observed, session, 1, {"image": np.zeros((3, 1, 8, 8), np.float32)})  # other shapes follow no plan
        (served,) = observed.served()
        assert (served.plan_id, served.count, served.drifted) == (made.id, WINDOW * SUSTAINED, True)
        here = Here(machine.fingerprint, current_build())
        until(lambda: store.plans.get(made.id, here).plan.state.status == "drifted" and store.jobs.page().items)
        state = store.plans.get(made.id, here).plan.state
        assert (state.status, "times the measured" in state.reason) == ("drifted", True)
        (job,) = store.jobs.page().items
        assert (job.kind, job.model_digest, job.device_fingerprint) == ("tune", model.digest, machine.fingerprint)
        assert '"image":[1,1,8,8]' in job.request


def test_a_session_without_a_plan_is_left_alone() -> None:
    session = Session(DEMO_MODELS / "digits.onnx")
    observed = DriftWatch(lambda: pytest.fail("no database is needed"), retune=True)
    infer(observed, session, 1, FEEDS)
    assert observed.served() == ()
    assert session.plan_in_use({"image": (1, 1, 8, 8)}) is None


def test_a_run_that_was_shared_says_nothing_of_its_plan(machine: DeviceProfile) -> None:
    session = Session(DEMO_MODELS / "digits.onnx")
    made = make_plan(session.model, machine, dims={"batch": 1}, max_threads=1, backend="numpy")
    session = Session(session.model, plan=made)
    observed = DriftWatch(lambda: pytest.fail("no database is needed"), retune=True)
    for alone, plan_id in ((False, made.id), (True, "default")):
        observed.ran(session, Outcome({}, 0, 1, 1, plan_id, alone))
    assert observed.served() == ()


def test_a_service_says_how_plans_serve(own_client: httpx.Client) -> None:
    assert own_client.get("/v1/plans/served").json() == []
