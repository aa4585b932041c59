"""Products of quantised values become sums of integers, and what moves elements moves integers, with the same results."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from graph.formats.registry import read
from graph.ir import Graph
from graph.passes.dead import remove_dead
from graph.passes.integers import make_integers, move_integers
from graph.passes.optimise import optimise
from graph.passes.quantised import expand_quantised
from graph.shapes import bind, propagate
from kernels.spec import Array
from tests.graph.interpreter import interpret
from tests.graph.passes.checks import applied, ops

ON_TIES = 1e-4  # of all results may differ from the reference's, by one step: those that lie between two, where sums are rounded
EXAMPLES = 150


@dataclass
class Net:
    """A quantised network under construction, in QDQ form. Its input is x; `last` is the value that was made last."""

    shape: tuple[int, ...]
    kind: str = "uint8"
    zero: int = 120
    scale: float = 0.05
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, Array] = field(default_factory=dict)
    last: str = "x"
    seed: int = 0

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)

    def const(self, array: Any, dtype: Any) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = np.asarray(array, dtype)
        return name

    def add(self, op: str, *inputs: str, **attrs: Any) -> str:
        """Append a node; its first input is the last value."""
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, [self.last, *inputs], [name], name=name, **attrs))
        self.last = name
        return name

    def point(self, scale: float | None = None, zero: int | None = None) -> tuple[str, str]:
        """Return a scale and a zero point; those of x where none are given."""
        return self.const(self.scale if scale is None else scale, np.float32), self.const(
            self.zero if zero is None else zero, self.kind
        )

    def quantise(self, scale: float | None = None, zero: int | None = None) -> None:
        self.add("QuantizeLinear", *self.point(scale, zero))

    def dequantise(self, scale: float | None = None, zero: int | None = None) -> None:
        self.add("DequantizeLinear", *self.point(scale, zero))

    def dequantised(self, array: Array, scale: Any, zero: Any, axis: int = 0) -> str:
        """Append the dequantisation of constants and return its result."""
        held, self.last = self.last, self.const(array, array.dtype)
        inputs = [self.const(scale, np.float32)] + ([] if zero is None else [self.const(zero, array.dtype)])
        made = self.add("DequantizeLinear", *inputs, axis=axis)
        self.last = held
        return made

    def weights(
        self, *shape: int, kind: str = "int8", by_channel: bool = True, axis: int = 0, zero: int = 0
    ) -> tuple[str, Array]:
        """Append dequantised weights. Returns their value and scales."""
        limits = np.iinfo(kind)
        array = self.rng.integers(limits.min, limits.max, shape, endpoint=True).astype(kind)
        scales = self.rng.uniform(0.001, 0.004, (shape[axis],) if by_channel else ()).astype(np.float32)
        return self.dequantised(array, scales, np.full(scales.shape, zero), axis), scales

    def model(self, kind: str | None = None) -> onnx.ModelProto:
        """Return the model. kind: of the result, that of x if it is None."""
        ports = [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(np.dtype(k)), d) for n, k, d in (
            ("x", self.kind, self.shape), (self.last, kind or self.kind, None),
        )]  # fmt: skip
        held = [numpy_helper.from_array(array, name) for name, array in self.constants.items()]
        graph = helper.make_graph(self.nodes, "g", ports[:1], ports[1:], held)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)

    def feeds(self) -> dict[str, Array]:
        limits = np.iinfo(self.kind)
        return {"x": self.rng.integers(limits.min, limits.max, self.shape, endpoint=True).astype(self.kind)}


def rewritten(model: onnx.ModelProto) -> Graph:
    """Apply the passes in the order in which `optimise` is to run them."""
    graph = read(model).graph
    for rewrite in (partial(expand_quantised, limit_bytes=1 << 30), move_integers, make_integers, remove_dead):
        graph = applied(graph, rewrite)
    propagate(graph, bind(graph))
    return graph


def steps_off(net: Net, graph: Graph) -> Array:
    """Return by how many steps the results of a rewritten network differ from those of ONNX's reference, which fuses nothing."""
    feeds = net.feeds()
    (wanted,) = ReferenceEvaluator(net.model()).run(None, feeds)
    (made,) = interpret(graph, feeds).values()
    assert made.dtype == wanted.dtype
    return np.abs(made.astype(int) - wanted.astype(int))


def image(**of: Any) -> Net:
    net = Net((2, 4, 7, 6), **of)
    net.dequantise()
    return net


