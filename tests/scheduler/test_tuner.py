"""Tuning of small models with tiny budgets: measurements survive a killed process. Speed is never asserted."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import edgewise
from kernels.errors import AttributeValueError
from profiler.device.profile import DeviceProfile
from profiler.errors import MeasurementError
from scheduler.build import current_build
from scheduler.errors import StoppedError
from scheduler.local import local_fingerprint
from scheduler.planning.planner import evidence_of
from scheduler.planning.subject import Subject
from scheduler.session import Session
from scheduler.store import Here, Store
from scheduler.tuning.tuner import TuneProgress, make_contests
from tests.profiler.devices import device as other_device
from tests.scheduler.convnet import MODEL

SMALL: dict[str, Any] = {"dims": {"n": 1}}


@pytest.fixture
def here(this_machine: DeviceProfile) -> DeviceProfile:
    """Return this machine's profile."""
    return this_machine


@pytest.fixture
def db(tmp_path: Path, here) -> str:
    url = f"sqlite:///{tmp_path / 'tune.sqlite'}"
    with Store(url) as store:
        store.devices.save(here)
    return url


def tune_a_little(url: str, candidates: int = 4, **options) -> list[TuneProgress]:
    """Tune until that many candidates are measured, however busy the machine is. Return the progress reports."""
    seen: list[TuneProgress] = []

    def stop() -> bool:
        return bool(seen) and seen[-1].measured >= candidates and seen[-1].now.partition(": ")[2].startswith("turn")

    edgewise.tune(MODEL, 300.0, **SMALL, **({"threads": 1} | options), db=url, progress=seen.append, stop=stop)
    return seen


def stored(url: str) -> dict[tuple[str, str], int]:
    """Return the numbers of stored samples by signature and strategy."""
    with Store(url) as store:
        found = store.measurements.evidence(Here(local_fingerprint(), current_build()))
        return {(m.signature_key, str(m.strategy)): m.samples for m in found}


def test_a_tuned_plan_is_measured_stored_and_what_a_session_runs(db):
    seen: list[TuneProgress] = []
    plan = edgewise.tune(MODEL, 25.0, **SMALL, db=db, progress=seen.append)
    assert plan.state.status == "current"
    assert plan.measured_ns is not None
    assert "as a whole" in plan.why
    assert stored(db)
    assert seen[-1].now == "done"
    assert 0 < seen[-1].measured <= seen[-1].planned
    assert all(a.spent_s <= b.spent_s for a, b in itertools.pairwise(seen[1:]))
    with Store(db) as store:
        assert store.plans.get(plan.id, Here(local_fingerprint(), current_build())).plan.measured_ns == plan.measured_ns
    feeds = {"x": np.random.default_rng(1).standard_normal((1, 3, 16, 16)).astype(np.float32)}
    expected = Session(MODEL, backend="numpy").run(feeds)["y"]
    np.testing.assert_allclose(Session(MODEL, plan=plan).run(feeds)["y"], expected, rtol=1e-3, atol=1e-3)
    assert edgewise.plan(MODEL, **SMALL, db=db) == plan


def test_every_native_candidate_that_is_stored_knows_its_load(db):
    tune_a_little(db)
    with Store(db) as store:
        found = store.measurements.evidence(Here(local_fingerprint(), current_build()))
    assert found
    assert all(m.load and m.p50_ns > 0 and m.samples >= 1 and m.strategy.backend == "native" for m in found)


def test_numpy_is_measured_where_it_was_asked_for(db):
    tune_a_little(db, backend="numpy")
    assert {key[1].partition("/")[0] for key in stored(db)} == {"numpy"}


def test_stop_keeps_what_was_measured_and_returns_a_plan(db):
    asked = [False]

    def progress(at: TuneProgress) -> None:
        asked[0] |= at.measured > 2

    plan = edgewise.tune(MODEL, 300.0, **SMALL, threads=1, db=db, progress=progress, stop=lambda: asked[0])
    assert "stopped" in plan.why
    assert plan.measured_ns is None
    assert any(step.measured for step in plan.steps)
    assert stored(db)


def test_a_second_run_begins_with_what_the_first_one_stored(db):
    tune_a_little(db)
    before = stored(db)
    seen = tune_a_little(db, len(before) + 1)
    after = stored(db)
    assert seen[0].measured == len(before)
    assert set(after) >= set(before)
    assert all(after[key] >= samples for key, samples in before.items())


def test_contests_take_up_what_is_stored(db, here):
    tune_a_little(db)
    before = stored(db)
    with Store(db) as store:
        subject = Subject.of(MODEL, **SMALL)
        contests = make_contests(subject, 1, evidence_of(subject, here, store))
    known = {(c.key, str(arm.strategy)): arm.runs for c in contests for arm in c.arms if arm.runs}
    assert known == {key: samples for key, samples in before.items() if key in known}
    assert len(known) == len(before)


