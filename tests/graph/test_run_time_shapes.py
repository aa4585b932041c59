"""Shapes that only a run knows, beside sizes that are symbols: one session answers all shapes as ONNX Runtime does."""

import numpy as np
import pytest

from scheduler.session import Session
from tests.graph.oracle import BOOL, FLOAT, INT64, assert_agrees, body, constant, expected, ints, make, node, port

SHAPES = [(5, 6), (5, 6), (7, 6), (16, 9), (33, 4), (1, 6), (2, 2), (7, 6)]
WEIGHTS = constant("w", np.random.default_rng(0).standard_normal((3, 1, 3, 3)))
PORTS = [port("x", ["rows", "columns"])]


def convolved(source: str = "x"):
    """A convolution of the input as an image, whose size is known before the run."""
    return [
        node("Unsqueeze", [source, "first"], ["image"]),
        node("Conv", ["image", "w"], ["c"], pads=[1, 1, 1, 1]),
        node("Relu", ["c"], ["d"]),
    ]


def non_zero():
    """Positions of positive numbers beside a convolution, and numbers gathered at them."""
    nodes = [
        *convolved(),
        node("Greater", ["x", "zero"], ["g"]),
        node("NonZero", ["g"], ["places"]),
        node("Transpose", ["places"], ["rows"]),
        node("GatherND", ["x", "rows"], ["taken"]),
        node("Mul", ["taken", "two"], ["y"]),
    ]
    constants = [WEIGHTS, ints("first", 0, 1), constant("zero", 0.0), constant("two", 2.0)]
    return make(nodes, {"d": FLOAT, "places": INT64, "y": FLOAT}, constants, PORTS)


def selected_boxes():
    """Boxes around the rows, of which non-maximum suppression selects some."""
    nodes = [
        node("Slice", ["x", "zero", "two", "one"], ["corner"]),
        node("Add", ["corner", "extent"], ["end"]),
        node("Concat", ["corner", "end"], ["boxes"], axis=1),
        node("Unsqueeze", ["boxes", "zero"], ["batched"]),
        node("ReduceMean", ["x"], ["mean"], axes=[1], keepdims=0),
        node("Unsqueeze", ["mean", "first"], ["scores"]),
        node("NonMaxSuppression", ["batched", "scores", "most", "overlap"], ["chosen"]),
        node("Gather", ["chosen", "last"], ["which"], axis=1),
        node("Gather", ["boxes", "which"], ["y"], axis=0),
    ]
    constants = [
        ints("zero", 0), ints("one", 1), ints("two", 2), ints("first", 0, 1), ints("most", 4), constant("overlap", [0.3]),
        constant("extent", 1.0), constant("last", 2, np.int64),
    ]  # fmt: skip
    return make(nodes, {"chosen": INT64, "y": FLOAT}, constants, PORTS)


def branches():
    """An If whose condition follows from sizes, and one whose condition is computed."""
    halved = body([node("Mul", ["x", "half"], ["h"])], [], [port("h", None)])
    doubled = body([node("Concat", ["x", "x"], ["t"], axis=0)], [], [port("t", None)])
    again = body([node("Identity", ["d"], ["i"])], [], [port("i", None)])
    negative = body([node("Neg", ["d"], ["n"])], [], [port("n", None)])
    nodes = [
        *convolved(),
        node("Shape", ["x"], ["s"], start=0, end=1),
        node("Greater", ["s", "ten"], ["many"]),
        node("If", ["many"], ["y"], then_branch=halved, else_branch=doubled),
        node("ReduceSum", ["x"], ["sum"], keepdims=0),
        node("Greater", ["sum", "zero"], ["above"]),
        node("If", ["above"], ["z"], then_branch=again, else_branch=negative),
    ]
    constants = [WEIGHTS, ints("first", 0, 1), ints("ten", 10), constant("half", 0.5), constant("zero", 0.0)]
    return make(nodes, ["y", "z"], constants, PORTS)


def looped():
    """A loop as often as there are rows, whose state grows by one row each time."""
    step = body(
        [node("Concat", ["state", "row"], ["longer"], axis=0), node("Identity", ["on"], ["on_"])],
        [port("turn", [], INT64), port("on", [], BOOL), port("state", None)],
        [port("on_", [], BOOL), port("longer", None)],
    )
    nodes = [
        *convolved(),
        node("Shape", ["x"], ["s"], start=0, end=1),
        node("Squeeze", ["s", "zero"], ["count"]),
        node("ReduceMax", ["x"], ["row"], axes=[0], keepdims=1),
        node("Loop", ["count", "", "x"], ["grown"], body=step),
        node("Relu", ["grown"], ["y"]),
    ]
    return make(nodes, ["d", "y"], [WEIGHTS, ints("first", 0, 1), ints("zero", 0)], PORTS)


def scanned():
    """A running sum over the rows."""
    step = body(
        [node("Add", ["total", "row"], ["next"]), node("Identity", ["next"], ["seen"])],
        [port("total", ["columns"]), port("row", ["columns"])],
        [port("next", ["columns"]), port("seen", ["columns"])],
    )
    nodes = [
        *convolved(),
        node("Shape", ["x"], ["s"], start=1, end=2),
        node("ConstantOfShape", ["s"], ["zeros"]),
        node("Scan", ["zeros", "x"], ["last", "y"], body=step, num_scan_inputs=1),
        node("Neg", ["y"], ["z"]),
    ]
    return make(nodes, ["d", "last", "z"], [WEIGHTS, ints("first", 0, 1)], PORTS)


MODELS = {made.__name__: made for made in (non_zero, selected_boxes, branches, looped, scanned)}


@pytest.mark.parametrize("name", MODELS)
def test_run_time_shapes_beside_symbols(name: str) -> None:
    proto, rng = MODELS[name](), np.random.default_rng(0)
    session = Session(proto, 2)
    for shape in SHAPES:
        feeds = {"x": rng.standard_normal(shape).astype(np.float32)}
        assert_agrees(session.run(feeds), expected(proto, feeds), 2e-5)
