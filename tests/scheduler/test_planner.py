"""Every step of a plan has a reason, constraints hold, planning is deterministic, and the executor runs what was planned."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from graph.errors import LimitError
from graph.formats.onnx.reader import read
from graph.ir import Model
from kernels.errors import AttributeValueError, InvalidError, UnsupportedError
from profiler.device.profile import DeviceProfile
from scheduler.build import current_build
from scheduler.cost.fitting import CostModel, Point
from scheduler.errors import StalePlanError
from scheduler.local import local_device, local_fingerprint
from scheduler.plan import Constraints, InfeasibleError, Plan
from scheduler.planning.planner import compose, evidence_of, make_plan
from scheduler.planning.steps import Evidence
from scheduler.planning.subject import Subject
from scheduler.session import MAX_PLANS, Session, SessionLimits
from scheduler.store import Measurement, Store
from scheduler.strategy import Strategy
from tests.machines import HOSTS, describe
from tests.profiler import models
from tests.profiler.devices import device
from tests.scheduler.convnet import MODEL

DEVICE = device()


def planned(**options) -> Plan:
    return make_plan(MODEL, DEVICE, dims={"n": 1}, **options)


def test_every_step_names_its_candidates_and_why() -> None:
    steps = {step.node: step for step in planned().steps}
    assert {c.strategy.algorithm for c in steps["pointwise"].candidates} >= {"gemm", "im2col", "taps"}
    refused = [c for c in steps["depthwise"].candidates if c.verdict == "refused"]
    assert all(c.reason for c in refused)
    assert any("1x1" in c.reason for c in refused)
    assert all(step.why for step in steps.values())
    assert [c.verdict for c in steps["pointwise"].candidates].count("chosen") == 1


def test_the_same_question_has_the_same_answer_and_survives_json() -> None:
    assert planned() == planned()
    assert Plan.from_json(planned().to_json()) == planned()


def test_totals_are_the_sums_of_the_steps() -> None:
    plan = planned()
    assert plan.predicted_ns == pytest.approx(sum(step.predicted_ns for step in plan.steps))
    assert plan.low_ns <= plan.predicted_ns <= plan.high_ns
    assert sum(step.macs for step in plan.steps) == 256 * (8 * 27 + 64 + 72)


def test_a_plan_is_shown_with_its_steps_where_debugging_asks(monkeypatch, capsys) -> None:
    monkeypatch.delenv("EDGEWISE_DEBUG", raising=False)
    plan = planned()
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("EDGEWISE_DEBUG", "1")
    planned()
    first, *steps = (json.loads(line) for line in capsys.readouterr().err.splitlines())
    assert (first["event"], first["threads"], first["why"]) == ("plan", plan.threads, plan.why)
    assert [(each["node"], each["strategy"]) for each in steps] == [(step.node, str(step.strategy)) for step in plan.steps]


def test_planning_refuses_a_debug_level_that_there_is_not(monkeypatch) -> None:
    monkeypatch.setenv("EDGEWISE_DEBUG", "plan")
    with pytest.raises(InvalidError, match="EDGEWISE_DEBUG: unknown level 'plan'"):
        planned()


def test_a_device_that_is_not_here_gets_a_labelled_prediction() -> None:
    assert planned().state.status == "predicted"


def test_max_threads_binds() -> None:
    assert planned(max_threads=1).threads == 1


@pytest.mark.parametrize(
    ("limit", "says"),
    [
        ({"max_latency_ms": 1e-6}, "latency is"),
        ({"max_memory_bytes": 10}, "memory is"),
        ({"max_error": 0.0}, "error estimate is"),
    ],
)
def test_infeasible_constraints_say_what_binds_and_attach_the_closest(limit, says) -> None:
    with pytest.raises(InfeasibleError, match=says) as caught:
        planned(**limit)
    assert says in caught.value.binds
    assert caught.value.closest.steps


def test_objectives_weigh_differently() -> None:
    throughput = planned(objective="throughput")
    assert throughput.replicas * throughput.threads <= DEVICE.usable_cores
    assert planned(objective="memory").arena_bytes <= planned().arena_bytes


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"backend": "cuda"}, AttributeValueError),
        ({"precision": "int8"}, UnsupportedError),
        ({"objective": "speed"}, AttributeValueError),
    ],
)
def test_what_does_not_exist_is_refused(options, error) -> None:
    with pytest.raises(error):
        planned(**options)


def test_a_plan_is_of_batch_1_where_none_is_given() -> None:
    assert make_plan(MODEL, DEVICE).inputs == make_plan(MODEL, DEVICE, dims={"n": 1}).inputs


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory):
    with Store(f"sqlite:///{tmp_path_factory.mktemp('db') / 'plans.sqlite'}") as found:
        found.models.save(MODEL.digest, MODEL.source, MODEL.nbytes)
        yield found


def measured(plan: Plan, node: str, algorithm: str, nanoseconds: float, fingerprint: str) -> Measurement:
    step = next(step for step in plan.steps if step.node == node)
    strategy = next(c.strategy for c in step.candidates if c.strategy.algorithm == algorithm and c.strategy.precision == "fp32")
    return Measurement(
        device_fingerprint=fingerprint,
        engine_build=current_build().id,
        kernel_source=step.kernel_source,
        op=step.op,
        signature=step.signature,
        signature_key=step.signature_key,
        strategy=strategy,
        executed_macs=step.executed_macs,
        other_flops=step.other_flops,
        moved_bytes=step.moved_bytes,
        samples=10,
        std_ns=0.0,
        measured_us=1,
        min_ns=nanoseconds,
        p50_ns=nanoseconds,
        p90_ns=nanoseconds,
        mean_ns=nanoseconds,
    )


def test_a_fresh_measurement_overrules_the_prediction(store: Store) -> None:
    store.devices.save(DEVICE)
    plan = planned(max_threads=1)
    store.measurements.save(
        [measured(plan, "pointwise", name, ns, DEVICE.fingerprint) for name, ns in (("gemm", 9e9), ("im2col", 5.0))]
    )
    step = next(step for step in planned(max_threads=1, store=store).steps if step.node == "pointwise")
    assert step.strategy.algorithm == "im2col"
    assert step.measured
    assert step.predicted_ns == 5.0


def test_a_measurement_of_another_device_is_not_used(store: Store, this_machine: DeviceProfile) -> None:
    other = make_plan(MODEL, this_machine, dims={"n": 1}, max_threads=1, store=store)
    assert not any(step.measured for step in other.steps)


@pytest.fixture(params=HOSTS)
def machine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the planner find each described processor in place of this machine's."""
    describe(monkeypatch, request.param)


