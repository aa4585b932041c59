"""If, Loop and Scan: against ONNX Runtime, over bodies that capture, change shape, pass through and never end."""

import numpy as np
import pytest

from graph.errors import LimitError
from graph.formats.registry import read
from graph.run.bounds import RunBounds
from graph.run.executor import DYNAMIC, Executor
from graph.shapes import bind, propagate
from kernels.errors import AttributeValueError, EdgewiseError, ShapeError
from kernels.spec import Spec
from profiler.counting.counts import profile
from scheduler.session import Session
from tests.graph.interpreter import interpret
from tests.graph.oracle import BOOL, FLOAT, INT64, STRING, X, assert_agrees, body, build, check, constant, ints, make, node, port

COUNT, GOING = port("i", [], INT64), port("going", [], BOOL)
AGAIN = node("Identity", ["going"], ["again"])
N = port("n", [], INT64)


def trips(count: int) -> np.ndarray:
    return np.array(count, np.int64)


def loop(nodes, carried, made, **extra):
    """Return a Loop body that never ends the loop. carried: its input ports. made: its output ports."""
    return body([AGAIN, *nodes], [COUNT, GOING, *carried], [port("again", [], BOOL), *made], **extra)


def branches(then, other, inputs=None, constants=(), outputs=("y",)):
    ports = [port("x", [2, 6]), port("c", [], BOOL)] if inputs is None else inputs
    return make([node("If", ["c"], list(outputs), "choice", then_branch=then, else_branch=other)], outputs, constants, ports)


@pytest.mark.parametrize("condition", [True, False])
def test_if_runs_one_branch(condition: bool) -> None:
    proto = branches(
        body([node("Relu", ["x"], ["b"])], [], [port("b", [2, 6])]), body([node("Neg", ["x"], ["n"])], [], [port("n", [2, 6])])
    )
    check(proto, {"x": X, "c": np.array(condition)})


@pytest.mark.parametrize("condition", [True, False])
def test_if_branches_of_other_shapes(condition: bool) -> None:
    proto = branches(
        body([node("ReduceSum", ["x"], ["b"], keepdims=0)], [], [port("b", [])]),
        body([node("Neg", ["x"], ["n"])], [], [port("n", [2, 6])]),
    )
    check(proto, {"x": X, "c": np.array(condition)})


@pytest.mark.parametrize("condition", [True, False])
def test_if_branch_that_is_only_a_captured_value(condition: bool) -> None:
    """The captured value's place in the arena is used again by later steps; the output must not be that place."""
    choice = node(
        "If",
        ["c"],
        ["picked"],
        then_branch=body([node("Identity", ["a"], ["b"])], [], [port("b", [2, 6])]),
        else_branch=body([node("Identity", ["d"], ["e"])], [], [port("e", [2, 6])]),
    )
    nodes = [node("Softmax", ["x"], ["a"]), node("Softmax", ["a"], ["d"]), choice]
    nodes += [node("Softmax", ["d"], ["f"]), node("Softmax", ["f"], ["g"]), node("Add", ["g", "picked"], ["y"])]
    check(make(nodes, ["y"], inputs=[port("x", [2, 6]), port("c", [], BOOL)]), {"x": X, "c": np.array(condition)})


def test_if_branch_without_nodes_returns_a_copy_of_what_it_captures() -> None:
    then, other = body([], [], [port("a", [2, 6])]), body([node("Neg", ["a"], ["n"])], [], [port("n", [2, 6])])
    choice = node("If", ["c"], ["picked"], then_branch=then, else_branch=other)
    nodes = [node("Softmax", ["x"], ["a"]), choice, node("Softmax", ["x"], ["d"]), node("Softmax", ["d"], ["y"])]
    proto = make(nodes, ["picked", "y"], inputs=[port("x", [2, 6]), port("c", [], BOOL)])
    made = build(proto).run({"x": X, "c": np.array(True)})["picked"]
    exps = np.exp(X - X.max(1, keepdims=True))
    np.testing.assert_allclose(made, exps / exps.sum(1, keepdims=True), rtol=1e-6)