def test_a_convolution_is_a_sum_of_integers() -> None:
    net = image()
    w, scales = net.weights(6, 4, 3, 3)
    bias = net.dequantised(np.arange(-3000, 3000, 1000).astype(np.int32), 0.05 * scales, None)
    net.add("Conv", w, bias, pads=[1, 1, 1, 1], kernel_shape=[3, 3])
    net.quantise(0.3, 131)
    graph = rewritten(net.model())
    assert ops(graph) == ["ConvInteger", "Cast", "Mul", "Add", "QuantizeLinear"]
    sums = graph.nodes[0]
    assert sums.attrs["pads"] == (1, 1, 1, 1)
    assert len(sums.inputs) == 3  # no zero point of the weights
    assert graph.constants[sums.inputs[1]].dtype == np.int8
    assert steps_off(net, graph).max() <= 1


@pytest.mark.parametrize("kind", ["int8", "uint8"])
@pytest.mark.parametrize("zero", [128, 100])
def test_weights_become_signed_where_they_fit(kind, zero) -> None:
    """Unsigned weights around 128 always do; products of others stay."""
    net = image()
    shift = zero if kind == "uint8" else zero - 128
    w, _ = net.weights(6, 4, 3, 3, kind=kind, zero=shift)
    net.add("Conv", w)
    net.quantise(0.3)
    graph = rewritten(net.model())
    if zero == 128:
        assert graph.nodes[0].op == "ConvInteger"
        assert graph.constants[graph.nodes[0].inputs[1]].dtype == np.int8
        assert len(graph.nodes[0].inputs) == 3
    else:
        assert "Conv" in ops(graph)
    assert steps_off(net, graph).max() <= 1


def test_a_product_with_a_transposed_matrix_and_a_bias() -> None:
    net = Net((5, 24), kind="int8", zero=-7)
    net.dequantise()
    w, scales = net.weights(9, 24)
    bias = net.dequantised(np.arange(-900, 900, 200).astype(np.int32), 0.05 * scales, None)
    net.add("Gemm", w, bias, transB=1, alpha=0.5)
    net.quantise(0.2)
    graph = rewritten(net.model())
    assert ops(graph) == ["MatMulInteger", "Cast", "Mul", "Add", "QuantizeLinear"]
    assert graph.constants[graph.nodes[0].inputs[1]].shape == (24, 9)
    assert steps_off(net, graph).max() <= 1


def test_weights_that_are_transposed_for_a_product_by_a_node() -> None:
    net = Net((2, 5, 24))
    net.dequantise()
    w, _ = net.weights(9, 24)
    held, net.last = net.last, w
    turned = net.add("Transpose", perm=[1, 0])
    net.last = held
    net.add("MatMul", turned)
    net.quantise(0.2)
    graph = rewritten(net.model())
    assert ops(graph) == ["MatMulInteger", "Cast", "Mul", "QuantizeLinear"]
    assert steps_off(net, graph).max() <= 1


def test_weights_that_the_file_quantises_are_computed() -> None:
    net = image()
    held, net.last = net.last, net.const(net.rng.standard_normal((6, 4, 1, 1)), np.float32)
    point = net.const(0.02, np.float32), net.const(0, np.int8)
    net.add("QuantizeLinear", *point)
    w = net.add("DequantizeLinear", *point)
    net.last = held
    net.add("Conv", w)
    net.quantise(0.3)
    graph = rewritten(net.model())
    assert [op for op in ops(graph) if op.startswith("Conv")] == ["ConvInteger"]
    assert steps_off(net, graph).max() <= 1


def test_a_dequantised_value_that_others_read_stays_for_them() -> None:
    net = image()
    real = net.last
    w, _ = net.weights(4, 4, 1, 1)
    net.add("Conv", w)
    net.add("Add", real)
    net.quantise(0.3)
    graph = rewritten(net.model())
    assert sorted(ops(graph)) == ["Add", "Cast", "ConvInteger", "DequantizeLinear", "Mul", "QuantizeLinear"]
    assert steps_off(net, graph).max() <= 1


def stays(net: Net) -> None:
    """Assert that nothing becomes a sum of integers."""
    net.quantise(0.3)
    graph = rewritten(net.model())
    assert not {"ConvInteger", "MatMulInteger"} & set(ops(graph))
    assert steps_off(net, graph).max() <= 1


def test_sums_that_may_exceed_32_bits_stay() -> None:
    net = Net((1, 70_000))
    net.dequantise()
    held = net.last
    w = net.dequantised(np.full((70_000, 2), -128, np.int8), 1e-6, 0)
    net.last = held
    net.add("MatMul", w)
    stays(net)


def test_weights_much_larger_than_what_they_are_made_of_stay() -> None:
    """A file of a few bytes must not take memory before it runs."""
    net = Net((1, 4096))
    net.dequantise()
    held, net.last = net.last, net.const(3, np.int8)
    net.add("Expand", net.const((4096, 512), np.int64))
    w = net.add("DequantizeLinear", net.const(1e-3, np.float32))
    net.last = held
    net.add("MatMul", w)
    stays(net)


