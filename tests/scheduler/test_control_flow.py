"""Models whose steps are not one node with one kernel: the whole way of each, from planning to a trace and to tuning."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest

import edgewise
from graph.formats.onnx.reader import read
from kernels.spec import Array
from profiler.counting.counts import profile
from profiler.device.profile import DeviceProfile
from profiler.run.roofline import roofline
from scheduler.planning.planner import make_plan
from scheduler.session import Session
from scheduler.store import Store
from scheduler.strategy import WantedBackend
from scheduler.tuning.tuner import TuneProgress
from tests.graph.oracle import BOOL, INT64, assert_agrees, body, constant, expected, ints, make, node, port
from tests.profiler.devices import device
from tests.profiler.models import random

CHANNELS = 40  # several blocks of every instruction set
PLANE = [1, CHANNELS, 6, 6]
WEIGHTS = [constant("w0", random(CHANNELS, 3, 1, 1)), constant("w1", random(CHANNELS, CHANNELS, 1, 1) / 8)]

Flow = tuple[onnx.ModelProto, Mapping[str, Array]]


def shuffled() -> Flow:
    """A convolution whose channels are shuffled, which native code does in one step, and split again."""
    nodes = [
        node("Conv", ["x", "w0"], ["a"], "first"),
        node("Reshape", ["a", "apart"], ["b"], "apart"),
        node("Transpose", ["b"], ["c"], "swap", perm=[0, 2, 1, 3, 4]),
        node("Reshape", ["c", "whole"], ["d"], "whole"),
        node("Split", ["d"], ["e", "f"], "split", axis=1),
        node("Conv", ["f", "w2"], ["g"], "depthwise", group=CHANNELS // 2, pads=[1, 1, 1, 1]),
        node("Concat", ["e", "g"], ["y"], "concat", axis=1),
    ]
    shapes = [ints("apart", 1, 2, CHANNELS // 2, 6, 6), ints("whole", *PLANE), constant("w2", random(CHANNELS // 2, 1, 3, 3))]
    return make(nodes, ["y"], [WEIGHTS[0], *shapes], [port("x", [1, 3, 6, 6])]), {"x": random(1, 3, 6, 6)}


def branching() -> Flow:
    then = body([node("Conv", ["a", "w1"], ["t"], "inner")], [], [port("t", PLANE)])
    other = body([node("Neg", ["a"], ["u"]), node("Tanh", ["u"], ["w"])], [], [port("w", PLANE)])
    nodes = [
        node("Conv", ["x", "w0"], ["a"], "first"),
        node("If", ["flag"], ["b"], "if", then_branch=then, else_branch=other),
        node("Relu", ["b"], ["y"], "last"),
    ]
    inputs = [port("x", [1, 3, 6, 6]), port("flag", [], BOOL)]
    return make(nodes, ["y"], WEIGHTS, inputs), {"x": random(1, 3, 6, 6), "flag": np.array(True)}


def _looping(count: list[onnx.TensorProto], inputs: list[onnx.ValueInfoProto], feeds: Mapping[str, Array]) -> Flow:
    turn = body(
        [
            node("Conv", ["v", "w1"], ["u"], "inner"),
            node("Relu", ["u"], ["w"]),
            node("Identity", ["go"], ["on"]),
            node("ReduceMean", ["w"], ["mean"], keepdims=0),
        ],
        [port("i", [], INT64), port("go", [], BOOL), port("v", PLANE)],
        [port("on", [], BOOL), port("w", PLANE), port("mean", [])],
    )
    nodes = [
        node("Conv", ["x", "w0"], ["a"], "first"),
        node("Loop", ["n", "", "a"], ["b", "means"], "loop", body=turn),
        node("Relu", ["b"], ["y"], "last"),
        node("Neg", ["means"], ["z"], "means"),
    ]
    return make(nodes, ["y", "z"], [*WEIGHTS, *count], [port("x", [1, 3, 6, 6]), *inputs]), {"x": random(1, 3, 6, 6), **feeds}


def looping() -> Flow:
    return _looping([constant("n", 3, np.int64)], [], {})


def looping_as_often_as_it_is_told() -> Flow:
    return _looping([], [port("n", [], INT64)], {"n": np.array(2)})


def scanning() -> Flow:
    nodes = [node("Add", ["s", "e"], ["t"]), node("MatMul", ["t", "w1"], ["o"], "inner")]
    turn = body(nodes, [port("s", [4]), port("e", [4])], [port("t", [4]), port("o", [5])])
    nodes = [
        node("MatMul", ["x", "w0"], ["a"], "first"),
        node("Scan", ["h", "a"], ["last", "b"], "scan", body=turn, num_scan_inputs=1),
        node("Relu", ["b"], ["y"], "relu"),
        node("Neg", ["last"], ["z"], "neg"),
    ]
    constants = [constant("w0", random(3, 4)), constant("w1", random(4, 5)), constant("h", np.zeros(4))]
    return make(nodes, ["y", "z"], constants, [port("x", [7, 3])]), {"x": random(7, 3)}


flows = pytest.mark.parametrize(
    "flow", [shuffled, branching, looping, looping_as_often_as_it_is_told, scanning], ids=lambda flow: flow.__name__
)


def shapes_of(feeds: Mapping[str, Array]) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in feeds.items()}


@flows
@pytest.mark.parametrize("backend", ["auto", "numpy"])
def test_a_plan_is_made_and_run(flow: Callable[[], Flow], backend: WantedBackend, this_machine: DeviceProfile) -> None:
    proto, feeds = flow()
    plan = make_plan(read(proto), this_machine, shapes=shapes_of(feeds), backend=backend)
    assert all(step.why for step in plan.steps)
    assert_agrees(Session(proto, plan=plan).run(feeds), expected(proto, feeds))


@flows
def test_a_session_without_a_plan_runs_and_is_described(flow: Callable[[], Flow]) -> None:
    proto, feeds = flow()
    session = Session(proto)
    assert_agrees(session.run(feeds), expected(proto, feeds))
    ran = {step.node.name for step in session.executor(feeds).steps}
    assert {step.node for step in session.plan.steps} == ran


@flows
def test_every_step_is_counted_traced_and_compared_with_the_device(flow: Callable[[], Flow]) -> None:
    proto, feeds = flow()
    assert profile(read(proto), shapes=shapes_of(feeds)).ops
    traced = Session(proto).trace(feeds, runs=2)
    points = roofline(traced, device(), 1).points
    assert {point.name for point in points} <= {row.name for row in traced.rows}


@flows
def test_it_is_tuned(flow: Callable[[], Flow], this_machine: DeviceProfile, tmp_path: Path) -> None:
    proto, feeds = flow()
    url = f"sqlite:///{tmp_path / 'tune.sqlite'}"
    with Store(url) as store:
        store.devices.save(this_machine)
    seen: list[TuneProgress] = []

    def stop() -> bool:
        return bool(seen) and seen[-1].measured >= 2

    plan = edgewise.tune(read(proto), 60.0, shapes=shapes_of(feeds), threads=1, db=url, progress=seen.append, stop=stop)
    assert plan.state.status == "current"
    assert_agrees(Session(proto, plan=plan).run(feeds), expected(proto, feeds))
