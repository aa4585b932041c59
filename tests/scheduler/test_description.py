"""A session without a plan describes exactly what it runs, and reading the description changes nothing."""

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings

from scheduler import local
from scheduler.local import device_at_hand, local_fingerprint
from scheduler.plan import EXECUTOR, Plan
from scheduler.session import DEFAULT, Session
from scheduler.strategy import Strategy, WantedBackend
from tests.graph.random_models import random_feeds, random_models
from tests.profiler.devices import device
from tests.profiler.models import small_convnet
from tests.scheduler.convnet import MODEL

FEEDS = {"x": np.random.default_rng(0).standard_normal((2, 3, 16, 16)).astype(np.float32)}


def said(plan: Plan) -> list[tuple[str, str]]:
    """Return the steps of a plan in the form in which a trace lists them."""
    return [(step.node, as_run(step.strategy)) for step in plan.steps]


def as_run(strategy: Strategy) -> str:
    return str(strategy.choice) if strategy.backend == "native" else strategy.algorithm


def traced(session: Session, feeds: dict[str, np.ndarray]) -> list[tuple[str, str]]:
    return [(op.name, op.algorithm) for op in session.trace(feeds, runs=1).ops]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("backend", ["auto", "numpy"])
def test_it_lists_what_a_trace_shows(backend: WantedBackend, threads: int) -> None:
    session = Session(MODEL, threads=threads, backend=backend)
    session.run(FEEDS)
    plan = session.plan
    assert said(plan) == traced(session, FEEDS)
    assert {step.strategy.threads for step in plan.steps if step.strategy.backend != EXECUTOR} == {threads}


@pytest.mark.parametrize("backend", ["auto", "numpy"])
@given(random_models(), random_feeds())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_it_lists_what_a_trace_of_a_random_model_shows(backend: WantedBackend, proto: onnx.ModelProto, feeds: dict) -> None:
    session = Session(proto, threads=2, backend=backend)
    session.run(feeds)
    assert said(session.plan) == traced(session, feeds)


def test_it_is_of_the_shapes_used_last_and_before_any_run_of_batch_1() -> None:
    session = Session(MODEL, threads=1)
    assert session.plan.inputs[0].shape == (1, 3, 16, 16)
    for count in (2, 1):
        session.run({"x": FEEDS["x"][:count]})
        assert session.plan.inputs[0].shape == (count, 3, 16, 16)


@pytest.mark.parametrize("backend", ["auto", "numpy"])
def test_reading_it_before_any_run_says_what_the_run_will_do(backend: WantedBackend) -> None:
    proto = small_convnet()
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    feeds = {"x": np.ones((1, 3, 14, 14), np.float32)}
    session = Session(proto, threads=2, backend=backend)
    before = said(session.plan)
    assert not session._ready
    session.run(feeds)
    assert before == traced(session, feeds)


def test_reading_it_has_no_side_effect(tmp_path, monkeypatch) -> None:
    def refuse(*_args, **_options):
        raise AssertionError("a description measures nothing")

    monkeypatch.setenv("EDGEWISE_DB", f"sqlite:///{tmp_path / 'edgewise.sqlite'}")
    monkeypatch.setattr("scheduler.store.default_url", lambda: f"sqlite:///{tmp_path / 'default.sqlite'}")
    monkeypatch.setattr(local, "probe", refuse)
    monkeypatch.setattr(local, "_known", {})
    session = Session(MODEL, threads=1)
    expected = session.run(FEEDS)["y"]
    executor = session.executor(FEEDS)
    plan = session.plan
    assert session.plan is plan
    assert list(tmp_path.iterdir()) == []
    assert (session.threads, session.plan_id, session.plans) == (1, DEFAULT, {})
    assert session.executor(FEEDS) is executor
    np.testing.assert_array_equal(session.run(FEEDS)["y"], expected)
    assert plan.threads == 1
    assert plan.predicted_ns > 0
    assert "without a plan" in plan.why
    assert "nothing was measured" in plan.why


def test_its_times_are_of_the_device_as_it_was_measured_where_this_process_knows(monkeypatch) -> None:
    known = device_at_hand()
    measured = device().model_copy(update={"hardware": known.hardware})
    monkeypatch.setattr(local, "_known", {local_fingerprint(): measured})
    session = Session(MODEL, threads=1)
    session.run(FEEDS)
    assert session.plan.why.endswith("by its measured rates")


def test_a_description_can_be_followed() -> None:
    session = Session(MODEL, threads=1)
    expected = session.run(FEEDS)["y"]
    plan = session.plan
    session.follow(plan)
    assert session.plan == plan
    assert session.plan_id == plan.id
    np.testing.assert_array_equal(session.run(FEEDS)["y"], expected)
