"""Sizes that are computed as floats: they are what fp32 makes of them, for all values of the symbols, or no ratios."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graph.ratios import InexactError, Ratio
from kernels.size import GuardError, Scope
from scheduler.session import Session
from tests.graph.oracle import FLOAT, INT64, assert_agrees, constant, expected, ints, make, node, port

NUMBERS = st.sampled_from([0.5, 0.25, 1.5, 2.0, 3.0, 7.0, 0.1, 1.3, 0.7, 1000.0, 1 / 3])
STEPS = st.lists(st.tuples(st.sampled_from(["mul", "div", "add", "sub", "floor", "ceil"]), NUMBERS), min_size=1, max_size=5)
SIZES = st.integers(2, 5000)


def exact(number: float) -> Ratio:
    return Ratio(*float(np.float32(number)).as_integer_ratio())


def as_ratio(size: int, steps) -> Ratio:
    found = Ratio(size)
    for name, number in steps:
        match name:
            case "mul":
                found = found * exact(number)
            case "div":
                found = found / exact(number)
            case "add":
                found = found + exact(number)
            case "sub":
                found = found - exact(number)
            case "floor":
                found = Ratio(found.floor())
            case "ceil":
                found = Ratio(found.ceil())
    return found


def as_float(size: int, steps) -> np.float32:
    found = np.float32(size)
    for name, number in steps:
        match name:
            case "mul":
                found = found * np.float32(number)
            case "div":
                found = found / np.float32(number)
            case "add":
                found = found + np.float32(number)
            case "sub":
                found = found - np.float32(number)
            case "floor":
                found = np.floor(found)
            case "ceil":
                found = np.ceil(found)
    return found


@given(SIZES, SIZES, STEPS)
def test_a_ratio_is_rounded_as_its_float(hint: int, value: int, steps) -> None:
    scope = Scope()
    try:
        made = as_ratio(scope.symbol("n", hint), steps)
        sizes: list[Any] = [made.floor(), made.ceil(), made.whole()]
    except InexactError:
        return
    try:
        found = scope.compile(sizes)([value])
    except GuardError:
        return
    wanted = as_float(value, steps)
    assert found == [int(np.floor(wanted)), int(np.ceil(wanted)), int(wanted)]


@pytest.mark.parametrize("factor", [0.1, 1.3, 1 / 3])
def test_a_factor_that_rounds_makes_no_ratio(factor: float) -> None:
    with pytest.raises(InexactError):
        Ratio(100) * exact(factor)


def scaled(middle, constants):
    """A row as often as the rows of x times a factor say."""
    nodes = [
        node("Shape", ["x"], ["s"], start=0, end=1),
        node("Cast", ["s"], ["f"], to=FLOAT),
        *middle,
        node("Cast", ["r"], ["i"], to=INT64),
        node("Concat", ["i", "one"], ["t"], axis=0),
        node("Expand", ["v", "t"], ["y"]),
    ]
    return make(nodes, ["y"], [ints("one", 1), constant("v", [[3.0]]), *constants], [port("x", ["rows", "columns"])])


def lowerings_of(proto, rows) -> int:
    """How many lowerings these numbers of rows need. Their answers are those of ONNX Runtime."""
    session = Session(proto, 1)
    for count in rows:
        feeds = {"x": np.full((count, 3), count, np.float32)}
        assert_agrees(session.run(feeds), expected(proto, feeds))
    return len(session._lowerings._kept)


@pytest.mark.parametrize(("op", "factor"), [("Mul", 1.5), ("Mul", 2.0), ("Div", 4.0), ("Div", 3.0)])
def test_one_lowering_serves_sizes_that_are_scaled_as_floats(op: str, factor: float) -> None:
    middle = [node(op, ["f", "factor"], ["q"]), node("Floor", ["q"], ["r"])]
    assert lowerings_of(scaled(middle, [constant("factor", factor)]), (13, 14, 20, 33, 40)) == 2  # the first has no symbols


def test_a_float_of_a_size_that_no_shape_needs_is_left_to_the_run() -> None:
    nodes = [
        node("Shape", ["x"], ["s"], start=0, end=1),
        node("Cast", ["s"], ["f"], to=FLOAT),
        node("Sqrt", ["f"], ["q"]),
        node("Div", ["x", "q"], ["y"]),
    ]
    assert lowerings_of(make(nodes, ["y"], (), [port("x", ["rows", "columns"])]), (13, 14, 20, 33, 40)) == 2


def test_a_float_that_a_shape_needs_and_that_rounds_is_computed_for_each_size() -> None:
    middle = [node("Sqrt", ["f"], ["q"]), node("Floor", ["q"], ["r"])]
    assert lowerings_of(scaled(middle, []), (13, 14, 20, 14)) == 3