def test_a_branch_that_breaks_its_promised_shape_is_refused() -> None:
    then = body([node("Relu", ["x"], ["b"])], [], [port("b", [2, 6])])
    graph = read(branches(then, then)).graph
    executor = Executor(graph, {**propagate(graph, bind(graph)), "y": Spec((5,), np.dtype(np.float32))})
    with pytest.raises(ShapeError, match=r"If: output 'y' is f32\[2,6\], it was inferred as f32\[5\] \(node 'choice'\)"):
        executor.run({"x": X, "c": np.array(True)})


def test_if_inside_if_reads_the_outermost_values() -> None:
    inner = node(
        "If",
        ["c"],
        ["p"],
        then_branch=body([node("Add", ["x", "w"], ["q"])], [], [port("q", [2, 6])]),
        else_branch=body([node("Neg", ["x"], ["r"])], [], [port("r", [2, 6])]),
    )
    proto = branches(
        body([inner, node("Tanh", ["p"], ["s"])], [], [port("s", [2, 6])]),
        body([node("Neg", ["x"], ["t"])], [], [port("t", [2, 6])]),
        constants=[constant("w", np.ones(6))],
    )
    check(proto, {"x": X, "c": np.array(True)})


def test_captured_constants_give_the_branch_its_shapes() -> None:
    then = body([node("Reshape", ["x", "shape"], ["b"])], [], [port("b", [3, 4])])
    other = body([node("Reshape", ["x", "other"], ["d"])], [], [port("d", [4, 3])])
    proto = branches(then, other, constants=[ints("shape", 3, 4), ints("other", 4, 3)])
    for condition in (True, False):
        check(proto, {"x": X, "c": np.array(condition)})


def test_a_branch_that_cannot_run_stops_only_the_run_that_takes_it() -> None:
    broken = body([node("MatMul", ["x", "x"], ["n"])], [], [port("n", [2, 2])])
    proto = branches(body([node("Relu", ["x"], ["b"])], [], [port("b", [2, 6])]), broken)
    session = Session(proto, 1)
    np.testing.assert_array_equal(session.run({"x": X, "c": np.array(True)})["y"], np.maximum(X, 0))
    with pytest.raises(ShapeError, match="MatMul"):
        session.run({"x": X, "c": np.array(False)})
    assert profile(proto).ops[0].counted
    with pytest.raises(ShapeError, match="MatMul"):
        Session(branches(broken, broken), 1).run({"x": X, "c": np.array(True)})


def test_if_returning_one_value_twice_returns_two_arrays() -> None:
    twice = body([node("Relu", ["x"], ["b"])], [], [port("b", [2, 6]), port("b", [2, 6])])
    proto = branches(twice, twice, outputs=("y", "z"))
    made = build(proto).run({"x": X, "c": np.array(True)})
    made["y"][:] = 7
    np.testing.assert_array_equal(made["z"], np.maximum(X, 0))


def test_if_refuses_a_condition_of_several_elements() -> None:
    then = body([node("Relu", ["x"], ["b"])], [], [port("b", [2, 6])])
    proto = branches(then, then, [port("x", [2, 6]), port("c", [2], BOOL)])
    with pytest.raises(ShapeError, match=r"If: condition has shape \(2,\), need one element \(node 'choice'\)"):
        build(proto).run({"x": X, "c": np.array([True, False])})


def running_sum(scan: bool = True):
    made = [port("next", [2, 6])] + [port("seen", [2, 6])] * scan
    nodes = [node("Add", ["sum", "x"], ["next"])] + [node("Neg", ["next"], ["seen"])] * scan
    inner = loop(nodes, [port("sum", [2, 6])], made)
    outputs = ["y", "all"] if scan else ["y"]
    return make([node("Loop", ["n", "", "x"], outputs, "rounds", body=inner)], outputs, inputs=[port("x", [2, 6]), N])


@pytest.mark.parametrize("count", [0, 1, 3])
def test_loop_carries_and_stacks(count: int) -> None:
    check(running_sum(), {"x": X, "n": trips(count)})


def test_loop_without_rounds_copies_what_it_was_given() -> None:
    given = X.copy()
    made = build(running_sum()).run({"x": given, "n": trips(0)})
    assert not np.shares_memory(made["y"], given)


