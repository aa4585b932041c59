"""The executor against ONNX Runtime, on models that stress aliasing, outputs, epilogues and run-time shapes."""

import threading
from dataclasses import replace

import numpy as np
import onnx
import pytest

from graph.choice import Choice
from graph.errors import FeedError, LimitError
from graph.formats.registry import read
from graph.ir import Fused, Graph, Node, Port
from graph.run.executor import DYNAMIC, VIEW, Executor
from graph.shapes import bind, propagate
from kernels.errors import ShapeError, UnsupportedError
from kernels.registry import find
from kernels.spec import Spec
from tests.graph.interpreter import interpret
from tests.graph.oracle import FLOAT, INT64, STRING, X, assert_agrees, build, check, constant, ints, make, node, poison, port

F32 = np.dtype(np.float32)


def test_chain_of_elementwise_runs_in_its_output() -> None:
    nodes = [node("Relu", ["x"], ["a"]), node("Neg", ["a"], ["b"]), node("Abs", ["b"], ["y"])]
    executor = check(make(nodes, ["y"]), {"x": X})
    assert executor.memory.arena_bytes == 0


def test_views_cost_nothing() -> None:
    nodes = [node("Relu", ["x"], ["a"]), node("Reshape", ["a", "t"], ["b"]), node("Softmax", ["b"], ["y"])]
    executor = check(make(nodes, ["y"], [ints("t", 3, 4)]), {"x": X})
    assert [step.algorithm for step in executor.steps][1] == VIEW
    assert executor.memory.arena_bytes == 64


def test_outputs_survive_the_next_run() -> None:
    executor = build(make([node("Softmax", ["x"], ["a"]), node("Neg", ["a"], ["y"])], ["y"]))
    first = executor.run({"x": X})["y"]
    kept = first.copy()
    executor.run({"x": -X})
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize("op", ["Identity", "Reshape"])
def test_an_output_that_is_an_input_is_a_copy(op: str) -> None:
    inputs, constants = (["x", "t"], [ints("t", 12)]) if op == "Reshape" else (["x"], [])
    check(make([node(op, inputs, ["y"])], ["y"], constants), {"x": X})


def test_a_graph_without_nodes_copies_its_input() -> None:
    given = X.copy()
    executor = Executor(Graph("g", (Port("x", F32, (2, 6)),), (Port("x", F32, None),), (), {}), {"x": Spec((2, 6), F32)})
    made = executor.run({"x": given})["x"]
    np.testing.assert_array_equal(made, given)
    assert not np.shares_memory(made, given)
    assert not executor.steps
    assert executor.run_timed({"x": given}).step_ns == []


def test_an_output_that_is_a_constant_is_a_copy() -> None:
    executor = build(make([node("Relu", ["x"], ["y"])], ["w", "y"], [constant("w", np.ones(3))]))
    executor.run({"x": X})["w"][:] = 7
    np.testing.assert_array_equal(executor.run({"x": X})["w"], 1)


def test_a_view_of_a_constant_is_a_copy_when_it_is_an_output() -> None:
    proto = make(
        [node("Reshape", ["w", "t"], ["y"]), node("Relu", ["x"], ["z"])], ["y", "z"], [constant("w", X), ints("t", 4, 3)]
    )
    executor = check(proto, {"x": X})
    executor.run({"x": X})["y"][:] = 7
    check(proto, {"x": X})


def test_outputs_that_are_views_of_each_other_share_nothing() -> None:
    nodes = [node("Relu", ["x"], ["a"]), node("Reshape", ["a", "t"], ["b"]), node("Reshape", ["a", "t"], ["c"])]
    executor = check(make(nodes, ["a", "b", "c"], [ints("t", 12)]), {"x": X})
    made = executor.run({"x": X})
    assert not np.shares_memory(made["a"], made["b"])
    assert not np.shares_memory(made["b"], made["c"])


def test_an_output_listed_twice_is_one_name() -> None:
    graph = read(make([node("Relu", ["x"], ["y"])], ["y"])).graph
    graph = replace(graph, outputs=graph.outputs * 2)
    assert list(Executor(graph, propagate(graph, bind(graph))).run({"x": X})) == ["y"]


def test_an_output_that_is_read_later_survives() -> None:
    nodes = [node("Relu", ["x"], ["a"]), node("Neg", ["a"], ["b"]), node("Abs", ["b"], ["y"])]
    check(make(nodes, ["a", "y", "b"]), {"x": X})


