"""Binding dynamic dimensions and propagating shapes."""

from dataclasses import replace

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from graph.errors import FeedError, LimitError
from graph.formats.registry import read
from graph.shapes import bind, propagate
from kernels.errors import ShapeError
from kernels.registry import Op, find
from kernels.spec import Spec
from tests.graph.protos import model, relu

F32 = np.dtype(np.float32)


def graph_of(nodes, initializers=(), dims=("batch", 4)):
    return read(model(nodes, initializers, [helper.make_tensor_value_info("x", TensorProto.FLOAT, dims)])).graph


def ints(name: str, *values: int):
    return numpy_helper.from_array(np.array(values, np.int64), name)


def test_bind_by_shape_and_by_dim_agree() -> None:
    graph = graph_of([relu()])
    assert bind(graph, {"x": (3, 4)}) == bind(graph, dims={"batch": 3}) == {"x": Spec((3, 4), F32)}


@pytest.mark.parametrize(
    ("shapes", "dims", "says"),
    [
        ({"x": (3, 5)}, None, "axis 1 is 5, the model fixes 4"),
        ({"x": (3,)}, None, "rank 1, need 2"),
        ({"x": (3, 4)}, {"batch": 2}, "axis 0 is 3, dimension 'batch' is 2"),
        ({"z": (3, 4)}, None, r"input 'z' does not exist, the model has \['x'\]"),
        (None, {"time": 2}, "dimension 'time' does not exist"),
        (None, {"batch": -1}, "'batch' is -1"),
        ({"x": (2**40, 4)}, None, "the limits are"),
    ],
)
def test_bind_refuses(shapes, dims, says) -> None:
    with pytest.raises(FeedError, match=says):
        bind(graph_of([relu()]), shapes, dims)


@pytest.mark.parametrize(
    ("dims", "bound"),
    [
        (("batch", 4), (1, 4)),
        (("N", 3, 8, 8), (1, 3, 8, 8)),
        ((None, 4), (1, 4)),
        (("unk__12", 4), (1, 4)),
        (("batch_size",), (1,)),
    ],
)
def test_the_batch_is_one(dims, bound) -> None:
    assert bind(graph_of([relu()], dims=dims))["x"].shape == bound
    assert bind(graph_of([relu()], dims=dims), {"x": (7, *bound[1:])})["x"].shape == (7, *bound[1:])


@pytest.mark.parametrize("dims", [("sequence", 4), (None,), ("batch", 3, "height", None), ("rows", 4)])
def test_what_is_no_batch_is_asked_for(dims) -> None:
    with pytest.raises(FeedError, match=r"(is|are) open; give their sizes, such as --"):
        bind(graph_of([relu()], dims=dims))


def test_everything_that_is_open_is_asked_for_at_once_with_sizes_that_fit() -> None:
    value = helper.make_tensor_value_info
    nodes = [helper.make_node("Reshape", ["x", "to"], ["r"]), helper.make_node("Add", ["a", "b"], ["y"])]
    ports = [value("x", TensorProto.FLOAT, ["batch", 3, "height", "width"])]
    ports += [value(name, TensorProto.FLOAT, ["batch", "seq"]) for name in "ab"]
    proto = model(nodes, [ints("to", -1, 100)], ports)  # height × width × 3 has to be a multiple of 100
    with pytest.raises(FeedError) as refused:
        bind(read(proto).graph)
    assert str(refused.value) == (
        "input 'x': axis 2 (height), axis 3 (width) are open; input 'a': axis 1 (seq) is open; input 'b': axis 1 (seq) is open; "
        "give their sizes, such as --dim height=320 --dim width=320 --dim seq=32, which fit this model"
    )
    sizes = {"height": 320, "width": 320, "seq": 32}
    assert {name: spec.shape for name, spec in bind(read(proto).graph, dims=sizes).items()}["a"] == (1, 32)


def test_dimensions_without_a_name_are_suggested_as_whole_shapes() -> None:
    with pytest.raises(FeedError, match="--shape x=1,3,224,224, which fit this model"):
        bind(graph_of([relu()], dims=(None, 3, None, None)))


def test_sizes_that_do_not_fit_are_not_suggested() -> None:
    split = helper.make_node("Reshape", ["x", "to"], ["y"])
    with pytest.raises(
        FeedError, match=r"give their sizes by --dim or --shape \(none of those that were tried fits this model\)"
    ):
        bind(graph_of([split], [ints("to", -1, 77)], ("batch", "seq")))


def test_bind_checks_a_dim_shared_by_inputs() -> None:
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in "ab"]
    graph = read(model([helper.make_node("Add", ["a", "b"], ["y"])], inputs=ports)).graph
    assert bind(graph, {"a": (2,)})["b"].shape == (2,)
    with pytest.raises(FeedError, match="dimension 'n' is 2 elsewhere"):
        bind(graph, {"a": (2,), "b": (3,)})