def test_loop_ends_when_its_condition_turns_false() -> None:
    inner = body(
        [node("Add", ["sum", "sum"], ["next"]), node("ReduceMax", ["next"], ["m"], keepdims=0), node("Less", ["m", "h"], ["on"])],
        [COUNT, GOING, port("sum", [2, 6])],
        [port("on", [], BOOL), port("next", [2, 6])],
    )
    nodes = [node("Loop", ["", "yes", "x"], ["y"], body=inner)]
    check(make(nodes, ["y"], [constant("h", 100), constant("yes", True, np.bool_)]), {"x": X})


def test_loop_with_a_false_condition_does_nothing() -> None:
    inner = loop([node("Neg", ["s"], ["t"])], [port("s", [2, 6])], [port("t", [2, 6])])
    proto = make(
        [node("Loop", ["n", "no", "x"], ["y"], body=inner)], ["y"], [constant("no", False, np.bool_)], [port("x", [2, 6]), N]
    )
    check(proto, {"x": X, "n": trips(5)})


@pytest.mark.parametrize("count", [1, 3, 9])
def test_loop_whose_value_grows_each_round(count: int) -> None:
    """More shapes than a body is made ready for."""
    inner = loop([node("Concat", ["s", "x"], ["t"], axis=0)], [port("s", [None, 6])], [port("t", [None, 6])])
    check(
        make([node("Loop", ["n", "", "x"], ["y"], body=inner)], ["y"], inputs=[port("x", [2, 6]), N]), {"x": X, "n": trips(count)}
    )


def test_loop_uses_its_round_number() -> None:
    inner = loop(
        [node("Cast", ["i"], ["f"], to=FLOAT), node("Mul", ["s", "f"], ["t"]), node("Identity", ["i"], ["seen"])],
        [port("s", [2, 6])],
        [port("t", [2, 6]), port("seen", [], INT64)],
    )
    proto = make(
        [node("Loop", ["n", "", "x"], ["y", "rounds"], body=inner)], {"y": FLOAT, "rounds": INT64}, inputs=[port("x", [2, 6]), N]
    )
    check(proto, {"x": X, "n": trips(4)})


def test_loop_that_passes_values_through_and_swaps_them() -> None:
    inner = loop(
        [node("Identity", ["b"], ["c"]), node("Identity", ["a"], ["d"])],
        [port("a", [2, 6]), port("b", [2, 6])],
        [port("c", [2, 6]), port("d", [2, 6])],
    )
    nodes = [node("Neg", ["x"], ["w"]), node("Loop", ["n", "", "x", "w"], ["y", "z"], body=inner)]
    check(make(nodes, ["y", "z"], inputs=[port("x", [2, 6]), N]), {"x": X, "n": trips(3)})


def test_loop_inside_loop() -> None:
    inner = loop([node("Add", ["s", "x"], ["t"])], [port("s", [2, 6])], [port("t", [2, 6])])
    outer = body(
        [node("Identity", ["go"], ["on"]), node("Loop", ["n", "", "u"], ["v"], body=inner), node("Tanh", ["v"], ["w"])],
        [port("j", [], INT64), port("go", [], BOOL), port("u", [2, 6])],
        [port("on", [], BOOL), port("w", [2, 6])],
    )
    check(make([node("Loop", ["n", "", "x"], ["y"], body=outer)], ["y"], inputs=[port("x", [2, 6]), N]), {"x": X, "n": trips(2)})


def test_loop_over_run_time_shapes() -> None:
    inner = loop([node("Neg", ["s"], ["t"])], [port("s", None, INT64)], [port("t", None, INT64)])
    nodes = [node("NonZero", ["x"], ["p"]), node("Loop", ["n", "", "p"], ["y"], body=inner)]
    check(make(nodes, {"y": INT64}, inputs=[port("x", [2, 6]), N]), {"x": np.maximum(X, 0), "n": trips(3)})


def test_endless_loop_is_ended() -> None:
    with pytest.raises(LimitError, match=r"Loop: not done after 10 rounds of all loops .*, the limit is 10 \(node 'rounds'\)"):
        build(running_sum()).run({"x": X, "n": trips(2**60)}, RunBounds(rounds=10))


def test_loop_output_that_grows_past_the_limit_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graph.run.control_flow.MAX_VALUE_BYTES", 1000)
    with pytest.raises(LimitError, match=r"seen: 1008 bytes after 20 iterations, the limit is 1000"):
        build(running_sum()).run({"x": X, "n": trips(2**60)})