@pytest.mark.parametrize("shape", [(0, 6), (2, 0), (0, 0)], ids=str)
def test_tensors_without_elements(shape: tuple[int, ...]) -> None:
    nodes = [node("Relu", ["x"], ["a"]), node("Softmax", ["a"], ["b"]), node("Concat", ["b", "x"], ["c"], axis=1)]
    nodes += [node("Reshape", ["c", "t"], ["d"]), node("Transpose", ["d"], ["y"])]
    proto = make(nodes, ["y", "a"], [ints("t", -1, 2 * shape[1] or 1)], [port("x", shape)])
    executor = build(proto)
    assert executor.run({"x": np.empty(shape, np.float32)})["a"].shape == shape


def test_scalars_go_in_and_out() -> None:
    nodes = [node("ReduceSum", ["x"], ["a"], keepdims=0), node("Add", ["a", "s"], ["y"])]
    check(make(nodes, ["y"], inputs=[port("x", [2, 6]), port("s", [])]), {"x": X, "s": np.array(2, np.float32)})


def test_second_output_alone_is_wanted() -> None:
    nodes = [node("MaxPool", ["x"], ["", "i"], kernel_shape=[2]), node("Identity", ["i"], ["y"])]
    x = X[:1].reshape(1, 1, 6)
    made = build(make(nodes, {"y": INT64}, inputs=[port("x", [1, 1, 6])])).run({"x": x})["y"]
    np.testing.assert_array_equal(made[0, 0], np.arange(5) + (x[0, 0, 1:] > x[0, 0, :-1]))


@pytest.mark.parametrize("wanted", [["a"], ["b"], ["c"], ["c", "a"]], ids=str)
def test_only_some_parts_of_a_split_are_wanted(wanted: list[str]) -> None:
    nodes = [node("Relu", ["x"], ["r"]), node("Split", ["r", "s"], ["a", "b", "c"], axis=1)]
    check(make(nodes, wanted, [ints("s", 1, 2, 3)]), {"x": X})


def test_nodes_that_no_output_depends_on_do_not_run() -> None:
    nodes = [node("Neg", ["x"], ["a"]), node("Abs", ["a"], ["b"]), node("Relu", ["x"], ["y"])]
    executor = check(make(nodes, ["y"]), {"x": X})
    assert [step.node.op for step in executor.steps] == ["Relu"]


def test_one_value_read_twice_by_a_node() -> None:
    nodes = [node("Relu", ["x"], ["a"]), node("Mul", ["a", "a"], ["b"]), node("Softmax", ["b"], ["y"])]
    check(make(nodes, ["y"]), {"x": X})


def test_a_value_and_its_view_read_by_one_node() -> None:
    nodes = [node("Softmax", ["x"], ["a"]), node("Reshape", ["a", "t"], ["b"]), node("Add", ["b", "a"], ["c"])]
    check(make([*nodes, node("Softmax", ["c"], ["y"])], ["y"], [ints("t", 1, 2, 6)]), {"x": X})


def test_strings_run_through() -> None:
    nodes = [node("Concat", ["s", "s"], ["a"], axis=0), node("Reshape", ["a", "t"], ["y"])]
    executor = build(make(nodes, {"y": STRING}, [ints("t", 2, 2)], [port("s", [2], STRING)]))
    given = np.array(["a", "bc"], object)
    assert executor.run({"s": given})["y"].tolist() == [["a", "bc"], ["a", "bc"]]


def test_run_time_shapes() -> None:
    nodes = [node("NonZero", ["x"], ["n"]), node("Cast", ["n"], ["f"], to=FLOAT), node("Relu", ["f"], ["y"])]
    executor = check(make(nodes, {"y": FLOAT, "n": INT64}), {"x": np.maximum(X, 0)})
    assert {step.algorithm for step in executor.steps} == {DYNAMIC}
    assert executor.run({"x": np.zeros_like(X)})["y"].shape == (2, 0)


