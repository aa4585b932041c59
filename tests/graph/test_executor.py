"""The executor against the interpreter and ONNX Runtime, on models that stress aliasing, outputs and run-time shapes."""

import threading

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from graph.errors import FeedError, LimitError
from graph.executor import DYNAMIC, VIEW, Executor
from graph.interpreter import interpret
from graph.reader import read
from graph.shapes import bind, propagate
from tests.graph.test_reader import model, relu

FLOAT = TensorProto.FLOAT
X = np.random.default_rng(0).standard_normal((2, 6)).astype(np.float32)


def port(name: str, dims, dtype: int = FLOAT):
    return helper.make_tensor_value_info(name, dtype, dims)


def build(proto: onnx.ModelProto, **options) -> Executor:
    graph = read(proto).graph
    return Executor(graph, propagate(graph, bind(graph)), **options)


def check(proto: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> Executor:
    """Twice through the executor (a dirty arena), once through ONNX Runtime: all equal."""
    executor = build(proto)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    names = [output.name for output in proto.graph.output]
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    expected = session.run(names, feeds)
    executor._program._arena[:] = 0xAB
    for _ in range(2):
        outputs = executor.run(feeds)
        assert list(outputs) == names
        for name, wanted in zip(names, expected, strict=True):
            np.testing.assert_allclose(outputs[name], wanted, rtol=1e-5, atol=1e-6)
            assert outputs[name].dtype == wanted.dtype
    return executor


def ints(name: str, *values: int):
    return numpy_helper.from_array(np.array(values, np.int64), name)


def typed(nodes, outputs, initializers=(), inputs=None, opset: int = 17):
    """A model whose outputs say their types: name -> element type."""
    proto = model(nodes, initializers, inputs or [port("x", [2, 6])], list(outputs), opset=opset)
    for value, code in zip(proto.graph.output, outputs.values(), strict=True):
        value.type.tensor_type.elem_type = code
    return proto


def test_chain_runs_in_place_in_its_output() -> None:
    executor = check(
        typed([relu("x", "a"), relu("a", "b", "s"), relu("b", "c", "t"), relu("c", "y", "u")], {"y": FLOAT}), {"x": X}
    )
    assert executor.memory.arena_bytes == 0


def test_views_cost_nothing_and_outputs_are_the_callers() -> None:
    nodes = [relu("x", "a"), helper.make_node("Reshape", ["a", "t"], ["b"]), helper.make_node("Neg", ["b"], ["y"])]
    executor = check(typed(nodes, {"y": FLOAT}, [ints("t", 3, 4)]), {"x": X})
    assert [step.algorithm for step in executor.steps][1] == VIEW
    first = executor.run({"x": X})["y"]
    kept = first.copy()
    executor.run({"x": -X})
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize("op", ["Identity", "Reshape"])
def test_an_output_that_is_an_input_is_a_copy(op: str) -> None:
    inputs, initializers = (["x", "t"], [ints("t", 12)]) if op == "Reshape" else (["x"], [])
    executor = check(typed([helper.make_node(op, inputs, ["y"])], {"y": FLOAT}, initializers), {"x": X})
    assert not np.shares_memory(executor.run({"x": X})["y"], X)


def test_a_value_output_and_read_later_survives() -> None:
    nodes = [relu("x", "a"), helper.make_node("Neg", ["a"], ["y"])]
    check(typed(nodes, {"a": FLOAT, "y": FLOAT}), {"x": X})


def test_constant_and_repeated_outputs() -> None:
    w = numpy_helper.from_array(np.ones(3, np.float32), "w")
    executor = build(model([relu()], [w], [port("x", [2, 6])], ["w", "y"]))
    outputs = executor.run({"x": X})
    outputs["w"][:] = 7
    np.testing.assert_array_equal(executor.run({"x": X})["w"], 1)


def test_second_output_alone_is_wanted() -> None:
    nodes = [helper.make_node("MaxPool", ["x"], ["", "i"], kernel_shape=[2]), helper.make_node("Identity", ["i"], ["y"])]
    graph = read(model(nodes, inputs=[port("x", [1, 1, 6])])).graph
    executor = Executor(graph, propagate(graph, bind(graph)))
    x = X[:1].reshape(1, 1, 6)
    np.testing.assert_array_equal(executor.run({"x": x})["y"][0, 0], np.arange(5) + (x[0, 0, 1:] > x[0, 0, :-1]))


def test_run_time_shapes() -> None:
    nodes = [helper.make_node("NonZero", ["x"], ["n"]), helper.make_node("Cast", ["n"], ["y"], to=FLOAT)]
    x = np.array([[0, 1, 2], [3, 0, 0]], np.float32)
    executor = check(typed(nodes, {"y": FLOAT}, inputs=[port("x", [2, 3])]), {"x": x})
    assert executor.steps[0].algorithm == DYNAMIC


def if_model() -> onnx.ModelProto:
    then = helper.make_graph([relu("x", "b")], "then", [], [port("b", [2, 6])])
    other = helper.make_graph([helper.make_node("Neg", ["x"], ["n"])], "else", [], [port("n", [2, 6])])
    node = helper.make_node("If", ["c"], ["y"], then_branch=then, else_branch=other)
    return typed([node], {"y": FLOAT}, inputs=[port("x", [2, 6]), port("c", [], TensorProto.BOOL)])


@pytest.mark.parametrize("condition", [True, False])
def test_if_runs_one_branch(condition: bool) -> None:
    check(if_model(), {"x": X, "c": np.array(condition)})


def loop_model(cond_output: str = "going") -> onnx.ModelProto:
    body = helper.make_graph(
        [
            helper.make_node("Add", ["sum", "x"], ["next"]),
            helper.make_node("Identity", ["going"], ["again"]),
            helper.make_node("Neg", ["next"], ["scan"]),
        ],
        "body",
        [port("i", [], TensorProto.INT64), port("going", [], TensorProto.BOOL), port("sum", [2, 6])],
        [port("again", [], TensorProto.BOOL), port("next", [2, 6]), port("scan", [2, 6])],
    )
    nodes = [helper.make_node("Loop", ["n", "", "x"], ["y", "all"], body=body)]
    return typed(nodes, {"y": FLOAT, "all": FLOAT}, inputs=[port("x", [2, 6]), port("n", [], TensorProto.INT64)])


@pytest.mark.parametrize("rounds", [1, 3])
def test_loop_carries_and_stacks(rounds: int) -> None:
    check(loop_model(), {"x": X, "n": np.array(rounds, np.int64)})


def test_endless_loop_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graph.control_flow.MAX_ITERATIONS", 10)
    with pytest.raises(LimitError, match="10 rounds"):
        build(loop_model()).run({"x": X, "n": np.array(2**60, np.int64)})


def test_scan_walks_backward_too() -> None:
    body = helper.make_graph(
        [helper.make_node("Add", ["s", "row"], ["t"]), helper.make_node("Identity", ["t"], ["seen"])],
        "body",
        [port("s", [6]), port("row", [6])],
        [port("t", [6]), port("seen", [6])],
    )
    node = helper.make_node("Scan", ["z", "x"], ["last", "y"], body=body, num_scan_inputs=1, scan_input_directions=[1])
    proto = typed([node], {"last": FLOAT, "y": FLOAT}, inputs=[port("z", [6]), port("x", [2, 6])])
    check(proto, {"z": np.zeros(6, np.float32), "x": X})


def test_timed_run_gives_the_same_and_fits_in_the_wall() -> None:
    executor = build(typed([relu("x", "a"), helper.make_node("Neg", ["a"], ["y"])], {"y": FLOAT}))
    timed = executor.run_timed({"x": X})
    np.testing.assert_array_equal(timed.outputs["y"], executor.run({"x": X})["y"])
    assert len(timed.step_ns) == len(executor.steps)
    assert sum(timed.step_ns) <= timed.wall_ns


def test_threads_share_an_executor() -> None:
    executor = build(typed([relu("x", "a"), helper.make_node("Neg", ["a"], ["y"])], {"y": FLOAT}), threads=1)
    wrong: list[int] = []

    def work(seed: int) -> None:
        x = np.full((2, 6), seed, np.float32)
        wrong.extend(seed for _ in range(50) if (executor.run({"x": x})["y"] != -seed).any())

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize(
    ("feeds", "says"),
    [
        ({}, "x: input is missing"),
        ({"x": X, "z": X}, "z: no input of that name"),
        ({"x": X.astype(np.float64)}, "dtype is float64, need float32"),
        ({"x": X[0]}, "rank 1, need rank 2"),
        ({"x": X[:, :5]}, "need 6 in dimension 1"),
        ({"x": [1.0]}, "feed is a list, need a numpy array"),
    ],
    ids=["missing", "extra", "dtype", "rank", "size", "list"],
)
def test_feeds_are_refused_with_value_rule_and_place(feeds, says) -> None:
    with pytest.raises(FeedError, match=says):
        build(model([relu()], inputs=[port("x", [2, 6])])).run(feeds)


def test_strided_and_big_endian_feeds_are_taken() -> None:
    executor = build(model([relu()], inputs=[port("x", [2, 6])]))
    expected = np.maximum(X, 0)
    np.testing.assert_array_equal(executor.run({"x": np.asfortranarray(X)})["y"], expected)
    np.testing.assert_array_equal(executor.run({"x": X.astype(">f4")})["y"], expected)


@st.composite
def random_models(draw: st.DrawFn) -> onnx.ModelProto:
    """Acyclic graphs of unary, binary and view ops over values of 12 elements; several outputs."""
    shapes = {"x": [2, 6], "w": [2, 6]}
    nodes = []
    for i in range(draw(st.integers(1, 14))):
        kind = draw(st.sampled_from(["Relu", "Neg", "Tanh", "Add", "Mul", "Sub", "Reshape", "Transpose", "Softmax", "Flatten"]))
        a = draw(st.sampled_from(sorted(shapes)))
        made = f"v{i}"
        if kind in ("Add", "Mul", "Sub"):
            b = draw(st.sampled_from([name for name in sorted(shapes) if shapes[name] == shapes[a]]))
            nodes.append(helper.make_node(kind, [a, b], [made]))
            shapes[made] = shapes[a]
        elif kind == "Reshape":
            target = draw(st.sampled_from(["s26", "s34"]))
            nodes.append(helper.make_node(kind, [a, target], [made]))
            shapes[made] = [2, 6] if target == "s26" else [3, 4]
        else:
            nodes.append(helper.make_node(kind, [a], [made]))
            shapes[made] = shapes[a][::-1] if kind == "Transpose" else shapes[a]
    outputs = draw(st.lists(st.sampled_from([name for name in shapes if name not in ("x", "w")]), min_size=1, unique=True))
    w = numpy_helper.from_array(X[::-1].copy(), "w")
    return typed(nodes, dict.fromkeys(outputs, FLOAT), [w, ints("s26", 2, 6), ints("s34", 3, 4)])


@given(random_models())
@settings(max_examples=60, deadline=None)
def test_random_graphs_agree_with_onnx_runtime(proto: onnx.ModelProto) -> None:
    executor = check(proto, {"x": X})
    expected = interpret(read(proto).graph, {"x": X})
    for name, array in executor.run({"x": X}).items():
        np.testing.assert_array_equal(array, expected[name])
