"""Shapes that no array can have are refused where they come from: inputs, initializers, and outputs of nodes."""

import numpy as np
import pytest
from onnx import TensorProto

from graph.errors import FeedError, LimitError
from graph.formats.registry import read
from graph.run.executor import Executor
from graph.shapes import bind, propagate
from kernels.errors import EdgewiseError, ShapeError
from tests.graph.oracle import FLOAT, INT64, ints, make, node, port

HUGE = 2**62


def test_a_size_of_zero_does_not_hide_the_others_of_an_output() -> None:
    """Its elements are none, yet numpy raised a bare ValueError."""
    nodes = [node("CenterCropPad", ["x", "s"], ["y"], "crop")]
    graph = read(make(nodes, ["y"], [ints("s", 0, HUGE)], [port("x", [2, 6])], opset=18)).graph
    with pytest.raises(ShapeError, match=r"CenterCropPad: an output is f32\[0,4611686018427387904\], .*node 'crop'"):
        propagate(graph, bind(graph))


def test_such_an_output_is_refused_in_a_run_too() -> None:
    nodes = [node("CenterCropPad", ["x", "s"], ["y"], "crop")]
    graph = read(make(nodes, ["y"], (), [port("x", [2, 6]), port("s", [2], INT64)], opset=18)).graph
    executor = Executor(graph, propagate(graph, bind(graph)))
    with pytest.raises(ShapeError, match=r"an output is f32\[0,4611686018427387904\], .*node 'crop'"):
        executor.run({"x": np.zeros((2, 6), np.float32), "s": np.array([0, HUGE])})


def test_an_output_of_more_dimensions_than_arrays_have() -> None:
    nodes = [node("Reshape", ["x", "s"], ["y"], "shape")]
    graph = read(make(nodes, ["y"], [ints("s", *[1] * 64, 2, 6)], [port("x", [2, 6])])).graph
    with pytest.raises(ShapeError, match=r"an array has at most 64 dimensions.*node 'shape'"):
        propagate(graph, bind(graph))


@pytest.mark.parametrize("shape", [(0, HUGE, HUGE), (1,) * 65, (2**40,)], ids=["zero", "rank", "elements"])
def test_an_input_that_no_array_can_be(shape: tuple[int, ...]) -> None:
    fixed = read(make([node("Neg", ["x"], ["y"])], ["y"], inputs=[port("x", shape)])).graph
    with pytest.raises(FeedError, match=r"input 'x'.*the limits are 64 dimensions"):
        bind(fixed)
    open_ = read(make([node("Neg", ["x"], ["y"])], ["y"], inputs=[port("x", [f"d{axis}" for axis in range(len(shape))])])).graph
    with pytest.raises(FeedError, match=r"input 'x'.*the limits are 64 dimensions"):
        bind(open_, {"x": shape})


def test_an_initializer_that_no_array_can_be() -> None:
    empty = TensorProto(name="c", data_type=FLOAT, dims=[0, HUGE, HUGE], raw_data=b"")
    with pytest.raises(LimitError, match="initializer 'c'"):
        read(make([node("Add", ["x", "c"], ["y"])], ["y"], [empty]))


def test_every_declared_shape_is_refused_or_can_be_made() -> None:
    for shape in ([0, 2**31], [0, 2**61], [0, 2**62], [2**20, 0, 2**20], [1] * 64):
        graph = read(make([node("Neg", ["x"], ["y"])], ["y"], inputs=[port("x", shape)])).graph
        try:
            spec = bind(graph)["x"]
        except EdgewiseError:
            continue
        assert np.empty(spec.shape, spec.dtype).shape == tuple(shape)