def test_values_of_run_time_shape_are_let_go_after_their_last_reader() -> None:
    nodes = [node("NonZero", ["x"], ["n"]), node("Cast", ["n"], ["f"], to=FLOAT), node("Relu", ["f"], ["y"])]
    executor = build(make(nodes, ["y"]))
    program = executor._program
    alive = []
    inner = program._calls[2]
    slots = [program._slots.of(name) for name in ("n", "f")]

    def looked_at() -> None:
        alive.append([program._slots.arrays[slot] is None for slot in slots])
        inner()

    program._calls[2] = looked_at
    executor.run({"x": X})
    assert alive == [[True, False]]


def test_nothing_of_a_run_is_held_after_it() -> None:
    executor = build(make([node("Relu", ["x"], ["y"])], ["y"]))
    executor.run({"x": X})
    program = executor._program
    assert [program._slots.arrays[program._slots.of(name)] for name in ("x", "y")] == [None, None]


def test_a_run_time_size_past_the_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graph.run.dynamic.MAX_VALUE_BYTES", 1000)
    nodes = [node("Expand", ["x", "s"], ["y"], "grow")]
    executor = build(make(nodes, ["y"], inputs=[port("x", [1]), port("s", [1], INT64)]))
    assert executor.run({"x": X[0, :1], "s": np.array([250])})["y"].shape == (250,)
    with pytest.raises(LimitError, match=r"Expand: an output is f32\[251\], the limit is 1000 bytes \(node 'grow'\)"):
        executor.run({"x": X[0, :1], "s": np.array([251])})


def test_a_run_time_shape_that_does_not_fit_names_its_node() -> None:
    nodes = [node("Reshape", ["x", "s"], ["y"], "bend")]
    executor = build(make(nodes, ["y"], inputs=[port("x", [2, 6]), port("s", [1], INT64)]))
    for run in (executor.run, executor.run_timed):
        with pytest.raises(ShapeError, match=r"\(node 'bend'\)"):
            run({"x": X, "s": np.array([7])})
    assert executor.run({"x": X, "s": np.array([12])})["y"].shape == (12,)


def fused_graph(base: Node, **constants) -> Graph:
    ports = (Port("x", F32, (2, 6)), Port("r", F32, (2, 6)))
    return Graph("g", ports, (Port("y", F32, None),), (Node("s", "Softmax", ("x",), ("a",), {"axis": -1}), base), constants)


def fused_feeds() -> dict[str, np.ndarray]:
    return {"x": X, "r": X[::-1].copy()}


@pytest.mark.parametrize(
    "base",
    [
        Node("n", "Softmax", ("a",), ("y",), {"axis": -1}, (Fused("Add", ("", "r")), Fused("Relu", ("",)))),
        Node("n", "Mul", ("a", "r"), ("y",), {}, (Fused("Sub", ("r", "")), Fused("Sub", ("", "a")))),
        Node("n", "Mul", ("a", "r"), ("y",), {}, (Fused("Mul", ("", "")), Fused("Add", ("w", "")))),
        Node("n", "Reshape", ("a", "t"), ("y",), {"allowzero": 0}, (Fused("Neg", ("",)), Fused("Mul", ("", "u")))),
    ],
    ids=["conv_like", "reads_its_input_again", "squares_itself", "view"],
)
def test_epilogue_runs_on_the_nodes_output(base: Node) -> None:
    constants = {"w": X[:1], "t": np.array([3, 4]), "u": X.reshape(3, 4)}
    graph = fused_graph(base, **constants)
    executor = Executor(graph, propagate(graph, bind(graph)))
    feeds = fused_feeds()
    for _ in range(2):
        poison(executor)
        assert_agrees(executor.run(feeds), interpret(graph, feeds), tolerance=0)


def test_epilogue_of_a_view_spares_a_value_that_is_read_later() -> None:
    base = Node("n", "Reshape", ("a", "t"), ("b",), {"allowzero": 0}, (Fused("Neg", ("",)),))
    graph = fused_graph(base, t=np.array([2, 6]))
    graph = replace(graph, nodes=(*graph.nodes, Node("m", "Add", ("a", "b"), ("y",))))
    feeds = fused_feeds()
    assert_agrees(Executor(graph, propagate(graph, bind(graph))).run(feeds), interpret(graph, feeds), tolerance=0)


