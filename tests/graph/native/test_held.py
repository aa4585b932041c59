"""Products of bfloat16 inside of graphs: which values lie in memory as bfloat16, and how near results are to those of float32."""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import pytest
from onnx import NodeProto

from graph.formats.registry import read
from graph.ir import Graph, Specs
from graph.native.engine import Native
from graph.native.facts import Facts
from graph.native.held import held_values
from graph.native.segment import complete_choices
from graph.passes.optimise import optimise
from graph.run.executor import Executor
from graph.shapes import bind
from kernels.native.code.cache import CodeCache
from kernels.native.target.isa import Isa
from kernels.precision import Precision
from kernels.spec import BFLOAT16, Array
from tests.graph.native.nets import weights
from tests.graph.native.random_graphs import random_graph
from tests.graph.native.test_random_graphs import SEEDS, in_float64, shown
from tests.graph.oracle import assert_agrees, make, node, poison, port
from tests.kernels.native.conftest import HOST_ISAS

PREFERRED: Sequence[Precision] = ("bf16", "fp32")
JUMPS = {"Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Equal", "Sign", "Floor", "Ceil", "Round"}
TOLERANCE = 0.03  # of the largest number, of a few layers
ISAS = pytest.mark.parametrize("isa", HOST_ISAS, ids=lambda isa: isa.name)


def ready(nodes: Sequence[NodeProto], constants: Sequence[onnx.TensorProto], *shape: int) -> tuple[Graph, Specs]:
    proto = make(nodes, ["y"], constants, [port("x", list(shape))], opset=20)
    graph = read(proto).graph
    made = optimise(graph, bind(graph, {"x": shape}), native=True)
    return made.graph, made.specs


def held(isa: Isa, graph: Graph, specs: Specs) -> set[str]:
    """Return the values of a graph that is one segment which lie as bfloat16."""
    native = Native(isa, cache=None, precisions=PREFERRED)
    (part,) = native.parts(graph, specs, {})[1].values()
    facts = Facts(specs, graph.constants, isa, precisions=PREFERRED)
    found = held_values(part, facts, complete_choices(part, facts, {}))
    assert set(found.values()) <= {BFLOAT16}
    return set(found)


def compare(isa: Isa, graph: Graph, specs: Specs, feeds: Mapping[str, Array], tolerance: float = TOLERANCE) -> None:
    """Run in bfloat16 over poisoned memory, on one thread and on two, and compare with float64."""
    native = Native(isa, cache=CodeCache.default(), precisions=PREFERRED)
    one, two = (Executor(graph, specs, {}, threads=threads, backend=native) for threads in (1, 2))
    for executor in (one, two):
        poison(executor)
    first = one.run(feeds)
    ops = {each.op for each in graph.nodes} | {fused.op for each in graph.nodes for fused in each.epilogue}
    if JUMPS.isdisjoint(ops):
        assert_agrees(first, in_float64(graph, feeds), tolerance)
    else:
        assert_mostly_agrees(first, in_float64(graph, feeds), tolerance)
    assert_agrees(two.run(feeds), first, tolerance=0)


def assert_mostly_agrees(found: Mapping[str, Array], wanted: Mapping[str, Array], tolerance: float) -> None:
    """Assert what `assert_agrees` does of 97 % of the elements: others are near a jump."""
    for name, array in wanted.items():
        scale = np.abs(array).max(initial=1e-3)
        assert (np.abs(found[name] / scale - array / scale) <= tolerance).mean() >= 0.97, name


def feed(*shape: int) -> dict[str, Array]:
    return {"x": np.random.default_rng(3).standard_normal(shape).astype(np.float32)}


