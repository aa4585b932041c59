"""Plans of products in bfloat16: which steps they are, what their error is, and that the executor runs them so."""

from collections import Counter

import numpy as np
import pytest
from onnx import helper

from graph.errors import FeedError
from graph.formats.onnx.reader import read
from graph.ir import Model
from kernels.precision import ROUNDING
from profiler.device.profile import DeviceProfile
from scheduler.local import local_device
from scheduler.plan import InfeasibleError, Plan
from scheduler.planning.accuracy import Reference, difference
from scheduler.planning.planner import AUTO_ERROR, MARGIN, make_plan
from scheduler.planning.subject import Subject
from scheduler.session import Session
from scheduler.store import Store
from tests.graph.oracle import constant, make, port
from tests.profiler.devices import device
from tests.scheduler.convnet import MODEL

LAYERS = 6


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> DeviceProfile:
    with Store(f"sqlite:///{tmp_path_factory.mktemp('device') / 'a.db'}") as store:
        return local_device(store, 0.5)


@pytest.fixture(scope="module")
def model() -> Model:
    """A network of convolutions, each twice as wide as the last but one, so that they differ in what bfloat16 saves."""
    rng, widths = np.random.default_rng(0), [16, 16, 32, 32, 64, 64, 128]
    nodes, constants, value = [], [], "x"
    for at in range(LAYERS):
        inputs, outputs = widths[at : at + 2]
        constants.append(constant(f"w{at}", rng.standard_normal((outputs, inputs, 1, 1)) * (2 / inputs) ** 0.5))
        nodes.append(helper.make_node("Conv", [value, f"w{at}"], [f"c{at}"], name=f"conv{at}"))
        nodes.append(helper.make_node("Relu", [f"c{at}"], [value := f"r{at}"]))
    nodes.append(helper.make_node("GlobalAveragePool", [value], ["y"]))
    return read(make(nodes, ["y"], constants, [port("x", [1, 16, 28, 28])]).SerializeToString())


def precisions(plan: Plan) -> Counter[str]:
    return Counter(step.strategy.precision for step in plan.steps if step.macs)


def test_fp32_is_the_default_and_offers_nothing_else(model, here):
    plan = make_plan(model, here)
    assert plan.precision == "fp32"
    assert {c.strategy.precision for step in plan.steps for c in step.candidates if c.strategy.backend == "native"} == {"fp32"}
    assert plan.measured_error is None


def test_bf16_takes_what_is_faster_so_and_says_its_error(model, here):
    plan = make_plan(model, here, precision="bf16", samples=[])
    assert precisions(plan)["bf16"] > 0
    assert plan.measured_error is not None
    assert 0 < plan.measured_error < 0.02


def test_error_estimates_add_up_squares(model, here):
    plan = make_plan(model, here, precision="bf16")
    exact = make_plan(model, here)
    count = precisions(plan)["bf16"]
    assert plan.error_estimate == pytest.approx(exact.error_estimate + ROUNDING["bf16"] * count**0.5, rel=0.05)


@pytest.mark.parametrize("share", [0.6, 0.8])
def test_a_limit_leaves_the_steps_that_save_least_in_fp32(model, here, share):
    whole = make_plan(model, here, precision="bf16")
    count = precisions(whole)["bf16"]
    base = make_plan(model, here).error_estimate
    limit = base * 1.01 + share * ROUNDING["bf16"] * count**0.5
    plan = make_plan(model, here, precision="bf16", max_error=limit)
    assert 0 < precisions(plan)["bf16"] < count
    assert plan.error_estimate <= limit
    for step in plan.steps:
        reasons = {c.reason for c in step.candidates if c.verdict == "refused" and c.strategy.backend == "native"}
        assert any("would save" in reason for reason in reasons) == (step.macs > 0 and step.strategy.precision == "fp32")