def test_loop_refuses_a_body_with_other_inputs() -> None:
    inner = loop([node("Neg", ["x"], ["t"])], [], [port("t", [2, 6])])
    proto = make([node("Loop", ["n", "", "x"], ["y"], "rounds", body=inner)], ["y"], inputs=[port("x", [2, 6]), N])
    with pytest.raises(ShapeError, match=r"Loop: 3 values for its body 'body', which takes 2 \(node 'rounds'\)"):
        build(proto).run({"x": X, "n": trips(1)})


def test_loop_refuses_rounds_that_stack_other_shapes() -> None:
    inner = loop(
        [node("Concat", ["s", "x"], ["t"], axis=0), node("Neg", ["t"], ["seen"])],
        [port("s", [None, 6])],
        [port("t", [None, 6]), port("seen", [None, 6])],
    )
    proto = make([node("Loop", ["n", "", "x"], ["y", "all"], body=inner)], ["y", "all"], inputs=[port("x", [2, 6]), N])
    with pytest.raises(ShapeError, match=r"seen: shape \(6, 6\) in iteration 1, need \(4, 6\) as in iteration 0"):
        build(proto).run({"x": X, "n": trips(2)})


def scan_model(shape=(4, 3), row=(3,), **attrs):
    inner = body(
        [node("Add", ["s", "row"], ["t"]), node("Identity", ["t"], ["seen"])],
        [port("s", row), port("row", row)],
        [port("t", row), port("seen", row)],
    )
    scan = node("Scan", ["z", "m"], ["last", "all"], "walk", body=inner, num_scan_inputs=1, **attrs)
    return make([scan], ["last", "all"], inputs=[port("z", row), port("m", shape)])


def scan_feeds(proto):
    shapes = [[dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in proto.graph.input]
    rng = np.random.default_rng(1)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in zip("zm", shapes, strict=True)}


@pytest.mark.parametrize("in_axis", [0, 1, -1, -2])
@pytest.mark.parametrize("out_axis", [0, 1, -1])
@pytest.mark.parametrize("backward", [(0, 0), (1, 0), (0, 1), (1, 1)], ids=str)
def test_scan_along_axes_in_directions(in_axis: int, out_axis: int, backward: tuple[int, int]) -> None:
    proto = scan_model(
        row=[(3, 4)[in_axis]],
        scan_input_axes=[in_axis],
        scan_output_axes=[out_axis],
        scan_input_directions=[backward[0]],
        scan_output_directions=[backward[1]],
    )
    check(proto, scan_feeds(proto))


def test_scan_over_two_sequences_without_state() -> None:
    inner = body([node("Mul", ["a", "b"], ["c"])], [port("a", [3]), port("b", [3])], [port("c", [3])])
    scan = node("Scan", ["p", "q"], ["y"], body=inner, num_scan_inputs=2, scan_input_axes=[0, 1])
    proto = make([scan], ["y"], inputs=[port("p", [4, 3]), port("q", [3, 4])])
    check(proto, {"p": np.ones((4, 3), np.float32), "q": np.arange(12, dtype=np.float32).reshape(3, 4)})


def test_scan_over_nothing_keeps_its_state() -> None:
    made = build(scan_model((0, 3))).run({"z": np.ones(3, np.float32), "m": np.empty((0, 3), np.float32)})
    np.testing.assert_array_equal(made["last"], 1)
    assert made["all"].shape == (0, 3)


@pytest.mark.parametrize(
    ("attrs", "error", "says"),
    [
        ({"scan_input_axes": [5]}, ShapeError, r"Scan: axis 5 of a sequence with shape \(4, 3\)"),
        ({"scan_output_axes": [5]}, ShapeError, "seen: stacked along axis 5, it has 2 axes then"),
        ({"scan_output_axes": [0, 0]}, AttributeValueError, "Scan: scan_output_axes has 2 values, need 1"),
    ],
    ids=["input_axis", "output_axis", "too_many"],
)
def test_scan_refuses_axes_that_are_not_there(attrs, error, says) -> None:
    proto = scan_model(**attrs)
    with pytest.raises(error, match=says):
        build(proto).run(scan_feeds(proto))


