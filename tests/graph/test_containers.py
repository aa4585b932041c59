"""Sequences and optionals as inputs, outputs and values between: what sessions take and give, and how their memory is counted."""

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from graph.errors import FeedError, LimitError
from graph.run.bounds import RunBounds
from kernels.containers import contained, held_bytes, sequence_of
from kernels.errors import DTypeError, IndexRangeError
from profiler.counting.counts import profile
from scheduler.session import Session

node, port = helper.make_node, helper.make_value_info
INT64, BOOL = (helper.make_tensor_type_proto(kind, []) for kind in (TensorProto.INT64, TensorProto.BOOL))
TENSOR = helper.make_tensor_type_proto(TensorProto.FLOAT, None)
SEQUENCE = helper.make_sequence_type_proto(TENSOR)
ROWS = [np.arange(3, dtype=np.float32), np.ones((2, 2), np.float32), np.array(7, np.float32)]


def model(nodes: list[Any], inputs: dict[str, Any], outputs: dict[str, Any]) -> onnx.ModelProto:
    given, made = ([port(name, kind) for name, kind in ports.items()] for ports in (inputs, outputs))
    return helper.make_model(
        helper.make_graph(nodes, "g", given, made), opset_imports=[helper.make_opsetid("", 21)], ir_version=10
    )


def passing(kind: Any = SEQUENCE) -> Session:
    return Session(model([node("Identity", ["x"], ["y"])], {"x": kind}, {"y": kind}), 1, backend="numpy")


def assert_equal(actual: Any, expected: Any) -> None:
    assert type(actual) is type(expected)
    for one, other in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(one, other)
        assert one.dtype == other.dtype


def test_a_list_comes_back_as_copies() -> None:
    made = passing().run({"x": ROWS})["y"]
    assert_equal(made, ROWS)
    made[0][:] = -1
    assert ROWS[0][0] == 0


def test_lists_of_other_lengths_follow_one_another() -> None:
    session = passing()
    for count in (3, 1, 0, 2):
        assert_equal(session.run({"x": ROWS[:count]})["y"], ROWS[:count])


@pytest.mark.parametrize("kind", [TENSOR, SEQUENCE])
def test_an_optional_is_its_value_or_none(kind: Any) -> None:
    session = passing(helper.make_optional_type_proto(kind))
    value = ROWS if kind is SEQUENCE else ROWS[0]
    assert session.run({"x": None})["y"] is None
    assert_equal(session.run({"x": value})["y"], value)
    assert session.run({"x": None})["y"] is None


def test_an_empty_tensor_in_an_optional_is_not_nothing() -> None:
    session = passing(helper.make_optional_type_proto(TENSOR))
    assert session.run({"x": None})["y"] is None
    assert session.run({"x": np.empty(0, np.float32)})["y"].shape == (0,)


@pytest.mark.parametrize(
    ("fed", "says"),
    [
        (ROWS[0], "feed is a ndarray, need a list of numpy arrays for x: seq"),
        ([np.ones(2, np.int64)], "dtype is int64, need float32"),
        (["text"], "feed is a str, need a numpy array"),
        (None, "feed is a NoneType, need a list"),
    ],
)
def test_what_is_no_sequence_is_refused(fed: Any, says: str) -> None:
    with pytest.raises(FeedError, match=says):
        passing().run({"x": fed})


def test_a_loop_collects_tensors_of_growing_shapes() -> None:
    body = helper.make_graph(
        [
            node("Identity", ["c"], ["again"]),
            node("Concat", ["x", "x"], ["x2"], axis=0),
            node("SequenceInsert", ["s", "x"], ["s2"]),
        ],
        "body",
        [port("i", INT64), port("c", BOOL), port("x", TENSOR), port("s", SEQUENCE)],
        [port("again", BOOL), port("x2", TENSOR), port("s2", SEQUENCE)],
    )
    nodes = [
        node("SequenceEmpty", [], ["none"]),
        node("Loop", ["n", "", "x", "none"], ["last", "all"], body=body),
        node("ConcatFromSequence", ["all"], ["joined"], axis=0),
    ]
    made = model(nodes, {"n": INT64, "x": TENSOR}, {"all": SEQUENCE, "joined": TENSOR})
    feeds = {"n": np.array(4), "x": np.ones((1, 2), np.float32)}
    session = Session(made, 1)
    for _ in range(2):
        outputs = session.run(feeds)
        assert_equal(outputs["all"], [np.ones((rows, 2), np.float32) for rows in (1, 2, 4, 8)])
        assert outputs["joined"].shape == (15, 2)
    assert any(op.op == "Loop" for op in profile(made, shapes={"n": (), "x": (1, 2)}).ops)


def test_constant_sequences_are_computed_before_the_run() -> None:
    value = helper.make_tensor("v", TensorProto.FLOAT, [2], [1.0, 2.0])
    nodes = [
        node("Constant", [], ["a"], value=value),
        node("SequenceConstruct", ["a", "a"], ["s"]),
        node("SequenceLength", ["s"], ["n"]),
        node("SequenceAt", ["s", "zero"], ["b"]),
        node("Constant", [], ["zero"], value_int=0),
        node("Add", ["b", "x"], ["y"]),
    ]
    made = model(nodes, {"x": helper.make_tensor_type_proto(TensorProto.FLOAT, [2])}, {"y": TENSOR})
    np.testing.assert_array_equal(Session(made, 1).run({"x": ROWS[0][:2]})["y"], [1, 3])
    assert [op.op for op in profile(made).ops if not op.constant] == ["Add"]


def test_a_position_outside_is_refused_where_the_run_meets_it() -> None:
    made = model([node("SequenceErase", ["x", "i"], ["y"])], {"x": SEQUENCE, "i": INT64}, {"y": SEQUENCE})
    session = Session(made, 1)
    assert_equal(session.run({"x": ROWS, "i": np.array(-3)})["y"], ROWS[1:])
    with pytest.raises(IndexRangeError, match="position 3 lies outside a sequence of 3"):
        session.run({"x": ROWS, "i": np.array(3)})


def test_another_element_type_is_refused_when_the_model_is_made_ready() -> None:
    made = model(
        [node("SequenceInsert", ["x", "t"], ["y"])], {"x": SEQUENCE, "t": helper.make_tensor_type_proto(7, [2])}, {"y": SEQUENCE}
    )
    with pytest.raises(DTypeError, match="sequence is seq"):
        Session(made, 1).run({"x": ROWS, "t": np.ones(2, np.int64)})


def test_what_a_sequence_holds_counts_until_it_is_freed() -> None:
    bounds = RunBounds(memory_bytes=100)
    held = contained(sequence_of(np.dtype(np.float32)), [np.ones(20, np.float32)])
    assert held_bytes(held) == 80
    bounds.hold(held)
    assert bounds.held_bytes == 80
    with pytest.raises(LimitError, match=r"seq\(f32\): 80 bytes beside the 80 that the run holds, its limit is 100"):
        bounds.hold(held.copy())
    del held
    assert bounds.held_bytes == 0
