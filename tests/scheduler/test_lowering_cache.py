"""How many lowerings a session needs for many shapes, and what it says of it."""

import json

import numpy as np
import pytest

from graph.native.engine import find_native
from scheduler.lowering_cache import REACH
from scheduler.session import Session
from tests.graph.dynamic.build import Build
from tests.graph.dynamic.tokens import Tokens, attention, feed_forward
from tests.graph.oracle import constant, ints, make, node, port


def transformer(seed: int):
    """Two blocks of attention and a gated product, with any number of sequences of any length."""
    b = Build(seed)
    x = Tokens(b.feed("x", "batch", "tokens", 16), 16, 2)
    for _ in range(2):
        x = feed_forward(b, attention(b, x))
    b.give(x.value)
    return b.done([]).proto


def images():
    """A convolution, its double size, and statistics of channels, for any number of images of any size."""
    nodes = [
        node("Conv", ["x", "w"], ["a"], pads=[1, 1, 1, 1], strides=[2, 2]),
        node("Resize", ["a", "", "scales"], ["b"], mode="nearest"),
        node("Relu", ["b"], ["c"]),
        node("GlobalAveragePool", ["c"], ["y"]),
    ]
    weights = np.random.default_rng(0).standard_normal((8, 3, 3, 3))
    constants = [constant("w", weights), constant("scales", [1, 1, 1.5, 2])]
    return make(nodes, ["y"], constants, [port("x", ["batch", 3, "height", "width"])])


def lowerings_of(proto, shapes) -> int:
    """How many lowerings these shapes of x need, in this order."""
    session = Session(proto, 1)
    for shape in shapes:
        session.run({"x": np.ones(shape, np.float32)})
    return len(session._lowerings._kept)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_transformer_is_lowered_again_where_a_lowering_ends_and_nowhere_else(seed: int) -> None:
    lengths = [1, *range(2, 2 * REACH + 1), 9, 10, 15, 16, 17, 31, 33, 9 * REACH]
    assert lowerings_of(transformer(seed), [(1, length, 16) for length in lengths]) == 3


def test_batches_need_two_lowerings() -> None:
    assert lowerings_of(transformer(4), [(batch, 7, 16) for batch in range(1, 9)]) == 2
    assert lowerings_of(images(), [(batch, 3, 8, 9) for batch in range(1, 9)]) == 2


def test_images_of_all_sizes_need_few_lowerings() -> None:
    sides = [(16, 17), (17, 17), (20, 31), (33, 32), (64, 40), (9, 50)]
    assert lowerings_of(images(), [(1, 3, *side) for side in sides]) == 3  # one side differed first, then the other


def test_rows_at_any_distance_need_no_lowering_of_their_own() -> None:
    """The first token of each sequence, as wide as a vector, whose distance depends on the length."""
    nodes = [
        node("Slice", ["x", "zero", "one", "one"], ["s"]),
        node("Squeeze", ["s", "one"], ["t"]),
        node("MatMul", ["t", "w"], ["y"]),
    ]
    width = find_native("auto").isa.lanes
    constants = [ints("zero", 0), ints("one", 1), constant("w", np.ones((width, 7)))]
    proto = make(nodes, ["y"], constants, [port("x", ["batch", "tokens", width])])
    assert lowerings_of(proto, [(3, length, width) for length in range(5, 12)]) == 2


def test_a_slice_that_takes_all_at_one_length_needs_no_lowering_of_its_own() -> None:
    """Positions of a table, as many as there are tokens: at the last length there is nothing to cut."""
    nodes = [
        node("Shape", ["x"], ["count"], start=1, end=2),
        node("Slice", ["table", "zero", "count", "one"], ["places"]),
        node("Add", ["x", "places"], ["y"]),
    ]
    constants = [ints("zero", 0), ints("one", 1), constant("table", np.ones((1, 12, 4)))]
    proto = make(nodes, ["y"], constants, [port("x", ["batch", "tokens", 4])])
    assert lowerings_of(proto, [(3, length, 4) for length in range(5, 13)]) == 2


def test_debugging_says_why_a_model_is_lowered_again(monkeypatch, capfd) -> None:
    monkeypatch.setenv("EDGEWISE_DEBUG", "1")
    nodes = [node("Shape", ["x"], ["s"], start=0, end=1), node("Mod", ["s", "three"], ["r"]), node("Tile", ["v", "r"], ["y"])]
    proto = make(nodes, ["y"], [constant("three", [3], np.int64), constant("v", [1.0])], [port("x", ["rows"])])
    session = Session(proto, 1)
    for rows in (4, 5, 6, 80):
        session.run({"x": np.zeros(rows, np.float32)})
    events = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    because = [event["because"] for event in events if event["event"] == "lowered again"]
    assert because[0] == ["sizes: axis 0 of 'x' was 4 and is no symbol"]
    assert any(line.startswith("sizes: ") and ".py:" in line for line in because[1])
    assert f"sizes: rows was 5, a lowering serves up to {REACH} times that and down to as small a part" in because[-1]
