"""Shapes that are inferred through Loop and Scan before a run are those of the run, or stay unknown."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from graph.formats.registry import read
from graph.ir import Graph
from graph.shapes import bind, propagate
from kernels.errors import AttributeValueError, ShapeError
from tests.graph.interpreter import interpret
from tests.graph.protos import model

FLOAT, BOOL, INT64 = TensorProto.FLOAT, TensorProto.BOOL, TensorProto.INT64
node = helper.make_node


def value(name: str, kind: int = FLOAT, dims=None):
    return helper.make_tensor_value_info(name, kind, dims)


def loop(body_nodes, carried=("a",), stacked=("s",), trips=3, goes_on=None) -> Graph:
    """Return a graph with a Loop. Its values a, b … start as x and leave the body as a2, b2 ….

    stacked: outputs of the body that the loop collects. goes_on: constant condition, or None to pass the condition on.
    """
    keeps = node("Identity", ["going"], ["more"]) if goes_on is None else node("Constant", [], ["more"], value=goes_on)
    inputs = [value("i", INT64, []), value("going", BOOL, []), *(value(name) for name in carried)]
    outputs = [value("more", BOOL, []), *(value(f"{name}2") for name in carried), *(value(name) for name in stacked)]
    body = helper.make_graph([keeps, *body_nodes], "body", inputs, outputs)
    results = [f"{name}_out" for name in (*carried, *stacked)]
    initializers = [numpy_helper.from_array(np.array(trips), "trips"), numpy_helper.from_array(np.array(True), "yes")]
    proto = model(
        [node("Loop", ["trips", "yes", *["x"] * len(carried)], results, "loop", body=body)],
        initializers,
        outputs=results,
        inputs=[value("x", dims=[2, 4])],
    )
    return read(proto).graph


def check(graph: Graph) -> dict:
    """Run a graph, assert that every inferred spec is that of the result, and return the specs."""
    inputs = bind(graph)
    specs = propagate(graph, inputs)
    rng = np.random.default_rng(0)
    made = interpret(graph, {name: rng.standard_normal(spec.shape).astype(spec.dtype) for name, spec in inputs.items()})
    for name, array in made.items():
        spec = specs[name]
        assert spec is None or (spec.shape, spec.dtype) == (array.shape, array.dtype)
    return specs


YES = numpy_helper.from_array(np.array(True))


def test_loop_with_a_known_number_of_rounds() -> None:
    body = [node("Relu", ["a"], ["a2"]), node("Shape", ["a"], ["s"])]
    specs = check(loop(body, trips=3, goes_on=YES))
    assert specs["a_out"].shape == (2, 4)
    assert specs["s_out"].shape == (3, 2)


def test_loop_without_a_round_leaves_its_stacks_to_the_run() -> None:
    specs = check(loop([node("Relu", ["a"], ["a2"]), node("Exp", ["a"], ["s"])], trips=0, goes_on=YES))
    assert specs["a_out"].shape == (2, 4)
    assert specs["s_out"] is None


def test_loop_that_may_end_early_leaves_its_stacks_to_the_run() -> None:
    specs = check(loop([node("Relu", ["a"], ["a2"]), node("Exp", ["a"], ["s"])]))
    assert specs["a_out"].shape == (2, 4)
    assert specs["s_out"] is None


def test_a_value_that_copies_a_growing_one_is_not_claimed() -> None:
    body = [node("Concat", ["a", "a"], ["a2"], axis=0), node("Identity", ["a"], ["b2"])]
    specs = check(loop(body, carried=("a", "b"), stacked=(), goes_on=YES))
    assert specs["a_out"] is None
    assert specs["b_out"] is None  # the same as before in the first round only


def scan(attrs, opset=21) -> Graph:
    body = helper.make_graph(
        [node("Add", ["state", "slice"], ["state2"]), node("Exp", ["slice"], ["each"])],
        "body",
        [value("state"), value("slice")],
        [value("state2"), value("each")],
    )
    nodes = [node("Scan", ["start", "x"], ["last", "all"], "scan", body=body, **attrs)]
    inputs = [value("start", dims=[2, 4]), value("x", dims=[2, 5, 4])]
    return read(model(nodes, (), inputs, ("last", "all"), opset)).graph


@pytest.mark.parametrize(("out_axis", "shape"), [(0, (5, 2, 4)), (1, (2, 5, 4)), (-1, (2, 4, 5))])
def test_scan_stacks_along_the_scanned_length(out_axis: int, shape: tuple[int, ...]) -> None:
    specs = check(scan({"num_scan_inputs": 1, "scan_input_axes": [1], "scan_output_axes": [out_axis]}))
    assert specs["last"].shape == (2, 4)
    assert specs["all"].shape == shape


@pytest.mark.parametrize(
    ("attrs", "error"),
    [
        ({"num_scan_inputs": 3}, AttributeValueError),
        ({"num_scan_inputs": 1, "scan_input_axes": [0, 1]}, AttributeValueError),
        ({"num_scan_inputs": 1, "scan_input_axes": [7]}, ShapeError),
    ],
    ids=str,
)
def test_scan_that_does_not_fit_its_inputs(attrs, error) -> None:
    graph = scan(attrs)
    with pytest.raises(error, match="node 'scan'"):
        propagate(graph, bind(graph))