def test_scales_along_the_inner_axis_stay() -> None:
    net = Net((5, 24))
    net.dequantise()
    w, _ = net.weights(24, 9, axis=0)
    net.add("MatMul", w)
    stays(net)


def test_scales_of_the_tensor_by_channel_stay() -> None:
    net = Net((1, 3, 4, 4))
    net.add("DequantizeLinear", net.const([0.1, 0.2, 0.3], np.float32), net.const([1, 2, 3], np.uint8), axis=1)
    w, _ = net.weights(4, 3, 1, 1)
    net.add("Conv", w)
    stays(net)


def test_a_bias_that_only_a_run_knows_stays() -> None:
    net = Net((1, 4, 1, 1))
    net.dequantise()
    real, shape = net.last, net.const([4], np.int64)
    bias = net.add("Reshape", shape)
    net.last = real
    w, _ = net.weights(4, 4, 1, 1)
    net.add("Conv", w, bias)
    stays(net)


def test_a_transposed_left_factor_stays() -> None:
    net = Net((24, 5))
    net.dequantise()
    w, _ = net.weights(24, 9, axis=1)
    net.add("Gemm", w, transA=1)
    stays(net)


MOVES: dict[str, tuple[Any, ...]] = {
    "MaxPool": (lambda net: net.add("MaxPool", kernel_shape=[2, 3], strides=[2, 1], pads=[1, 1, 0, 1]), "MaxPool"),
    "Reshape": (lambda net: net.add("Reshape", net.const([0, -1], np.int64)), "Reshape"),
    "Transpose": (lambda net: net.add("Transpose", perm=[0, 2, 3, 1]), "Transpose"),
    "Flatten": (lambda net: net.add("Flatten"), "Flatten"),
    "Unsqueeze": (lambda net: net.add("Unsqueeze", net.const([0], np.int64)), "Unsqueeze"),
    "Slice": (
        lambda net: net.add("Slice", net.const([1], np.int64), net.const([3], np.int64), net.const([2], np.int64)),
        "Slice",
    ),
    "Concat": (lambda net: net.add("Concat", net.last, axis=1), "Concat"),
    "Relu": (lambda net: net.add("Relu"), "Max"),
}


@pytest.mark.parametrize("name", MOVES)
@pytest.mark.parametrize(("kind", "zero"), [("uint8", 120), ("int8", -3), ("int8", -128)])
def test_what_moves_elements_moves_integers(name, kind, zero) -> None:
    """Between a pair of equal meaning, the op on integers is all that is left."""
    make, op = MOVES[name]
    net = image(kind=kind, zero=zero)
    make(net)
    net.quantise()
    graph = rewritten(net.model())
    changes_nothing = name == "Relu" and zero == np.iinfo(kind).min  # but something must give the result its name
    assert ops(graph) == (["DequantizeLinear", "QuantizeLinear"] if changes_nothing else [op])
    assert not steps_off(net, graph).any()


def test_several_moves_up_to_a_product() -> None:
    net = image()
    for name in ("Relu", "MaxPool", "Transpose", "Flatten"):
        MOVES[name][0](net)
    w, _ = net.weights(96, 5, axis=1)
    net.add("MatMul", w)
    net.quantise(0.4)
    graph = rewritten(net.model())
    assert ops(graph) == ["Max", "MaxPool", "Transpose", "Flatten", "MatMulInteger", "Cast", "Mul", "QuantizeLinear"]
    assert steps_off(net, graph).max() <= 1


@pytest.mark.parametrize(("scale", "zero"), [(0.04, 120), (0.05, 121)])
def test_a_pair_of_different_meaning_stays(scale, zero) -> None:
    net = image()
    net.quantise(scale, zero)
    graph = rewritten(net.model())
    assert ops(graph) == ["DequantizeLinear", "QuantizeLinear"]
    assert not steps_off(net, graph).any()


def test_what_rounds_stays() -> None:
    """QuantizeLinear before DequantizeLinear rounds: it is no pair to remove, whatever it means."""
    net = image()
    net.add("Sigmoid")
    for _ in range(3):
        net.quantise(0.004, 0)
        net.dequantise(0.004, 0)
    net.quantise(0.02, 3)
    graph = rewritten(net.model())
    assert ops(graph) == ["DequantizeLinear", "Sigmoid", "QuantizeLinear", "DequantizeLinear", "QuantizeLinear"]
    assert not steps_off(net, graph).any()


def test_a_join_of_different_meanings_stays() -> None:
    net = image()
    real, net.last = net.last, "x"
    net.dequantise(0.07)
    net.add("Concat", real, axis=1)
    net.quantise()
    graph = rewritten(net.model())
    assert "Concat" in ops(graph)
    assert ops(graph).count("DequantizeLinear") == 2
    assert not steps_off(net, graph).any()