def test_shape_arithmetic_folds_away() -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "zero"], ["n"]),
        helper.make_node("Unsqueeze", ["n", "zero1"], ["n1"]),
        helper.make_node("Concat", ["n1", "rest"], ["t"], axis=0),
        helper.make_node("Reshape", ["x", "t"], ["y"]),
    ]
    zero = numpy_helper.from_array(np.array(0, np.int64), "zero")
    graph = graph_of(nodes, [zero, ints("zero1", 0), ints("rest", 2, -1)])
    specs = propagate(graph, bind(graph, dims={"batch": 3}))
    assert specs["y"] == Spec((3, 2, 2), F32)
    np.testing.assert_array_equal(specs["t"].value, [3, 2, -1])


def test_run_time_shapes_are_unknown_downstream() -> None:
    ports = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [6]),
        helper.make_tensor_value_info("t", TensorProto.INT64, [2]),
    ]
    graph = read(model([helper.make_node("Reshape", ["x", "t"], ["r"]), relu("r")], inputs=ports)).graph
    specs = propagate(graph, bind(graph))
    assert specs["r"] is None
    assert specs["y"] is None


def test_refusal_names_the_node() -> None:
    graph = graph_of([helper.make_node("Add", ["x", "w"], ["y"], "bad_add")], [ints("w", 1, 2, 3)])
    with pytest.raises((ShapeError, Exception), match="node 'bad_add'"):
        propagate(graph, bind(graph, dims={"batch": 2}))


def test_amplification_is_refused() -> None:
    graph = graph_of([helper.make_node("Expand", ["x", "t"], ["y"], "bomb")], [ints("t", 2**20, 2**20, 1, 4)])
    with pytest.raises(LimitError, match="node 'bomb'"):
        propagate(graph, bind(graph, dims={"batch": 1}))


@pytest.mark.parametrize(("known", "expected"), [(True, (2, 4)), (None, None)])
def test_if_takes_the_known_branch_or_what_both_agree_on(known, expected) -> None:
    value = helper.make_tensor_value_info
    same = helper.make_graph([relu("x", "b")], "then", [], [value("b", TensorProto.FLOAT, None)])
    flat = helper.make_graph(
        [helper.make_node("Flatten", ["x"], ["f"], axis=0)], "else", [], [value("f", TensorProto.FLOAT, None)]
    )
    node = helper.make_node("If", ["c"], ["y"], then_branch=same, else_branch=flat)
    inputs = [value("x", TensorProto.FLOAT, [2, 4])]
    initializers = [numpy_helper.from_array(np.array(known), "c")] if known is not None else []
    if known is None:
        inputs.append(value("c", TensorProto.BOOL, []))
    graph = read(model([node], initializers, inputs)).graph
    spec = propagate(graph, bind(graph))["y"]
    assert (spec and spec.shape) == expected


def replaced(graph, name: str, op: str, **attrs):
    """Return the graph with another op in the node of that name."""
    nodes = tuple(replace(node, op=op, attrs=find(op).bind(attrs)) if node.name == name else node for node in graph.nodes)
    return replace(graph, nodes=nodes)


def test_specs_that_say_the_same_as_before_are_kept_and_stop_inference(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = graph_of([relu("x", "a", "first"), relu("a", "b", "second"), relu("b", "y", "third")], dims=(2, 4))
    inputs = bind(graph)
    specs = propagate(graph, inputs)
    inferred = []
    original = Op.infer_specs

    def infer_specs(op, *given):
        inferred.append(op.name)
        return original(op, *given)

    monkeypatch.setattr(Op, "infer_specs", infer_specs)
    changed = propagate(replaced(graph, "first", "Neg"), inputs, before=(graph, specs))
    assert inferred == ["Neg"]
    assert all(changed[name] is specs[name] for name in "abxy")


def test_readers_of_a_spec_that_changed_are_inferred_again() -> None:
    nodes = [helper.make_node("Cast", ["x"], ["a"], "first", to=TensorProto.DOUBLE), relu("a", "y", "second")]
    graph = graph_of(nodes, dims=(2, 4))
    inputs = bind(graph)
    specs = propagate(graph, inputs)
    changed = propagate(replaced(graph, "first", "Neg"), inputs, before=(graph, specs))
    assert (specs["y"], changed["y"]) == (Spec((2, 4), np.dtype(np.float64)), Spec((2, 4), F32))


def test_a_known_value_that_changed_is_not_kept() -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["s"], "shape"),
        helper.make_node("Neg", ["s"], ["n"], "minus"),
        helper.make_node("Abs", ["n"], ["t"], "abs"),
        helper.make_node("Expand", ["o", "t"], ["y"], "expand"),
    ]
    graph = graph_of(nodes, [numpy_helper.from_array(np.ones((), np.float32), "o")], dims=(2, 4))
    inputs = bind(graph)
    specs = propagate(graph, inputs)
    changed = propagate(replaced(graph, "minus", "Sign"), inputs, before=(graph, specs))
    np.testing.assert_array_equal(changed["n"].value, [1, 1])
    assert (specs["y"].shape, changed["y"].shape) == ((2, 4), (1, 1))