def test_scan_refuses_sequences_of_two_lengths() -> None:
    inner = body([node("Mul", ["a", "b"], ["c"])], [port("a", [3]), port("b", [3])], [port("c", [3])])
    proto = make(
        [node("Scan", ["p", "q"], ["y"], body=inner, num_scan_inputs=2)], ["y"], inputs=[port("p", [4, 3]), port("q", [5, 3])]
    )
    with pytest.raises(ShapeError, match=r"Scan: its sequences have lengths \[4, 5\], need one length"):
        build(proto).run({"p": np.ones((4, 3), np.float32), "q": np.ones((5, 3), np.float32)})


def test_strings_go_through_a_branch() -> None:
    then = body([node("Identity", ["s"], ["b"])], [], [port("b", [2], STRING)])
    other = body([node("Concat", ["s", "s"], ["d"], axis=0)], [], [port("d", [4], STRING)])
    proto = make(
        [node("If", ["c"], ["y"], then_branch=then, else_branch=other)],
        {"y": STRING},
        inputs=[port("s", [2], STRING), port("c", [], BOOL)],
    )
    given = np.array(["a", "b"], object)
    assert build(proto).run({"s": given, "c": np.array(True)})["y"].tolist() == ["a", "b"]
    assert build(proto).run({"s": given, "c": np.array(False)})["y"].tolist() == ["a", "b", "a", "b"]


def test_interpreter_runs_bodies_too() -> None:
    proto, feeds = running_sum(), {"x": X, "n": trips(3)}
    assert_agrees(interpret(read(proto).graph, feeds), build(proto).run(feeds), tolerance=0)


def test_control_flow_steps_are_dynamic() -> None:
    assert [step.algorithm for step in build(running_sum()).steps] == [DYNAMIC]


def test_a_missing_branch_is_refused() -> None:
    proto = branches(
        body([node("Relu", ["x"], ["b"])], [], [port("b", [2, 6])]), body([node("Neg", ["x"], ["n"])], [], [port("n", [2, 6])])
    )
    del proto.graph.node[0].attribute[1]
    with pytest.raises(EdgewiseError, match=r"If: attribute '(then|else)_branch' is missing, need a graph \(node 'choice'\)"):
        build(proto)


def test_scan_over_strings() -> None:
    """A slice of one string is an array too: numpy returned the string itself."""
    inner = body([node("Identity", ["e"], ["f"])], [port("e", [], STRING)], [port("f", [], STRING)])
    proto = make([node("Scan", ["x"], ["y"], body=inner, num_scan_inputs=1)], {"y": STRING}, inputs=[port("x", [2], STRING)])
    words = np.array(["a", "bc"], object)
    assert build(proto).run({"x": words})["y"].tolist() == ["a", "bc"]


@pytest.mark.parametrize("lengths", [None, [3, 1]])
def test_scan_before_opset_9_scans_every_row_of_a_batch(lengths: list[int] | None) -> None:
    step = body(
        [node("Add", ["state", "row"], ["next"]), node("Identity", ["next"], ["shown"])],
        [port("state", [2]), port("row", [2])],
        [port("next", [2]), port("shown", [2])],
    )
    inputs = [port("start", [2, 2]), port("x", [2, 3, 2]), *([port("lengths", [2], INT64)] if lengths else [])]
    scan = node(
        "Scan", ["lengths" if lengths else "", "start", "x"], ["last", "all"], num_scan_inputs=1, body=step, directions=[1]
    )
    proto = make([scan], ["last", "all"], (), inputs)
    proto.opset_import[0].version = 8
    x = np.arange(12, dtype=np.float32).reshape(2, 3, 2)
    feeds = {"start": np.ones((2, 2), np.float32), "x": x} | ({"lengths": np.array(lengths)} if lengths else {})
    made = Session(proto, 1).run(feeds)
    for row, length in enumerate(lengths or [3, 3]):
        sums = 1 + np.cumsum(x[row, :length][::-1], 0)
        np.testing.assert_array_equal(made["last"][row], sums[-1])
        np.testing.assert_array_equal(made["all"][row], np.concatenate([sums, np.zeros((3 - length, 2))]))
    assert profile(proto).uncounted