def test_auto_keeps_its_limit_on_samples_and_on_inputs_that_are_none(model, here):
    limit = 0.004
    samples = Subject.of(model).samples(3)
    plan = make_plan(model, here, precision="auto", max_error=limit, samples=samples[:2])
    assert plan.constraints.max_error == limit
    if plan.measured_error is None:  # on this machine fp32 is as fast
        assert plan.precision == "fp32"
        return
    assert plan.measured_error <= limit
    exact, mixed = Session(model, threads=plan.threads), Session(model, plan=plan)
    error = difference(mixed.run(samples[2])["y"], exact.run(samples[2])["y"])
    assert error <= limit
    assert error < plan.measured_error / MARGIN * 2


def test_auto_without_a_limit_has_one():
    assert make_plan(read(two_products()), device(), precision="auto").constraints.max_error == AUTO_ERROR


def test_a_limit_below_that_of_fp32_cannot_be_met(model, here):
    with pytest.raises(InfeasibleError, match="error estimate is"):
        make_plan(model, here, precision="auto", max_error=1e-9, samples=[])


def test_a_tight_limit_leaves_fp32(model, here):
    base = make_plan(model, here).error_estimate
    plan = make_plan(model, here, precision="bf16", max_error=base * 1.01, samples=[])
    assert plan.precision == "fp32"


def test_sessions_run_what_a_mixed_plan_says(model, here):
    plan = make_plan(model, here, precision="bf16", max_error=0.003)
    session = Session(model, plan=plan)
    feeds = Subject.of(model).feeds()
    steps = session.executor(feeds).steps
    run = {step.node.name: step.algorithm for step in steps}
    for step in plan.steps:
        if step.strategy.precision == "bf16":
            assert run[step.node].endswith("/bf16")


def test_a_session_describes_its_precision(model):
    plan = Session(model, precision="bf16", threads=1).plan
    assert set(precisions(plan)) == {"bf16"}
    assert plan.precision == "bf16"
    assert plan.constraints.precision == "bf16"


def test_plans_with_errors_survive_json_and_keep_their_id(model, here):
    plan = make_plan(model, here, precision="bf16", samples=[])
    assert Plan.from_json(plan.to_json()) == plan
    assert plan.model_copy(update={"measured_error": None}).id == plan.id


def two_products() -> bytes:
    rng = np.random.default_rng(0)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["a"]), helper.make_node("MatMul", ["a", "w"], ["y"])]
    return make(nodes, ["y"], [constant("w", rng.standard_normal((8, 8)))], [port("x", [2, 8])]).SerializeToString()


def test_the_reference_is_fp32(model):
    subject = Subject.of(model, precision="bf16")
    samples = subject.samples(1)
    exact = Session(model).run(samples[0])
    np.testing.assert_array_equal(Reference(subject, samples)._outputs[0]["y"], exact["y"])


@pytest.mark.parametrize(
    ("made", "exact", "wanted"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0),
        ([1.0, 2.5], [1.0, 2.0], 0.25),
        ([np.nan, 1.0], [np.nan, 1.0], 0),
        ([np.nan, 1.0], [1.0, 1.0], np.inf),
        ([np.inf, 1.0], [np.inf, 2.0], 0.5),
        ([-np.inf, 1.0], [np.inf, 2.0], np.inf),
        ([1.0], [0.0], np.inf),
    ],
)
def test_differences_of_floats(made, exact, wanted):
    assert difference(np.array(made, np.float32), np.array(exact, np.float32)) == wanted


def test_differences_of_other_types_are_shares():
    assert difference(np.array([1, 2, 3, 4]), np.array([1, 2, 3, 5])) == 0.25
    assert difference(np.array(["a", "b"], object), np.array(["a", "b"], object)) == 0
    assert difference(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.float32)) == 0


def test_samples_of_other_shapes_are_refused():
    subject = Subject.of(MODEL, dims={"n": 1}, precision="bf16")
    with pytest.raises(FeedError, match=r"sample of input 'x': its shape is \[2, 3, 16, 16\], need \[1, 3, 16, 16\]"):
        Reference(subject, [{"x": np.zeros((2, 3, 16, 16), np.float32)}])
