"""Tests of what sessions accept, what they keep between runs, and what they refuse."""

import threading

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import edgewise
from graph.errors import FeedError, LimitError, RunTimeoutError
from graph.formats.onnx.reader import read
from kernels.confinement import usable_cores
from kernels.errors import AttributeValueError, UnsupportedError
from scheduler.session import Session, SessionLimits
from tests.graph.loops import endless
from tests.graph.oracle import constant, make, port


def rows_model() -> onnx.ModelProto:
    """Return a model of y = relu(x) + x and z = softmax(-relu(x)) over any number of rows of 4."""
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Add", ["a", "x"], ["y"]),
        helper.make_node("Neg", ["a"], ["b"]),
        helper.make_node("Softmax", ["b"], ["z"]),
    ]
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", 4]) for name in ("x", "y", "z")]
    graph = helper.make_graph(nodes, "rows", ports[:1], ports[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def rows(count: int) -> np.ndarray:
    return np.random.default_rng(count).standard_normal((count, 4)).astype(np.float32)


@pytest.mark.parametrize("form", ["proto", "bytes", "path", "model"])
def test_session_takes_a_model_in_every_form(form: str, tmp_path) -> None:
    proto = rows_model()
    onnx.save(proto, tmp_path / "m.onnx")
    sources = {"proto": proto, "bytes": proto.SerializeToString(), "path": tmp_path / "m.onnx", "model": read(proto)}
    x = rows(3)
    outputs = edgewise.Session(sources[form]).run({"x": x})
    np.testing.assert_array_equal(outputs["y"], np.maximum(x, 0) + x)
    assert list(outputs) == ["y", "z"]


def test_session_names_its_ports() -> None:
    session = Session(rows_model())
    assert [str(port) for port in session.inputs] == ["x: float32[rows,4]"]
    assert [port.name for port in session.outputs] == ["y", "z"]


def test_each_shape_gets_one_executor() -> None:
    session = Session(rows_model())
    assert session.executor({"x": rows(2)}) is session.executor({"x": -rows(2)})
    assert session.executor({"x": rows(2)}) is not session.executor({"x": rows(3)})


def test_the_executor_unused_longest_goes_first() -> None:
    session = Session(rows_model(), limits=SessionLimits(executors=2))
    first, second = session.executor({"x": rows(1)}), session.executor({"x": rows(2)})
    assert session.executor({"x": rows(1)}) is first
    session.executor({"x": rows(3)})
    assert session.executor({"x": rows(1)}) is first
    assert session.executor({"x": rows(2)}) is not second


def test_arenas_together_stay_under_their_limit() -> None:
    one = Session(rows_model()).executor({"x": rows(1000)})
    session = Session(rows_model(), limits=SessionLimits(arena_bytes=one.needed_bytes))
    room = one.needed_bytes // one.memory.arena_bytes
    kept = [session.executor({"x": rows(1000 - i)}) for i in range(room + 1)]
    assert session.executor({"x": rows(1000 - room)}) is kept[room]
    assert session.executor({"x": rows(1000)}) is not kept[0]


def normed_model(channels: int = 32) -> onnx.ModelProto:
    """Return a convolution with a batch norm that is folded into it, for any batch size."""
    rng = np.random.default_rng(3)
    weights = {"w": rng.standard_normal((channels, channels, 3, 3))}
    weights |= {name: rng.random(channels) + 0.5 for name in ("scale", "shift", "mean", "var")}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["a", "scale", "shift", "mean", "var"], ["y"]),
    ]
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", channels, 4, 4]) for name in "xy"]
    constants = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "normed", ports[:1], ports[1:], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_weights_that_rewriting_made_are_shared_between_shapes() -> None:
    session = Session(normed_model())
    executors = [session.executor({"x": np.zeros((n, 32, 4, 4), np.float32)}) for n in (1, 2)]
    folded = [max(executor.graph.constants.values(), key=lambda array: array.nbytes) for executor in executors]
    assert folded[0] is folded[1]
    assert not any(folded[0] is array for array in session.model.graph.constants.values())


def test_weights_that_differ_are_not_shared() -> None:
    session = Session(normed_model(), backend="numpy")
    first = session.executor({"x": np.zeros((1, 32, 4, 4), np.float32)})
    x = np.random.default_rng(0).standard_normal((2, 32, 4, 4)).astype(np.float32)
    expected = Session(normed_model(), backend="numpy").run({"x": x})["y"]
    for array in first.graph.constants.values():
        if not any(array is own for own in session.model.graph.constants.values()):
            array[...] = 0
    np.testing.assert_array_equal(session.run({"x": x})["y"], expected)


def test_a_run_ends_at_its_timeout() -> None:
    session = Session(endless())
    with pytest.raises(RunTimeoutError, match="not done at its deadline"):
        session.run({"x": np.zeros(1, np.float32)}, timeout_s=0.1)


