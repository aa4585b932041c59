"""Zero points that only a run knows leave products of integers."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from scheduler.session import Session

UNSIGNED = np.array([200, 3, 128], np.uint8)


def dynamic(w: np.ndarray, *zeros: np.ndarray) -> bytes:
    """A product whose first factor is quantised when it runs. zeros: of the weights."""
    names = ["w_zero"][: len(zeros)]
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "scale", "zero"]),
        helper.make_node("MatMulInteger", ["q", "w", "zero", *names], ["sums"]),
        helper.make_node("Cast", ["sums"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["floats", "scale"], ["y"]),
    ]
    constants = [numpy_helper.from_array(w, "w"), *(numpy_helper.from_array(zero, "w_zero") for zero in zeros)]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 20])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "g", [x], [y], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()


@pytest.mark.parametrize("zeros", [(), (np.array(128, np.uint8),), (UNSIGNED,)], ids=["none", "one", "by-column"])
def test_products_of_what_is_quantised_when_it_runs(zeros):
    rng = np.random.default_rng(0)
    w = rng.integers(60, 190, (20, 3)).astype(np.uint8) if zeros else rng.integers(-128, 128, (20, 3)).astype(np.int8)
    data = dynamic(w, *zeros)
    native, numpy = Session(data), Session(data, backend="numpy")
    for rows in (1, 7):
        x = rng.standard_normal((rows, 20)).astype(np.float32)
        np.testing.assert_array_equal(native.run({"x": x})["y"], numpy.run({"x": x})["y"])
    steps = {step.node.op: step for step in native.executor({"x": x}).steps}
    fits = not zeros or zeros[0].size == 1
    assert steps["MatMulInteger"].algorithm.startswith("native/product") is fits
    assert len(steps["MatMulInteger"].node.inputs) == 2 + 2 * len(zeros)  # without the first factor's zero point


def test_numbers_that_wrap_around_stay_the_same():
    w = np.full((20, 3), 127, np.int8)
    data = dynamic(w)
    x = np.linspace(-3, 5, 40, dtype=np.float32).reshape(2, 20)
    np.testing.assert_array_equal(Session(data).run({"x": x})["y"], Session(data, backend="numpy").run({"x": x})["y"])