@ISAS
def test_values_between_products_lie_as_bfloat16(isa):
    nodes = [
        node("Conv", ["x", "w0"], ["a"], pads=[1, 1, 1, 1]),
        node("Conv", ["a", "w1"], ["b"], group=32),
        node("Relu", ["b"], ["c"]),
        node("MaxPool", ["c"], ["d"], kernel_shape=[2, 2]),
        node("Conv", ["d", "w2"], ["e"]),
        node("Add", ["e", "d"], ["f"]),
        node("Conv", ["f", "w2"], ["g"]),
        node("Sigmoid", ["g"], ["y"]),
    ]
    constants = [weights("w0", 32, 3, 3, 3), weights("w1", 32, 1, 1, 1), weights("w2", 32, 32, 1, 1)]
    graph, specs = ready(nodes, constants, 2, 3, 12, 12)
    produced = {name for each in graph.nodes for name in each.writes()}
    assert held(isa, graph, specs) == produced - {"y"}
    compare(isa, graph, specs, feed(2, 3, 12, 12))


@ISAS
def test_a_value_that_a_float32_kernel_reads_lies_as_float32(isa):
    nodes = [
        node("Conv", ["x", "w"], ["a"]),
        node("Softmax", ["a"], ["b"], axis=1),
        node("Conv", ["a", "w"], ["c"]),
        node("Add", ["b", "c"], ["y"]),
    ]
    graph, specs = ready(nodes, [weights("w", 32, 32, 1, 1)], 1, 32, 5, 5)
    assert "a" not in held(isa, graph, specs)
    compare(isa, graph, specs, feed(1, 32, 5, 5))


@ISAS
@pytest.mark.parametrize("inputs", [1, 2, 3, 5, 33])
def test_what_lies_behind_the_last_channel_is_not_multiplied(isa, inputs):
    """Poisoned memory holds NaN there, and NaN times a weight of 0 is NaN."""
    nodes = [
        node("Conv", ["x", "w0"], ["a"]),
        node("Conv", ["a", "w1"], ["b"], pads=[1, 1, 1, 1]),
        node("Relu", ["b"], ["c"]),
        node("Conv", ["c", "w2"], ["y"]),
    ]
    constants = [weights("w0", inputs, inputs, 1, 1), weights("w1", inputs, inputs, 3, 3), weights("w2", 4, inputs, 1, 1)]
    graph, specs = ready(nodes, constants, 2, inputs, 6, 6)
    compare(isa, graph, specs, feed(2, inputs, 6, 6))


@ISAS
@pytest.mark.parametrize("inner", [1, 6, 7, 33])
def test_products_of_rows(isa, inner):
    nodes = [
        node("MatMul", ["x", "w0"], ["a"]),
        node("Gelu", ["a"], ["b"]),
        node("MatMul", ["b", "w1"], ["c"]),
        node("Add", ["c", "x"], ["y"]),
    ]
    graph, specs = ready(nodes, [weights("w0", inner, 24), weights("w1", 24, inner)], 2, 5, inner)
    assert len(held(isa, graph, specs)) == 1
    compare(isa, graph, specs, feed(2, 5, inner))


@ISAS
def test_concatenations_and_views_lie_as_their_inputs(isa):
    nodes = [
        node("Conv", ["x", "w"], ["a"]),
        node("Relu", ["a"], ["b"]),
        node("Conv", ["x", "v"], ["c"]),
        node("Concat", ["b", "c"], ["d"], axis=1),
        node("Slice", ["d", "starts", "ends", "axes"], ["e"]),
        node("Conv", ["e", "w"], ["y"]),
    ]
    numbers = {"starts": [16], "ends": [48], "axes": [1]}
    constants = [weights("w", 32, 32, 1, 1), weights("v", 32, 32, 3, 3)]
    constants += [onnx.numpy_helper.from_array(np.array(value, np.int64), name) for name, value in numbers.items()]
    nodes[2].attribute.append(onnx.helper.make_attribute("pads", [1, 1, 1, 1]))
    graph, specs = ready(nodes, constants, 1, 32, 7, 7)
    assert {"d", "e"} <= held(isa, graph, specs)
    compare(isa, graph, specs, feed(1, 32, 7, 7))


@ISAS
@pytest.mark.parametrize("seed", SEEDS)
def test_random_graphs(isa, seed):
    made = random_graph(seed, isa.lanes)
    with shown(made):
        graph, feeds = read(made.proto).graph, dict(made.feeds)
        optimised = optimise(graph, bind(graph, {name: array.shape for name, array in feeds.items()}), native=True)
        compare(isa, optimised.graph, optimised.specs, feeds, 0.05)