def test_the_maximum_of_a_window_that_may_hold_nothing_stays() -> None:
    net = Net((1, 2, 1, 4))
    net.dequantise()
    net.add("MaxPool", kernel_shape=[2, 1], dilations=[2, 1], pads=[1, 0, 1, 0])
    net.quantise()
    assert ops(rewritten(net.model())) == ["DequantizeLinear", "MaxPool", "QuantizeLinear"]


def test_a_relu_before_integers_of_which_none_is_negative_is_dropped() -> None:
    net = image()
    net.add("Sin")
    net.add("Relu")
    net.quantise(0.004, 0)
    graph = rewritten(net.model())
    assert ops(graph) == ["DequantizeLinear", "Sin", "QuantizeLinear"]
    net = image()
    net.add("Sin")
    net.add("Relu")
    net.quantise(0.004, 1)
    assert ops(rewritten(net.model())) == ["DequantizeLinear", "Sin", "Relu", "QuantizeLinear"]


def test_nothing_is_found_twice() -> None:
    net = image()
    MOVES["MaxPool"][0](net)
    w, _ = net.weights(6, 4, 1, 1)
    net.add("Conv", w)
    net.quantise(0.3)
    graph = rewritten(net.model())
    assert applied(graph, move_integers) is graph
    assert applied(graph, make_integers) is graph


@st.composite
def networks(draw: st.DrawFn) -> Net:
    """Draw moves of a quantised tensor, then a product or a convolution of any weights, an activation, and the quantisation."""
    kind = draw(st.sampled_from(["uint8", "int8"]))
    limits = np.iinfo(kind)
    zero = draw(st.sampled_from([limits.min, 0, limits.max]) | st.integers(limits.min, limits.max))
    net = Net((2, 4, 6, 7), kind, zero, draw(st.sampled_from([0.05, 0.0371, 2.0**-6])), seed=draw(st.integers(0, 1 << 30)))
    net.dequantise()
    held = draw(st.sampled_from(["int8", "uint8"]))
    of: dict[str, Any] = {"kind": held, "by_channel": draw(st.booleans())}
    middle = 128 if held == "uint8" else 0  # with others the weights are no int8 without a zero point, and stay
    of["zero"] = draw(st.sampled_from([middle] * 9 + [middle - 20]))
    for name in draw(st.lists(st.sampled_from(["Relu", "MaxPool", "Concat", "Slice"]), max_size=2)):
        MOVES[name][0](net)
    if draw(st.booleans()):
        channels = 4 << [node.op_type for node in net.nodes].count("Concat")
        group = draw(st.sampled_from([1, 2, channels]))
        w, scales = net.weights(channels * 2, channels // group, draw(st.integers(1, 2)), 1, **of)
        bias = [net.dequantised(net.rng.integers(-900, 900, channels * 2).astype(np.int32), net.scale * scales, None)]
        net.add("Conv", w, *draw(st.sampled_from([[], bias])), group=group, pads=[1, 0, 0, 2])
    else:
        net.add("Flatten")
        (rows,) = interpret(read(net.model("float32")).graph, net.feeds()).values()
        inner = rows.shape[1]
        transposed = draw(st.booleans())
        matrix = (5, inner) if transposed else (inner, 5)
        w, _ = net.weights(*matrix, axis=0 if transposed else 1, **of)
        if transposed:
            net.add("Gemm", w, transB=1)
        else:
            net.add("MatMul", w)
    if draw(st.booleans()):
        net.add("Relu")
    net.quantise(draw(st.sampled_from([0.3, 0.02])), draw(st.sampled_from([limits.min, 3])))
    return net


def test_random_networks_compute_the_same_but_for_ties() -> None:
    """Against ONNX's reference, which computes in floats op by op: of all results, few are one step off, none is more."""
    counted = {"all": 0, "off": 0, "integer": 0}

    @settings(max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(networks())
    def check(net: Net) -> None:
        graph = rewritten(net.model())
        off = steps_off(net, graph)
        assert off.max(initial=0) <= 1
        counted["all"] += off.size
        counted["off"] += int(off.sum())
        counted["integer"] += bool({"ConvInteger", "MatMulInteger"} & set(ops(graph)))

    check()
    assert counted["off"] <= ON_TIES * counted["all"], counted
    assert counted["integer"] > EXAMPLES // 2


def test_the_rest_of_the_passes_takes_what_is_made() -> None:
    net = image()
    w, _ = net.weights(8, 4, 3, 3)
    net.add("Conv", w)
    net.add("Relu")
    net.quantise(0.3, 0)
    net.dequantise(0.3, 0)
    MOVES["MaxPool"][0](net)
    net.quantise(0.3, 0)
    graph = rewritten(net.model())
    after = optimise(graph, bind(graph)).graph
    assert [op for op in ops(after) if op.startswith(("ConvInteger", "MaxPool"))]
    assert steps_off(net, after).max() <= 1