def test_epilogue_of_a_run_time_shape() -> None:
    graph = Graph(
        "g",
        (Port("x", F32, (2, 6)),),
        (Port("y", np.dtype(np.int64), None),),
        (Node("n", "NonZero", ("x",), ("y",), {}, (Fused("Neg", ("",)), Fused("Add", ("", "")))),),
        {},
    )
    feeds = {"x": np.maximum(X, 0)}
    executor = Executor(graph, propagate(graph, bind(graph)))
    np.testing.assert_array_equal(executor.run(feeds)["y"], -2 * np.array(np.nonzero(feeds["x"])))


def image_model() -> onnx.ModelProto:
    w = constant("w", np.random.default_rng(1).standard_normal((4, 3, 3, 3)))
    return make([node("Conv", ["x", "w"], ["y"], "conv", pads=[1, 1, 1, 1])], ["y"], [w], [port("x", [1, 3, 8, 8])])


@pytest.mark.parametrize(
    ("shape", "group", "pad", "takes"),
    [
        ((4, 3, 3, 3), 1, 1, {"im2col"}),
        ((4, 3, 1, 1), 1, 0, {"gemm", "im2col"}),
        ((3, 1, 3, 3), 3, 1, {"taps", "im2col"}),
    ],
    ids=["spatial", "pointwise", "depthwise"],
)
def test_every_algorithm_can_be_asked_for(shape: tuple[int, ...], group: int, pad: int, takes: set[str]) -> None:
    w = constant("w", np.random.default_rng(1).standard_normal(shape))
    nodes = [node("Conv", ["x", "w"], ["y"], "conv", pads=[pad] * 4, group=group)]
    proto = make(nodes, ["y"], [w], [port("x", [1, 3, 8, 8])])
    x = np.random.default_rng(2).standard_normal((1, 3, 8, 8)).astype(np.float32)
    wanted = build(proto).run({"x": x})
    for algorithm in [kernel.algorithm for kernel in find("Conv").kernels]:
        choices = {"conv": Choice("numpy", algorithm)}
        if algorithm in takes:
            executor = build(proto, choices=choices)
            assert [step.algorithm for step in executor.steps] == [algorithm]
            poison(executor)
            assert_agrees(executor.run({"x": x}), wanted, tolerance=1e-5)
        else:
            with pytest.raises(UnsupportedError, match=f"{algorithm}: "):
                build(proto, choices=choices)


def test_an_algorithm_that_does_not_exist_is_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"Conv: no kernel takes it, it has .* \(node 'conv'\)"):
        build(image_model(), choices={"conv": Choice("numpy", "guesswork")})


def test_an_unbound_input_is_refused() -> None:
    graph = read(make([node("Relu", ["x"], ["y"])], ["y"], inputs=[port("x", ["n", 6])])).graph
    with pytest.raises(FeedError, match=r"input 'x': its shape is not bound"):
        Executor(graph, {})


def test_feeds_are_checked_against_the_bound_shapes() -> None:
    executor = build(make([node("Relu", ["x"], ["y"])], ["y"], inputs=[port("x", ["n", 6])]), {"x": (2, 6)})
    with pytest.raises(FeedError, match=r"x: shape is \(3, 6\), need 2 in dimension 0"):
        executor.run({"x": np.zeros((3, 6), np.float32)})


def test_feeds_are_not_written() -> None:
    given = X.copy()
    check(make([node("Neg", ["x"], ["a"]), node("Abs", ["a"], ["y"])], ["y"]), {"x": given})
    np.testing.assert_array_equal(given, X)


def test_timed_run_gives_the_same_and_fits_in_the_wall() -> None:
    executor = build(make([node("Softmax", ["x"], ["a"]), node("Neg", ["a"], ["y"])], ["y"]))
    timed = executor.run_timed({"x": X})
    assert_agrees(timed.outputs, executor.run({"x": X}), tolerance=0)
    assert len(timed.step_ns) == len(executor.steps) == 2
    assert 0 < sum(timed.step_ns) <= timed.wall_ns


def test_infinities_and_nans_pass_without_a_warning() -> None:
    x = np.array([[np.inf, -np.inf, np.nan, 0, 1, -1]] * 2, np.float32)
    check(make([node("Log", ["x"], ["a"]), node("Div", ["x", "x"], ["b"]), node("Add", ["a", "b"], ["y"])], ["y"]), {"x": x})


def test_threads_share_an_executor() -> None:
    executor = build(
        make([node("Relu", ["x"], ["a"]), node("Softmax", ["a"], ["b"]), node("Neg", ["a"], ["y"])], ["y", "b"]), threads=1
    )
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
