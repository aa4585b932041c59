"""Half precisions are computed in float32: what becomes of types, casts, roundings, and of ops that have to stay."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from onnx import TensorProto

from graph.formats.registry import read
from graph.ir import Graph
from graph.passes.optimise import Optimised, optimise
from graph.passes.widen import widen_halves
from graph.shapes import bind, propagate
from kernels.half import is_half
from tests.graph.halves import BF16, DTYPES, F16, by_onnx_runtime, conv_net, decoder, halves, in_half
from tests.graph.interpreter import interpret
from tests.graph.oracle import BOOL, FLOAT, INT64, assert_agrees, body, constant, ints, make, node, port
from tests.graph.passes.checks import applied
from tests.graph.random_models import random_feeds, random_models

EACH = pytest.mark.parametrize("code", [F16, BF16], ids=["f16", "bf16"])
TOLERANCE = {F16: 4e-3, BF16: 4e-2}  # relative to the largest; of the rounding of each value between ops in numpy


def widened(proto: onnx.ModelProto, shapes=None) -> Optimised:
    graph = read(proto).graph
    return optimise(graph, bind(graph, shapes), native=True)


def ops(graph: Graph) -> list[str]:
    return [name for each in graph.nodes for name in (each.op, *(fused.op for fused in each.epilogue))]


def halves_between(made: Optimised) -> set[str]:
    """Return the halves that are no inputs or outputs of a graph."""
    ports = {port.name for port in (*made.graph.inputs, *made.graph.outputs)}
    return {name for name, spec in made.specs.items() if spec is not None and is_half(spec.dtype)} - ports


def small(nodes, code: int, outputs=None, constants=(), inputs=("x",), opset: int = 21) -> onnx.ModelProto:
    """Return a model over half-precision inputs of shape (2, 6)."""
    return make(nodes, outputs or {"y": code}, constants, [port(name, [2, 6], code) for name in inputs], opset)


def half(name: str, value, code: int) -> onnx.TensorProto:
    model = in_half(make([], [], [constant(name, value)]), code)
    return model.graph.initializer[0]


def same_bits(proto: onnx.ModelProto, feeds) -> list[str]:
    """Assert that a model computes the same bits widened and as it stands, and return the widened model's ops."""
    graph = read(proto).graph
    made = widened(proto, {name: np.shape(array) for name, array in feeds.items()})
    for name, array in interpret(graph, feeds).items():
        found = interpret(made.graph, feeds)[name]
        assert (found.dtype, found.shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(found.astype(np.float64), array.astype(np.float64), err_msg=name)
    return ops(made.graph)


def random(*shape: int, code: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(DTYPES[code])


@EACH
@pytest.mark.parametrize("network", [conv_net, decoder])
def test_network_is_float32_between_its_inputs_and_outputs(network, code) -> None:
    proto, feeds = network()
    halved = in_half(proto, code)
    made = widened(halved, {name: array.shape for name, array in feeds.items()})
    assert not any(is_half(array.dtype) for array in made.graph.constants.values())
    assert len(halves_between(made)) == (4 if network is decoder else 0)  # the keys and values that are appended
    wanted = interpret(read(halved).graph, halves(feeds, code))
    found = interpret(made.graph, halves(feeds, code))
    assert_agrees({k: v.astype(np.float32) for k, v in found.items()}, {k: v.astype(np.float32) for k, v in wanted.items()},
                  TOLERANCE[code])  # fmt: skip
    assert {name: array.dtype for name, array in found.items()} == {name: array.dtype for name, array in wanted.items()}


def test_float32_model_is_left_as_it_is() -> None:
    for network in (conv_net, decoder):
        proto, feeds = network()
        graph = read(proto).graph
        specs = propagate(graph, bind(graph, {name: array.shape for name, array in feeds.items()}))
        assert applied(graph, widen_halves, specs) is graph


@EACH
def test_widened_graph_has_nothing_left_to_widen(code) -> None:
    proto, feeds = decoder()
    made = widened(in_half(proto, code), {name: array.shape for name, array in feeds.items()})
    assert applied(made.graph, widen_halves, made.specs) is made.graph


@EACH
def test_constants_are_converted_exactly(code) -> None:
    values = np.arange(1 << 16, dtype=np.uint16).view(DTYPES[code])
    values = values[np.isfinite(values.astype(np.float32))]
    tensor = onnx.helper.make_tensor("c", code, values.shape, values.tobytes(), raw=True)
    proto = make([node("Mul", ["x", "c"], ["y"])], {"y": code}, [tensor], [port("x", [1], code)])
    (kept,) = widened(proto).graph.constants.values()
    assert kept.dtype == np.float32
    np.testing.assert_array_equal(kept, values.astype(np.float32))


# Casts in the file


def test_cast_to_half_overflows_to_infinity() -> None:
    nodes = [node("Cast", ["x"], ["h"], to=F16), node("Mul", ["h", "zero"], ["y"])]
    proto = make(nodes, {"y": F16}, [half("zero", 0.0, F16)], [port("x", [4])])
    x = np.array([65519, 65520, -1e10, 3], np.float32)
    assert "edgewise.RoundTo" in same_bits(proto, {"x": x})
    (y,) = interpret(widened(proto).graph, {"x": x}).values()
    np.testing.assert_array_equal(np.isnan(y), [False, True, True, False])


def test_large_numbers_in_constants_stay_what_they_are() -> None:
    nodes = [node("Cast", ["large"], ["inf"], to=F16), node("Add", ["x", "inf"], ["y"]), node("Add", ["x", "low"], ["z"])]
    proto = small(nodes, F16, {"y": F16, "z": F16}, [constant("large", 1e10), half("low", -65504.0, F16)])
    same_bits(proto, {"x": random(2, 6, code=F16)})


@pytest.mark.parametrize(
    ("before", "rounds"),
    [
        (["Softmax"], False),
        (["Cos", "Transpose"], False),
        (["Tanh", "Reshape"], False),
        (["Exp"], True),
        (["Softmax", "Exp"], True),
    ],
)
def test_cast_of_what_cannot_overflow_is_none(before, rounds) -> None:
    """As between a softmax in float32 and the product behind it."""
    nodes, value = [], "x"
    for n, op in enumerate(before):
        nodes.append(node(op, [value, "shape"] if op == "Reshape" else [value], [f"v{n}"]))
        value = f"v{n}"
    nodes += [node("Cast", [value], ["h"], to=F16), node("Mul", ["h", "h"], ["y"])]
    proto = make(nodes, {"y": F16}, [ints("shape", 12)], [port("x", [2, 6])])
    assert ("edgewise.RoundTo" in ops(widened(proto).graph)) == rounds


def test_bfloat16_reaches_as_far_as_float32_so_its_casts_vanish() -> None:
    nodes = [node("Exp", ["x"], ["e"]), node("Cast", ["e"], ["h"], to=BF16), node("Mul", ["h", "h"], ["m"]),
             node("Cast", ["m"], ["y"], to=FLOAT)]  # fmt: skip
    assert ops(widened(make(nodes, ["y"])).graph) == ["Exp", "Mul"]


@EACH
def test_rounding_between_float32_is_meant(code) -> None:
    nodes = [node("Sigmoid", ["x"], ["s"]), node("Cast", ["s"], ["h"], to=code), node("Cast", ["h"], ["f"], to=FLOAT),
             node("Add", ["f", "f"], ["y"])]  # fmt: skip
    proto = make(nodes, ["y"])
    assert "edgewise.RoundTo" in same_bits(proto, {"x": np.random.default_rng(0).standard_normal((2, 6)).astype(np.float32)})


@EACH
def test_cast_like_a_half(code) -> None:
    nodes = [node("CastLike", ["f", "x"], ["h"]), node("Add", ["h", "x"], ["y"]), node("CastLike", ["x", "f"], ["z"])]
    proto = make(nodes, {"y": code, "z": FLOAT}, inputs=[port("x", [2, 6], code), port("f", [2, 6])])
    f = random(2, 6, code=code, seed=1).astype(np.float32)
    same_bits(proto, {"x": random(2, 6, code=code), "f": f})
    assert not halves_between(widened(proto))


@EACH
@pytest.mark.parametrize("source", [BOOL, INT64, TensorProto.UINT8, TensorProto.UINT16])
def test_casts_of_integers_and_bools(code, source) -> None:
    nodes = [node("Cast", ["n"], ["h"], to=code), node("Neg", ["h"], ["y"])]
    proto = make(nodes, {"y": code}, inputs=[port("n", [3], source)])
    n = np.array([0, 1, 255 if source == TensorProto.UINT8 else 65535], onnx.helper.tensor_dtype_to_np_dtype(source))
    made = widened(proto)
    wanted, found = (interpret(graph, {"n": n})["y"] for graph in (read(proto).graph, made.graph))
    np.testing.assert_array_equal(found.astype(np.float32), wanted.astype(np.float32))
    assert not halves_between(made)


@EACH
def test_double_is_not_rounded_twice(code) -> None:
    tie = np.nextafter(1 + {F16: 2.0**-11, BF16: 2.0**-8}[code], 2)  # rounds up, but as a float32 it is a tie that rounds down
    nodes = [node("Cast", ["d"], ["h"], to=code), node("Neg", ["h"], ["y"])]
    proto = make(nodes, {"y": code}, inputs=[port("d", [1], TensorProto.DOUBLE)])
    graph = read(proto).graph
    made = interpret(widened(proto).graph, {"d": np.array([tie])})["y"]
    assert made == interpret(graph, {"d": np.array([tie])})["y"]


# What follows from the half that a value would be

JUMPS = {
    "cast": [node("Cast", ["s"], ["y"], to=INT64)],
    "less": [node("Less", ["s", "x"], ["y"])],
    "equal": [node("Equal", ["s", "s0"], ["y"])],
    "argmax": [node("ArgMax", ["s"], ["y"], axis=1)],
    "infinite": [node("Mul", ["s", "s"], ["q"]), node("IsInf", ["q"], ["y"])],
    "zero": [node("Cast", ["s"], ["y"], to=BOOL)],
}
LEAPS = {"floor": "Floor", "round": "Round", "ceil": "Ceil", "sign": "Sign", "hardmax": "Hardmax"}


def sums(code: int) -> dict[str, np.ndarray]:
    """Return two inputs whose sums need rounding: large ones, ties, and what is nothing beside the other."""
    x = np.array([[2048, 2049, 300, 0.1, 1, 1e4], [3, -3, 255.5, -0.2, 0.3, 1]], np.float32)
    z = np.array([[1, 3, 0.3, 0.2, 1e-4, 3e4], [1e-4, -1e-4, 1, 0.3, -0.3, 1]], np.float32)
    return {"x": x.astype(DTYPES[code]), "z": z.astype(DTYPES[code])}


@EACH
@pytest.mark.parametrize("name", JUMPS)
def test_integers_and_bools_are_those_of_rounded_values(code, name) -> None:
    nodes = [node("Add", ["x", "z"], ["s"]), *JUMPS[name]]
    types = {"cast": INT64, "argmax": INT64}
    same_bits(small(nodes, code, {"y": types.get(name, BOOL)}, [half("s0", 2050.0, code)], ("x", "z")), sums(code))


@EACH
@pytest.mark.parametrize("name", LEAPS)
def test_whole_numbers_are_those_of_rounded_values(code, name) -> None:
    nodes = [node("Add", ["x", "z"], ["s"]), node(LEAPS[name], ["s"], ["y"])]
    assert "edgewise.RoundTo" in same_bits(small(nodes, code, inputs=("x", "z")), sums(code))


@EACH
def test_top_values_and_their_places(code) -> None:
    nodes = [node("Add", ["x", "z"], ["s"]), node("TopK", ["s", "k"], ["y", "i"])]
    same_bits(small(nodes, code, {"y": code, "i": INT64}, [ints("k", 3)], ("x", "z")), sums(code))


@EACH
def test_what_is_a_half_already_is_not_rounded(code) -> None:
    nodes = [node("Transpose", ["x"], ["t"]), node("Relu", ["t"], ["r"]), node("Floor", ["r"], ["y"])]
    assert same_bits(small(nodes, code), {"x": random(2, 6, code=code)}).count("edgewise.RoundTo") == 0


# Ops that make halves of attributes, and ops that stay


@EACH
def test_types_in_attributes(code) -> None:
    value = onnx.helper.make_tensor("v", code, [1], np.array([0.1], DTYPES[code]).tobytes(), raw=True)
    nodes = [
        node("Shape", ["x"], ["shape"]),
        node("ConstantOfShape", ["dims"], ["filled"], value=value),
        node("Expand", ["filled", "shape"], ["wide"]),
        node("EyeLike", ["x"], ["eye"]),
        node("Add", ["wide", "eye"], ["sum"]),
        node("Add", ["x", "sum"], ["y"]),
        node("EyeLike", ["x"], ["e"], dtype=code),
        node("Mul", ["e", "x"], ["z"]),
    ]
    proto = small(nodes, code, {"y": code, "z": code}, [ints("dims", 1, 1)])
    made = widened(proto)
    assert not halves_between(made)
    feeds = {"x": random(2, 6, code=code)}
    wanted, found = interpret(read(proto).graph, feeds), interpret(made.graph, feeds)
    for name in wanted:
        np.testing.assert_allclose(found[name].astype(float), wanted[name].astype(float), rtol=2e-2)


@EACH
def test_random_numbers_stay_halves(code) -> None:
    nodes = [node("RandomNormalLike", ["x"], ["n"], seed=1.0), node("Sub", ["n", "n"], ["d"]), node("Add", ["x", "d"], ["y"])]
    made = widened(small(nodes, code))
    (drawn,) = [each.outputs[0] for each in made.graph.nodes if each.op == "RandomNormalLike"]
    assert made.specs[drawn].dtype == DTYPES[code]
    x = random(2, 6, code=code)
    np.testing.assert_array_equal(interpret(made.graph, {"x": x})["y"].astype(float), x.astype(float))


@EACH
def test_bits_are_those_of_halves(code) -> None:
    nodes = [node("Add", ["x", "z"], ["s"]), node("BitCast", ["s"], ["y"], to=TensorProto.UINT16)]
    assert "BitCast" in same_bits(small(nodes, code, {"y": TensorProto.UINT16}, inputs=("x", "z"), opset=26), sums(code))


@EACH
def test_quantisation_divides_in_the_precision_of_its_scale(code) -> None:
    nodes = [
        node("Add", ["x", "z"], ["s"]),
        node("QuantizeLinear", ["s", "scale", "zero"], ["q"]),
        node("DequantizeLinear", ["q", "scale", "zero"], ["d"]),
        node("Add", ["d", "x"], ["y"]),
    ]
    proto = small(nodes, code, {"q": TensorProto.INT8, "y": code},
                  [half("scale", 0.03, code), constant("zero", 3, np.int8)], ("x", "z"))  # fmt: skip
    same = make(nodes[:2], {"q": TensorProto.INT8}, list(proto.graph.initializer), list(proto.graph.input), opset=21)
    same_bits(same, sums(code))
    assert halves_between(widened(proto)) == {"s", "scale"}


@EACH
def test_bodies_read_and_make_halves(code) -> None:
    """Of an If whose branches read a value from outside, and of a Loop that carries one."""
    then = body([node("Relu", ["s"], ["t"])], [], [port("t", [2, 6], code)])
    other = body([node("Neg", ["s"], ["u"])], [], [port("u", [2, 6], code)])
    step = body([node("Add", ["c", "s"], ["next"]), node("Identity", ["on"], ["go"])],
                [port("i", [], INT64), port("on", [], BOOL), port("c", [2, 6], code)],
                [port("go", [], BOOL), port("next", [2, 6], code)])  # fmt: skip
    nodes = [
        node("Add", ["x", "z"], ["s"]),
        node("If", ["flag"], ["b"], then_branch=then, else_branch=other),
        node("Loop", ["trips", "", "b"], ["l"], body=step),
        node("Add", ["l", "x"], ["y"]),
    ]
    ports = [port("x", [2, 6], code), port("z", [2, 6], code), port("flag", [], BOOL)]
    proto = make(nodes, {"y": code}, [constant("trips", 3, np.int64)], ports)
    for flag in (True, False):
        same_bits(proto, {**sums(code), "flag": np.array(flag)})
    assert {"If", "Loop"} <= set(ops(widened(proto).graph))


@EACH
def test_values_of_run_time_shapes_stay_halves(code) -> None:
    nodes = [node("Add", ["x", "z"], ["s"]), node("NonZero", ["s"], ["at"]), node("Cast", ["at"], ["h"], to=code),
             node("Neg", ["h"], ["n"]), node("Cast", ["n"], ["y"], to=INT64)]  # fmt: skip
    same_bits(small(nodes, code, {"y": INT64}, inputs=("x", "z")), sums(code))


@EACH
def test_island_of_halves_in_a_float32_graph(code) -> None:
    nodes = [node("Softmax", ["x"], ["p"]), node("Cast", ["p"], ["h"], to=code), node("MatMul", ["h", "w"], ["m"]),
             node("Cast", ["m"], ["f"], to=FLOAT), node("Relu", ["f"], ["y"])]  # fmt: skip
    proto = make(nodes, ["y"], [half("w", np.ones((6, 5)), code)])
    assert ops(widened(proto).graph) == ["Softmax", "MatMul", "Relu"]


@EACH
def test_halves_that_pass_through_are_outputs(code) -> None:
    nodes = [node("Identity", ["x"], ["a"]), node("Transpose", ["x"], ["b"]), node("Relu", ["x"], ["c"])]
    same_bits(small(nodes, code, {"a": code, "b": code, "c": code}), {"x": random(2, 6, code=code)})


@EACH
@given(proto=random_models(), feeds=random_feeds())
@settings(max_examples=60, deadline=None)
def test_random_model_agrees_with_numpy(code, proto, feeds) -> None:
    halved, given_halves = in_half(proto, code), halves(feeds, code)
    graph = read(halved).graph
    wanted, found = interpret(graph, given_halves), interpret(widened(halved).graph, given_halves)
    for name, array in wanted.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        scale = np.abs(array.astype(float)).max(initial=1)
        np.testing.assert_allclose(found[name].astype(float) / scale, array.astype(float) / scale, rtol=0, atol=TOLERANCE[code])


@given(proto=random_models(), feeds=random_feeds())
@settings(max_examples=40, deadline=None)
def test_random_model_agrees_with_onnx_runtime(proto, feeds) -> None:
    halved, given_halves = in_half(proto, F16), halves(feeds, F16)
    wanted = by_onnx_runtime(halved, given_halves)
    if wanted is None:
        return
    found = interpret(widened(halved).graph, given_halves)
    for name, array in wanted.items():
        scale = np.abs(array.astype(float)).max(initial=1)
        np.testing.assert_allclose(found[name].astype(float) / scale, array.astype(float) / scale, rtol=0, atol=TOLERANCE[F16])