def convolution(channels: int, size: int) -> Model:
    """Return a model of one 3×3 convolution of a row-major image."""
    weights = np.random.default_rng(0).standard_normal((channels, channels, 3, 3)).astype(np.float32)
    node = helper.make_node("Conv", ["x", "w"], ["y"], "conv", pads=[1] * 4)
    value = helper.make_tensor_value_info
    shape = [1, channels, size, size]
    graph = helper.make_graph(
        [node],
        "net",
        [value("x", TensorProto.FLOAT, shape)],
        [value("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(weights, "w")],
    )
    return read(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


@pytest.mark.usefixtures("machine")
def test_converting_the_input_is_counted() -> None:
    (options,) = Subject.of(convolution(64, 28)).options(1)
    moved = {o.strategy.algorithm: o.load.converted_bytes for o in options if o.load and o.strategy.backend == "native"}
    assert moved == {"direct": 0, "winograd": 2 * 4 * 64 * 28 * 28}


@pytest.mark.usefixtures("machine")
def test_the_unmeasured_default_is_the_rules_first() -> None:
    model = convolution(64, 28)
    step = make_plan(model, DEVICE, max_threads=1).steps[0]
    (options,) = Subject.of(model).options(1)
    assert step.strategy == options[0].strategy


@pytest.mark.usefixtures("machine")
def test_memory_counts_packed_weights() -> None:
    model = convolution(64, 28)
    fast, small = (make_plan(model, DEVICE, objective, max_threads=1) for objective in ("latency", "memory"))
    assert fast.steps[0].strategy.algorithm == "winograd"
    assert small.steps[0].strategy.algorithm != "winograd"
    packed = next(c.packed_bytes for c in fast.steps[0].candidates if c.verdict == "chosen")
    assert fast.memory_bytes - packed == fast.arena_bytes + fast.param_bytes + 2 * 4 * 64 * 28 * 28
    assert small.memory_bytes < fast.memory_bytes
    with pytest.raises(InfeasibleError, match="memory is") as caught:
        make_plan(model, DEVICE, max_threads=1, max_memory_bytes=fast.memory_bytes - 1)
    assert caught.value.closest.memory_bytes == fast.memory_bytes


@pytest.mark.usefixtures("machine")
def test_beside_a_measurement_only_a_fitted_prediction_counts_and_by_its_upper_bound() -> None:
    subject = Subject.of(convolution(64, 28))
    (options,) = subject.options(1)
    slow = next(o for o in options if o.load and o.strategy.algorithm == "direct")
    points = [Point(o.load, 1e4, 0.01, str(n)) for n in range(8) for o in options if o.load and o.strategy.backend == "native"]
    fitted, bare = CostModel.fitted(DEVICE, points), CostModel(DEVICE)
    plan = make_plan(subject.model, DEVICE, max_threads=1)
    for model, ns, wins in ((fitted, 0.9e4, True), (fitted, 1e9, False), (bare, 1e9, True)):
        row = replace(measured(plan, "conv", "direct", ns, DEVICE.fingerprint), strategy=slow.strategy)
        evidence = Evidence({subject.signatures[0].key: {slow.strategy: row}}, model)
        step = compose(subject, DEVICE, "latency", Constraints(max_threads=1), evidence).steps[0]
        assert (step.strategy == slow.strategy) == wins
        assert step.measured == wins
        others = [c for c in step.candidates if c.verdict not in ("chosen", "refused")]
        for other in others:  # a prediction is never called slower than a measurement
            assert (other.verdict == "unmeasured") == (wins and other.measured_ns is None)
        told = " ".join(other.reason for other in others)
        assert ("not measured here: predicted" in told) == wins
        assert ("measured, " in told and "is predicted to take" in told) == (not wins)


@pytest.mark.usefixtures("machine")
def test_thread_counts_are_ranked_by_the_same_rule() -> None:
    subject = Subject.of(convolution(64, 28))
    plan = make_plan(subject.model, DEVICE, max_threads=1)
    for ns, threads in ((1e3, 1), (1e9, DEVICE.usable_cores)):
        rows = {}
        for option in subject.options(1)[0]:
            if option.load is not None:
                made = measured(plan, "conv", option.strategy.algorithm, ns, DEVICE.fingerprint)
                rows[option.strategy] = replace(made, strategy=option.strategy)
        evidence = Evidence({subject.signatures[0].key: rows}, CostModel(DEVICE))
        made_of_it = compose(subject, DEVICE, "latency", Constraints(), evidence)
        assert made_of_it.threads == threads
        told = {option.threads: option.verdict for option in made_of_it.thread_options}
        assert told[DEVICE.usable_cores] == ("unmeasured" if threads == 1 else "chosen")


@pytest.mark.usefixtures("machine")
def test_what_was_dropped_is_refused_with_the_reason() -> None:
    subject = Subject.of(convolution(64, 28))
    (options,) = subject.options(1)
    first = options[0].strategy
    evidence = replace(evidence_of(subject, DEVICE, None), dropped={(subject.signatures[0].key, first): "it spills"})
    step = compose(subject, DEVICE, "latency", Constraints(max_threads=1), evidence).steps[0]
    assert {c.strategy: c.reason for c in step.candidates if c.verdict == "refused"}[first] == "it spills"
    assert step.strategy != first


def _as_run(strategy: Strategy) -> str:
    """Return the name under which the executor lists a step of that strategy."""
    return str(strategy.choice) if strategy.backend == "native" else strategy.algorithm


def test_the_session_runs_exactly_the_plan(this_machine: DeviceProfile) -> None:
    plan = make_plan(MODEL, this_machine, dims={"n": 2}, objective="memory")
    assert plan.state.status == "current"
    session = Session(MODEL, plan=plan)
    feeds = {"x": np.random.default_rng(1).standard_normal((2, 3, 16, 16)).astype(np.float32)}
    expected = Session(MODEL).run(feeds)["y"]
    np.testing.assert_allclose(session.run(feeds)["y"], expected, rtol=1e-4, atol=1e-4)
    steps = {step.node.name: step.algorithm for step in session.executor(feeds).steps}
    assert steps == {step.node: _as_run(step.strategy) for step in plan.steps}
    assert session.plan == plan


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model_digest": "0" * 64}, "plan is of model"),
        ({"device_fingerprint": "0" * 16}, "device"),
        ({"engine_build": "old"}, "build"),
    ],
)
def test_a_plan_of_something_else_is_refused(this_machine: DeviceProfile, change, says) -> None:
    plan = make_plan(MODEL, this_machine, dims={"n": 1}).model_copy(update=change)
    with pytest.raises(StalePlanError, match=says):
        Session(MODEL, plan=plan)


def test_a_session_follows_plans_that_come_later(this_machine: DeviceProfile) -> None:
    session = Session(MODEL, threads=2)
    feeds = {n: {"x": np.random.default_rng(n).standard_normal((n, 3, 16, 16)).astype(np.float32)} for n in (1, 2)}
    before = {n: session.run(feeds[n])["y"] for n in feeds}
    running = {n: session.ready(feeds[n]) for n in feeds}
    plan = make_plan(MODEL, this_machine, dims={"n": 2}, max_threads=1, backend="numpy")
    session.follow(plan)
    assert session.ready(feeds[1]) is running[1]  # other shapes stay as they are
    swapped = session.ready(feeds[2])
    assert (swapped.plan_id, swapped.executor.threads, running[2].plan_id) == (plan.id, 1, "default")
    assert {step.node.name: step.algorithm for step in swapped.executor.steps} == {
        step.node: _as_run(step.strategy) for step in plan.steps
    }
    for n in feeds:
        np.testing.assert_allclose(session.run(feeds[n])["y"], before[n], rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(running[2].executor.run(feeds[2])["y"], before[2])  # who holds the old one ends by it
    for n in range(3, 4 + MAX_PLANS):
        session.follow(plan.model_copy(update={"inputs": (plan.inputs[0].model_copy(update={"shape": (n, 3, 16, 16)}),)}))
    assert (len(session.plans), plan.id in session.plans) == (MAX_PLANS, False)


def test_shapes_near_those_of_a_plan_follow_it_and_say_so(this_machine: DeviceProfile) -> None:
    plan = make_plan(MODEL, this_machine, dims={"n": 4}, max_threads=1, backend="numpy")
    session, plain = Session(MODEL, plan=plan), Session(MODEL, threads=1)
    for n, followed in (
        (4, plan.id),
        (5, plan.id + "~"),
        (16, plan.id + "~"),
        (3, plan.id + "~"),
        (17, "default"),
        (1, "default"),
    ):
        feeds = {"x": np.random.default_rng(n).standard_normal((n, 3, 16, 16)).astype(np.float32)}
        ready = session.ready(feeds)
        assert ready.plan_id == followed
        assert any(step.algorithm.startswith("native/") for step in ready.executor.steps) == (followed == "default")
        np.testing.assert_allclose(session.run(feeds)["y"], plain.run(feeds)["y"], rtol=1e-4, atol=1e-4)


def test_a_plan_that_cannot_be_built_changes_nothing(this_machine: DeviceProfile) -> None:
    feeds = {"x": np.ones((1, 3, 16, 16), np.float32)}
    needed = Session(MODEL, threads=1).executor(feeds).needed_bytes
    session = Session(MODEL, threads=1, limits=SessionLimits(arena_bytes=needed))
    ready = session.ready(feeds)
    plan = make_plan(MODEL, this_machine, dims={"n": 1}, max_threads=1, backend="numpy")
    with pytest.raises(LimitError, match="the limit is"):
        session.follow(plan)
    assert (session.ready(feeds) is ready, session.plan_id) == (True, "default")


def test_local_device_is_measured_once(tmp_path: Path) -> None:
    with Store(f"sqlite:///{tmp_path / 'once.sqlite'}") as fresh:
        first = local_device(fresh, 0.3)
        assert first.fingerprint == local_fingerprint()
        assert local_device(fresh, 0.3) == first


def test_a_model_with_control_flow_is_planned() -> None:
    """An If has no tolerance of its own to add to the plan's error estimate."""
    bodies = {
        name: models.branch(name, models.node("Relu", "x", f"{name}_out"), output=f"{name}_out") for name in ("then", "other")
    }
    chosen = models.node("If", "which", "y", then_branch=bodies["then"], else_branch=bodies["other"])
    proto = models.model([chosen], {"x": [2, 4], "which": []}, ["y"], dtypes={"which": TensorProto.BOOL})
    plan = make_plan(read(proto), DEVICE)
    assert [(step.op, step.strategy.algorithm) for step in plan.steps] == [("If", "dynamic")]
