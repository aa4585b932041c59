from __future__ import annotations

import numpy as np
import pytest

from graph.formats.onnx.reader import read
from profiler.counting.params import count_params
from tests.profiler.models import model, node, random, small_convnet


def params_of(nodes, inputs, weights, **options):
    return count_params(read(model(nodes, inputs, ["y"], weights, **options)))


def test_running_statistics_are_no_parameters():
    found = count_params(read(small_convnet()))
    assert found.total == 8 * 27 + 8 + 8 * 9 + 8 + 8 + 160 + 10
    assert found.initializer_elements == found.total + 16


def test_folded_batch_norm_counts_scale_and_shift():
    weights = {"onnx::Conv_12": random(8, 3, 3, 3), "onnx::Conv_13": random(8)}
    found = params_of([node("Conv", "x onnx::Conv_12 onnx::Conv_13", "y")], {"x": [1, 3, 5, 5]}, weights)
    assert found.total == 8 * 27 + 2 * 8
    assert found.initializer_elements == 8 * 27 + 8
    assert found.folded == {"y"}
    assert "1 convolutions with a folded BatchNormalization" in found.note


@pytest.mark.parametrize(("weight", "bias"), [("onnx::Conv_1", "b"), ("w", "onnx::Conv_1"), ("w", "b"), ("onnx::Gemm_1", "b")])
def test_a_named_weight_or_bias_is_no_folded_batch_norm(weight, bias):
    found = params_of(
        [node("Conv", f"x {weight} {bias}", "y")], {"x": [1, 3, 5, 5]}, {weight: random(8, 3, 3, 3), bias: random(8)}
    )
    assert found.total == 8 * 27 + 8
    assert not found.folded


def test_an_identity_of_an_initializer_is_a_parameter_of_its_own():
    nodes = [
        node("Identity", "b1", "b2"),
        node("Identity", "b2", "b3"),
        node("Gemm", "x w b1", "h1"),
        node("Gemm", "h1 w b2", "h2"),
        node("Gemm", "h2 w b3", "y"),
    ]
    found = params_of(nodes, {"x": [1, 4]}, {"w": random(4, 4), "b1": random(4)})
    assert found.total == 16 + 3 * 4
    assert found.initializer_elements == 16 + 4
    assert "2 Identity copies" in found.note


def test_an_identity_of_an_activation_is_nothing():
    found = params_of([node("Identity", "x", "i"), node("Gemm", "i w", "y")], {"x": [1, 4]}, {"w": random(4, 4)})
    assert found.total == 16


def test_a_weight_read_twice_counts_once():
    nodes = [node("MatMul", "x w", "h"), node("MatMul", "h w", "y")]
    assert params_of(nodes, {"x": [1, 4]}, {"w": random(4, 4)}).total == 16


def test_bounds_pads_and_shapes_are_no_parameters():
    nodes = [
        node("Clip", "x low high", "clipped"),
        node("Pad", "clipped pads fill", "padded"),
        node("Reshape", "padded shape", "y"),
    ]
    constants = {
        "low": np.float32(0),
        "high": np.float32(6),
        "pads": np.array([0, 0, 0, 2]),
        "fill": np.float32(0),
        "shape": np.array([12]),
    }
    found = params_of(nodes, {"x": [2, 4]}, constants)
    assert found.total == 0
    assert found.initializer_elements == 2 + 4 + 1 + 1


def test_constant_nodes_count_only_in_a_weight_slot():
    from onnx import helper, numpy_helper

    def constant(name, array):
        return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array))

    nodes = [constant("w", random(4, 3)), constant("scale", random(3)), node("MatMul", "x w", "h"), node("Mul", "h scale", "y")]
    found = params_of(nodes, {"x": [1, 4]}, {})
    assert found.total == 12
    assert found.initializer_elements == 0


@pytest.mark.parametrize(("producer", "count"), [("pytorch", 1), ("tf2onnx", 0)])
def test_a_scalar_initializer_counts_where_constants_are_nodes(producer, count):
    assert params_of([node("Mul", "x s", "y")], {"x": [2]}, {"s": np.float32(2)}, producer=producer).total == count


def test_a_vector_initializer_counts_anywhere():
    assert params_of([node("Mul", "x s", "y")], {"x": [2]}, {"s": random(2)}, producer="other").total == 2


def test_integer_initializers_are_no_parameters():
    nodes = [node("Gather", "table ids", "y")]
    assert params_of(nodes, {"table": [5, 3]}, {"ids": np.array([0, 2])}).total == 0


def test_an_initializer_that_no_node_reads_is_not_a_parameter():
    assert params_of([node("Relu", "x", "y")], {"x": [2]}, {"unused": random(7)}).total == 0
