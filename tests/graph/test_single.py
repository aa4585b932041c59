"""Runs of graphs that are one native segment take a shorter way, and give what the longer way gives."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import edgewise
from graph.errors import FeedError
from graph.run import single
from graph.run.bounds import RunBounds
from kernels.errors import IndexRangeError

W = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)


def model(nodes, outputs, *, inputs=("x",), rows=2):
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [rows, 4]) for name in inputs]
    results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    graph = helper.make_graph(nodes, "g", ports, results, [numpy_helper.from_array(W, "w")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def product(**changed):
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Relu", ["h"], ["y"]),
        helper.make_node("Neg", ["h"], ["z"]),
    ]
    return model(nodes, ("z", "y"), **changed)


X = np.random.default_rng(1).standard_normal((2, 4)).astype(np.float32)


@pytest.fixture
def executor():
    session = edgewise.Session(product(), threads=2)
    session.run({"x": X})
    return session.executor({"x": X})


def test_both_ways_give_the_same_outputs_in_order(executor):
    short, long = executor.run({"x": X}), executor.run({"x": X}, RunBounds())
    assert executor._single is not None
    assert list(short) == list(long) == ["z", "y"]
    for name, array in long.items():
        np.testing.assert_array_equal(short[name], array)


def test_outputs_are_new_memory(executor):
    first = executor.run({"x": X})
    kept = {name: array.copy() for name, array in first.items()}
    executor.run({"x": X + 1})
    for name, array in kept.items():
        np.testing.assert_array_equal(first[name], array)


UNALIGNED = np.frombuffer(b"\0" + X.tobytes(), np.uint8)[1:].view(np.float32).reshape(2, 4)
ODD = {
    "fortran": np.asfortranarray(X),
    "strided": np.repeat(X, 2, 1)[:, ::2],
    "big_endian": X.astype(">f4"),
    "unaligned": UNALIGNED,
}


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
def test_arrays_of_every_layout_are_taken(executor, odd):
    for name, array in executor.run({"x": odd}).items():
        np.testing.assert_array_equal(array, executor.run({"x": X})[name])


def test_read_only_arrays_are_taken(executor):
    fixed = X.copy()
    fixed.flags.writeable = False
    np.testing.assert_array_equal(executor.run({"x": fixed})["y"], executor.run({"x": X})["y"])


@pytest.mark.parametrize(
    ("feeds", "says"),
    [
        ({}, "input is missing"),
        ({"x": X, "more": X}, "no input of that name"),
        ({"x": X.astype(np.float64)}, "dtype is float64"),
        ({"x": X[:1]}, "need 2 in dimension 0"),
        ({"x": X.tolist()}, "need a numpy array"),
    ],
)
def test_wrong_feeds_are_refused_as_on_the_long_way(executor, feeds, says):
    with pytest.raises(FeedError, match=says):
        executor.run(feeds)


def test_outputs_that_find_no_memory_are_left_to_the_long_way(executor, monkeypatch):
    def exhausted(*_):
        raise MemoryError

    monkeypatch.setattr(single, "np", SimpleNamespace(ndarray=np.ndarray, empty=exhausted))
    assert executor._single.run({"x": X}) is None
    np.testing.assert_allclose(executor.run({"x": X})["z"], -(X @ W), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("rows", "threads"), [(2, 1), (20_000, 2)])
def test_a_program_takes_no_more_threads_than_it_has_chunks(rows, threads):
    """A thread that is woken for nothing costs more than a small model's run."""
    session, x = edgewise.Session(product(rows=rows), threads=2), np.ones((rows, 4), np.float32)
    session.run({"x": x})
    program, taken = session.executor({"x": x})._single._segment._program, []
    program._pool = SimpleNamespace(run=lambda _walk, _header, used, _counters: taken.append(used))
    session.run({"x": x})
    assert taken == [threads]


def test_threads_share_an_executor(executor):
    wanted, wrong = executor.run({"x": X})["y"], []

    def work(shift):
        expected = wanted if not shift else executor.run({"x": X + shift}, RunBounds())["y"]
        for _ in range(200):
            if not np.array_equal(executor.run({"x": X + np.float32(shift)})["y"], expected):
                wrong.append(shift)

    workers = [threading.Thread(target=work, args=(shift,)) for shift in (0, 1, 2, 3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_new_sizes_of_one_lowering_are_served():
    session = edgewise.Session(product(rows="n"), threads=1)
    for rows in (2, 5, 3, 9, 2):
        x = np.random.default_rng(rows).standard_normal((rows, 4)).astype(np.float32)
        np.testing.assert_allclose(session.run({"x": x})["z"], -(x @ W), rtol=1e-5, atol=1e-6)


def test_an_index_out_of_range_is_still_found():
    node, indices = helper.make_node("Gather", ["w", "i"], ["y"]), helper.make_tensor_value_info("i", TensorProto.INT64, [2])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph([node], "g", [indices], [y], [numpy_helper.from_array(W, "w")])
    session = edgewise.Session(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    for good in ([0, 3], [-4, 1]):
        np.testing.assert_array_equal(session.run({"i": np.array(good)})["y"], W[good])
        with pytest.raises(IndexRangeError, match="index 4 points outside an axis of 4"):
            session.run({"i": np.array([1, 4])})


@pytest.mark.parametrize(
    ("nodes", "outputs", "inputs"),
    [
        ([helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Det", ["s"], ["d"])], ("y", "d"), ("x", "s")),
        ([helper.make_node("Relu", ["x"], ["y"])], ("y", "x"), ("x",)),
        ([helper.make_node("Relu", ["x"], ["y"])], ("y",), ("x", "unread")),
    ],
    ids=["numpy", "input_returned", "input_unread"],
)
def test_graphs_that_are_more_than_a_segment_go_the_long_way(nodes, outputs, inputs):
    square = np.ones((4, 4), np.float32)
    session = edgewise.Session(model(nodes, outputs, inputs=inputs, rows=4))
    feeds = dict.fromkeys(inputs, square)
    np.testing.assert_array_equal(session.run(feeds)["y"], square)
    assert session.executor(feeds)._single is None
