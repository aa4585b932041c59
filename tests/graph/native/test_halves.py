"""Halves in native segments: moved and converted there, and computed in float32 by models that are widened."""

from __future__ import annotations

from collections.abc import Mapping

import ml_dtypes
import numpy as np
import onnx
import pytest

from graph.formats.registry import read
from graph.native.engine import Native
from graph.passes.optimise import optimise
from graph.run.executor import Executor
from graph.shapes import bind
from kernels.native.target.isa import Isa
from kernels.spec import Array
from tests.graph.halves import BF16, DTYPES, F16, conv_net, decoder, halves, in_half, in_single, singles
from tests.graph.interpreter import interpret
from tests.graph.oracle import FLOAT, ints, make, node, poison, port

EACH = pytest.mark.parametrize("code", [F16, BF16], ids=["f16", "bf16"])
MOVES = [
    [node("Transpose", ["x"], ["m"], perm=[2, 0, 1])],
    [node("Slice", ["x", "start", "stop", "axes", "step"], ["m"])],
    [node("Concat", ["x", "z", "x"], ["m"], axis=1)],
    [node("Reshape", ["x", "shape"], ["r"]), node("Transpose", ["r"], ["m"])],
    [node("Split", ["x"], ["m", "n"], axis=2, num_outputs=2)],
    [node("Unsqueeze", ["x", "step"], ["u"]), node("Flatten", ["u"], ["m"])],
]
PARAMETERS = [ints("start", 1), ints("stop", 5), ints("axes", 1), ints("step", 2), ints("shape", 3, 40)]


def run(proto: onnx.ModelProto, feeds: Mapping[str, Array], isa: Isa, *, widen: bool) -> dict[str, Array]:
    """Run a model on poisoned memory. Raises AssertionError where a node does not run natively."""
    graph = read(proto).graph
    made = optimise(graph, bind(graph, {name: np.shape(array) for name, array in feeds.items()}), native=widen)
    native = Native(isa, cache=None)
    assert not native.refusals(made.graph, made.specs)
    executor = Executor(made.graph, made.specs, threads=2, backend=native)
    poison(executor)
    return executor.run(feeds)


@EACH
@pytest.mark.parametrize("moves", MOVES, ids=lambda moves: moves[0].op_type)
def test_halves_are_moved_and_converted(moves, code, isa) -> None:
    back = [node("Cast", ["m"], ["f"], to=FLOAT), node("Cast", ["f"], ["h"], to=code)]
    inputs = [port(name, [3, 5, 8], code) for name in "xz"]
    proto = make([*moves, *back], {"m": code, "f": FLOAT, "h": code}, PARAMETERS, inputs, opset=18)
    feeds = {name: np.arange(120).reshape(3, 5, 8).astype(DTYPES[code]) / DTYPES[code].type(n) for n, name in enumerate("xz", 3)}
    wanted = interpret(read(proto).graph, feeds)
    for name, array in run(proto, feeds, isa, widen=False).items():
        assert array.dtype == wanted[name].dtype
        np.testing.assert_array_equal(array.astype(np.float64), wanted[name].astype(np.float64))


def test_other_ops_hold_no_halves(isa) -> None:
    proto = make([node("Relu", ["x"], ["y"])], {"y": F16}, inputs=[port("x", [4], F16)])
    with pytest.raises(AssertionError, match="a segment holds"):
        run(proto, {"x": np.ones(4, np.float16)}, isa, widen=False)


@EACH
@pytest.mark.parametrize("network", [conv_net, decoder])
def test_network_on_every_instruction_set(network, code, isa) -> None:
    proto, feeds = network()
    given = halves(feeds, code)
    wanted = run(in_single(proto, code), singles(given), isa, widen=False)
    for name, array in run(in_half(proto, code), given, isa, widen=True).items():
        assert array.dtype == DTYPES[code]
        scale = np.abs(wanted[name]).max()
        np.testing.assert_allclose(array.astype(float) / scale, wanted[name] / scale, 0, 1e-3 if code == F16 else 8e-3)


@EACH
def test_rounding_joins_the_kernel_before_it(code, isa) -> None:
    nodes = [node("MatMul", ["x", "w"], ["m"]), node("Cast", ["m"], ["h"], to=code), node("Cast", ["h"], ["y"], to=FLOAT)]
    weights = onnx.numpy_helper.from_array(np.linspace(-1, 1, 60, dtype=np.float32).reshape(6, 10), "w")
    proto = make(nodes, ["y"], [weights])
    graph = read(proto).graph
    made = optimise(graph, bind(graph), native=True)
    assert [fused.op for each in made.graph.nodes for fused in each.epilogue] == ["edgewise.RoundTo"]
    x = np.random.default_rng(0).standard_normal((2, 6)).astype(np.float32)
    y = run(proto, {"x": x}, isa, widen=True)["y"]
    np.testing.assert_array_equal(y, y.astype(DTYPES[code]).astype(np.float32))
    np.testing.assert_allclose(y, interpret(graph, {"x": x})["y"], rtol=float(ml_dtypes.finfo(DTYPES[code]).eps), atol=1e-6)