def test_a_run_within_its_timeout_answers() -> None:
    x = rows(3)
    np.testing.assert_array_equal(Session(rows_model()).run({"x": x}, timeout_s=1000)["y"], np.maximum(x, 0) + x)


@pytest.mark.parametrize("timeout_s", [0, -1, float("nan"), float("inf")])
def test_a_timeout_that_is_no_time_is_refused(timeout_s: float) -> None:
    with pytest.raises(AttributeValueError, match=r"timeout_s is .*, need a number of seconds above 0, or None"):
        Session(rows_model()).run({"x": rows(3)}, timeout_s=timeout_s)


def test_an_arena_over_the_limit_is_refused() -> None:
    session = Session(rows_model(), limits=SessionLimits(arena_bytes=100))
    with pytest.raises(
        LimitError, match=r"output '\w+' is f32\[1000,4\].*node '\w*'.*needs \d+ bytes, the limit is 100; .*arena_bytes"
    ):
        session.run({"x": rows(1000)})


@pytest.mark.parametrize(
    "feed", [[[1.0, 2.0], [3.0]], None, "text", rows(2).astype(np.float64), rows(2)[:, :3], rows(2)[0]], ids=repr
)
def test_bad_feeds_are_refused_before_anything_is_built(feed) -> None:
    session = Session(rows_model())
    with pytest.raises(FeedError, match="x: "):
        session.run({"x": feed})
    assert not session._ready


def test_a_known_shape_with_another_dtype_is_refused() -> None:
    session = Session(rows_model())
    session.run({"x": rows(2)})
    with pytest.raises(FeedError, match="dtype is float64"):
        session.run({"x": rows(2).astype(np.float64)})


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"precision": "fp8"}, AttributeValueError, "precision is 'fp8', need one of fp32, tf32, fp16, bf16"),
        ({"backend": "vulkan"}, AttributeValueError, "backend is 'vulkan', need one of auto, native, numpy, cuda"),
        ({"threads": 0}, AttributeValueError, "threads is 0, need at least 1"),
        ({"precision": "int8"}, UnsupportedError, "precision int8 is not available"),
        ({"precision": "fp16"}, UnsupportedError, "precision fp16 is not available"),
    ],
    ids=["precision", "backend", "threads", "int8", "fp16"],
)
def test_options_are_checked(options, error, says) -> None:
    with pytest.raises(error, match=says):
        Session(rows_model(), **options)


def test_products_in_bfloat16_are_near_those_in_float32() -> None:
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "v"], ["y"]),
    ]
    constants = [
        constant("w", rng.standard_normal((32, 3, 3, 3)) / 5),
        constant("v", rng.standard_normal((16, 32, 1, 1)) / 6),
    ]
    data = make(nodes, ["y"], constants, [port("x", [1, 3, 9, 9])]).SerializeToString()
    feeds = {"x": rng.standard_normal((1, 3, 9, 9)).astype(np.float32)}
    whole, half = (Session(data, precision=precision) for precision in ("fp32", "bf16"))
    exact, near = whole.run(feeds)["y"], half.run(feeds)["y"]
    error = np.abs(near - exact).max() / np.abs(exact).max()
    assert 0 < error < 0.02
    chosen = [step.algorithm for step in half.executor(feeds).steps if step.node.op == "Conv"]
    assert all(algorithm.endswith("/bf16") for algorithm in chosen)
    np.testing.assert_array_equal(Session(data, precision="auto").run(feeds)["y"], exact)


def test_threads_default_to_cores_this_process_may_use() -> None:
    assert Session(rows_model()).threads == usable_cores() >= 1


def test_trace_covers_every_step() -> None:
    measured = Session(rows_model()).trace({"x": rows(2)}, runs=3)
    assert len(measured.ops) == 4
    assert len(measured.runs) == 3


def test_many_threads_with_many_shapes_agree() -> None:
    session = Session(rows_model(), threads=1, limits=SessionLimits(executors=2))
    wrong: list[int] = []

    def work(seed: int) -> None:
        for i in range(40):
            x = rows(1 + (seed + i) % 4)
            if not np.array_equal(session.run({"x": x})["y"], np.maximum(x, 0) + x):
                wrong.append(i)

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_shapes_that_a_lowering_serves_are_bound_without_building(monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session(rows_model())
    assert session.built({"x": rows(2)}) is None
    for count in (2, 3):
        session.run({"x": rows(count)})
    monkeypatch.setattr("scheduler.session.optimise", None)
    bound = session.built({"x": rows(5)})
    assert bound is not None
    assert session.built({"x": rows(5)}) is bound
    assert session.built({"x": rows(1)}) is None  # it decides other code
    assert session.run({"x": rows(5)})["y"].shape == (5, 4)