def test_nodes_of_one_signature_share_a_contest(here):
    subject = Subject.of(MODEL, **SMALL)
    contests = make_contests(subject, 1, evidence_of(subject, here, None))
    assert len({c.key for c in contests}) == len(contests)
    assert sorted(node for c in contests for node in c.nodes) == sorted(
        node.name for node in subject.graph.nodes if subject.fixed(node) is None
    )


@pytest.mark.parametrize(("options", "says"), [({"budget_s": 0}, "budget_s is 0"), ({"threads": 0}, "threads is 0")])
def test_nonsense_is_refused(options, says):
    with pytest.raises(AttributeValueError, match=says):
        edgewise.tune(MODEL, **{"budget_s": 1.0, **options}, dims={"n": 1})


def test_a_foreign_device_never_gets_an_unlabelled_plan(db):
    tune_a_little(db)
    with Store(db) as store:
        store.devices.save(other_device())
    plan = edgewise.plan(MODEL, other_device().fingerprint, **SMALL, db=db)
    assert plan.state.status == "predicted"
    assert not any(step.measured for step in plan.steps)


TUNE = """
import sys
import scheduler.exclusive
from pathlib import Path
scheduler.exclusive.lock_path = lambda: Path(sys.argv[3])
import edgewise
edgewise.tune(sys.argv[1], 400.0, dims={"n": 1}, threads=1, db=sys.argv[2])
"""


def test_a_kill_loses_nothing_that_was_stored(db, tmp_path):
    path = tmp_path / "net.onnx"
    onnx.save(wide_net(), path)
    lock = str(tmp_path / "measuring.lock")
    victim = subprocess.Popen([sys.executable, "-c", TUNE, str(path), db, lock], cwd=Path.cwd())
    try:
        ends = time.monotonic() + 240
        while not stored(db) and victim.poll() is None and time.monotonic() < ends:
            time.sleep(0.5)
        assert victim.poll() is None, "it ended before anything was stored"
    finally:
        os.kill(victim.pid, signal.SIGKILL)
        victim.wait()
    before = stored(db)
    assert before
    seen: list[TuneProgress] = []
    plan = edgewise.tune(path, 2.0, dims={"n": 1}, threads=1, db=db, progress=seen.append)
    after = stored(db)
    assert seen[0].measured == len(before)
    assert all(after[key] >= samples for key, samples in before.items())
    assert any(step.measured for step in plan.steps)


def wide_net() -> onnx.ModelProto:
    """Return a model with convolutions of many shapes, so that a search takes a while."""
    rng = np.random.default_rng(0)
    value, nodes, weights = onnx.helper.make_tensor_value_info, [], []
    last, channels = "x", 3
    for n, (outputs, kernel) in enumerate([(16, 3), (24, 3), (32, 1), (40, 3), (48, 3)]):
        array = rng.standard_normal((outputs, channels, kernel, kernel)).astype(np.float32) / channels
        weights.append(onnx.numpy_helper.from_array(array, f"w{n}"))
        nodes.append(onnx.helper.make_node("Conv", [last, f"w{n}"], [f"v{n}"], f"conv{n}", pads=[kernel // 2] * 4))
        last, channels = f"v{n}", outputs
    graph = onnx.helper.make_graph(
        nodes,
        "wide",
        [value("x", onnx.TensorProto.FLOAT, ["n", 3, 40, 40])],
        [value(last, onnx.TensorProto.FLOAT, None)],
        weights,
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)


def test_tuning_again_from_the_same_evidence_plans_the_same(db, here):
    tune_a_little(db)
    with Store(db) as store:
        from scheduler.planning.planner import make_plan

        first = make_plan(MODEL, here, **SMALL, max_threads=1, store=store)
        assert make_plan(MODEL, here, **SMALL, max_threads=1, store=store) == first
        assert any(step.measured for step in first.steps)


def test_a_tune_that_measured_nothing_fails_and_stores_no_plan(db):
    with pytest.raises(
        MeasurementError, match=r"nothing was measured in 0\.001 s, which were spent on preparing; nothing was stored"
    ):
        edgewise.tune(MODEL, 0.001, **SMALL, db=db)
    with Store(db) as store:
        assert store.plans.page(Here(local_fingerprint(), current_build())).items == ()


def test_a_tune_that_is_stopped_before_it_measured_anything_fails_too(db):
    with pytest.raises(StoppedError, match="stopped before anything was measured"):
        edgewise.tune(MODEL, 60.0, **SMALL, db=db, stop=lambda: True)
