"""com.microsoft's fused ops become ONNX's own, which compute the same."""

from __future__ import annotations

import pytest
from onnx import numpy_helper

from graph.formats.registry import read
from graph.passes.expansions import expand_fused
from graph.passes.optimise import optimise
from graph.shapes import bind
from kernels.registry import Case, Op, evaluate, operators
from scheduler.session import Session
from tests.graph.passes.checks import build, node, ops, optimised, random, rewritten
from tests.kernels.ops.cases import arrays, assert_close
from tests.kernels.ops.models import one_node_model

MICROSOFT = "com.microsoft"
WEIGHTS = (random("w", 6, 4, 3, 3), random("b", 6))
IMAGE = {"x": (1, 4, 6, 5)}


def fused(activation, params, inputs):
    attrs = {"activation": activation, "pads": [1, 1, 1, 1], "kernel_shape": [3, 3]}
    if params:
        attrs["activation_params"] = params
    return node("FusedConv", inputs, ["y"], domain=MICROSOFT, **attrs)


@pytest.mark.parametrize(
    ("activation", "params", "wanted"),
    [
        ("Relu", [], "Relu"),
        ("Sigmoid", [], "Sigmoid"),
        ("Tanh", [], "Tanh"),
        ("LeakyRelu", [0.1], "LeakyRelu"),
        ("HardSigmoid", [0.25, 0.5], "HardSigmoid"),
        ("Clip", [-0.5, 0.75], "Clip"),
    ],
)
def test_fused_conv_becomes_conv_and_its_activation(activation, params, wanted) -> None:
    graph = build([fused(activation, params, ["x", "w", "b"])], WEIGHTS, IMAGE)
    after = rewritten(graph, expand_fused)
    assert ops(after) == ["Conv", wanted]
    assert after.nodes[0].attrs["pads"] == (1, 1, 1, 1)
    assert all(each.origins == ("n0",) for each in after.nodes)


def test_fused_conv_adds_its_fourth_input_before_the_activation() -> None:
    graph = build([fused("Relu", [], ["x", "w", "", "z"])], WEIGHTS, {**IMAGE, "z": (1, 6, 6, 5)})
    assert ops(rewritten(graph, expand_fused)) == ["Conv", "Add", "Relu"]
    assert ops(optimised(graph).graph) == ["Conv+Add+Relu"]


@pytest.mark.parametrize("alpha", [1.0, 0.125])
def test_fused_matmul_becomes_products_of_transposed_factors(alpha) -> None:
    first = node("FusedMatMul", ["x", "k"], ["y"], domain=MICROSOFT, alpha=alpha, transBatchA=1, transB=1)
    after = rewritten(build([first], (), {"x": (3, 2, 4), "k": (2, 5, 4)}), expand_fused)
    assert ops(after) == ["Transpose", "Transpose", "MatMul", *(["Mul"] if alpha != 1 else [])]


def test_fused_matmul_of_one_value_with_itself_transposes_one_of_them() -> None:
    first = node("FusedMatMul", ["x", "x"], ["y"], domain=MICROSOFT, transB=1)
    assert ops(rewritten(build([first], (), {"x": (3, 4)}), expand_fused)) == ["Transpose", "MatMul"]


NORMS = {"SkipLayerNormalization": ["g", "beta"], "SkipSimplifiedLayerNormalization": ["g"]}
HIDDEN = {"x": (2, 3, 4), "s": (2, 3, 4)}


def skip_norm(op, bias, outputs):
    names = ["x", "s", *NORMS[op], *(["b4"] if bias else [])]
    constants = [random("g", 4), random("beta", 4), random("b4", 4)]
    return build(
        [node(op, names, ["y", *outputs], domain=MICROSOFT, epsilon=1e-5)], constants, HIDDEN, ("y", *filter(None, outputs))
    )


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("outputs", [[], ["", "", "sum"]], ids=["", "sum"])
@pytest.mark.parametrize("op", NORMS)
def test_skip_normalizations_become_sums_and_normalizations(op, bias, outputs) -> None:
    normalization = "LayerNormalization" if op == "SkipLayerNormalization" else "RMSNormalization"
    after = rewritten(skip_norm(op, bias, outputs), expand_fused)
    assert ops(after) == ["Add"] * (1 + bias) + [normalization]


@pytest.mark.parametrize("op", NORMS)
def test_skip_normalizations_whose_mean_or_deviation_is_read_stay(op) -> None:
    for outputs in (["mean"], ["", "deviation"]):
        assert ops(rewritten(skip_norm(op, bias=False, outputs=outputs), expand_fused)) == [f"com.microsoft.{op}"]


def test_names_that_a_model_has_already_stay_its_own() -> None:
    nodes = [node("Neg", ["x"], ["y/Conv"], name="n1/Conv"), fused("Relu", [], ["y/Conv", "w", "b"])]
    after = rewritten(build(nodes, WEIGHTS, IMAGE), expand_fused)
    assert ops(after) == ["Neg", "Conv", "Relu"]


WRITTEN = [(op, case) for op in operators().values() if op.parts is not None for case in op.cases if case.raises is None]


@pytest.mark.parametrize(("op", "case"), WRITTEN, ids=[f"{op.name}-{case.id}" for op, case in WRITTEN])
def test_an_op_that_is_written_as_others_is_replaced_by_them(op: Op, case: Case) -> None:
    """Whole numbers are constants of the model here, as positions and lengths are that follow from shapes."""
    inputs = arrays(op, case)
    domain, _, name = op.name.rpartition(".")
    proto = one_node_model(name, inputs, case.outputs, case.attrs, domain)
    feeds = {f"x{i}": array for i, array in enumerate(inputs) if array is not None}
    for value in [key for key, array in feeds.items() if array.dtype.kind == "i"]:
        proto.graph.initializer.append(numpy_helper.from_array(feeds.pop(value), value))
    graph = read(proto).graph
    assert op.name not in [node.op for node in optimise(graph, bind(graph), native=True).graph.nodes]
    for made, wanted in zip(Session(proto, 1).run(feeds).values(), evaluate(op, inputs, case.attrs), strict=False):
        assert_close(made, wanted, 4 * op.tolerance_eps)
