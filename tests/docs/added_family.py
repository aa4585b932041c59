"""Tests of the native family that docs/ops.md adds by a diff. test_op_diff.py runs them in a copy with the diff applied."""

import numpy as np
import pytest

from graph.ir import Graph, Node, Port
from graph.native.constants import ConstantCache
from graph.native.engine import Native
from graph.native.facts import Facts
from graph.native.segment import LoweredSegment
from graph.passes.optimise import optimise
from kernels.native.run.thread_pool import shared_thread_pool
from kernels.registry import Case, evaluate, find
from kernels.size import PLAIN
from kernels.spec import Spec
from tests.graph.native.test_cases import compiled, refused, run
from tests.kernels.native.conftest import HOST_ISAS
from tests.kernels.ops.cases import arrays, assert_close, in_float64

F32 = np.dtype(np.float32)
CUMSUM = find("CumSum")
EPS = 32  # tolerance in epsilons of the largest sum: most of the hundreds of rounding errors cancel out
BOTH = {"exclusive": 1, "reverse": 1}

pytestmark = pytest.mark.parametrize("isa", HOST_ISAS, ids=lambda isa: isa.name)


@pytest.mark.parametrize(
    ("shape", "axis", "attrs"),
    [
        ((7,), 0, {}),
        ((1, 64), 0, {"exclusive": 1}),  # one addition, whole vectors
        ((2, 9, 5), 1, {}),  # less than a vector
        ((3, 4, 2, 37), -3, {"reverse": 1}),  # vectors and a tail; two dimensions side by side
        ((2, 3, 131), 1, BOTH),  # tiles and a tail
        ((300, 257), -1, {}),  # the last axis, in chunks of rows
        ((700, 61), 1, BOTH),
        ((2, 5, 20_003), 1, {}),  # chunks of the elements side by side
        ((500, 30, 17), 1, {"reverse": 1}),  # chunks of the dimensions before the axis
    ],
)
def test_sums_agree_with_numpy_and_float64(isa, shape, axis, attrs):
    case = Case("it", inputs=(shape, np.array(axis, np.int64)), attrs=attrs)
    given = [array for array in arrays(CUMSUM, case) if array is not None]
    segment, specs = compiled(CUMSUM, case, (0,), isa, None)
    (one,), (two,) = (run(segment, given[:1], specs, threads) for threads in (1, 2))
    np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(one, evaluate(CUMSUM, given, attrs)[0])  # the same order of additions
    assert_close(one, evaluate(CUMSUM, in_float64(given), attrs)[0], EPS)


def test_a_segment_holds_it_with_the_ops_around_it(isa):
    ops = (("Exp", ("x",), "e"), ("CumSum", ("e", "axis"), "s"), ("Sqrt", ("s",), "y"))
    nodes = tuple(Node(op, op, inputs, (output,), find(op).bind({})) for op, inputs, output in ops)
    x = np.random.default_rng(0).standard_normal((6, 10, 45), F32)
    graph = Graph("g", (Port("x", F32, x.shape),), (Port("y", F32, None),), nodes, {"axis": np.array(1, np.int64)})
    ready = optimise(graph, {"x": Spec(x.shape, F32)})
    _, parts = Native(isa, None).parts(ready.graph, ready.specs, {})
    (part,) = parts.values()
    assert [(node.op, [fused.op for fused in node.epilogue]) for node in part.nodes] == [("Exp", []), ("CumSum", ["Sqrt"])]
    facts = Facts(ready.specs, ready.graph.constants, isa, threads=2)
    segment = LoweredSegment(part, facts, {}, ConstantCache()).bind(PLAIN, shared_thread_pool(2), None)
    for threads in (1, 2):
        (y,) = run(segment, [x], [Spec(x.shape, F32)], threads)
        assert_close(y, np.sqrt(np.cumsum(np.exp(x.astype(np.float64)), 1)), EPS)


@pytest.mark.parametrize(
    ("x", "fed", "reason"),
    [
        ((4, 3), (0, 1), "its axis 'x1' is not a constant"),
        (np.ones(3, np.int32), (0,), "'x0' is i32[3], need fp32"),
        (np.ones(3), (0,), "'x0' is f64[3], need fp32"),
        ((0, 3), (0,), "'x0' is empty"),
    ],
    ids=["axis", "integers", "double", "empty"],
)
def test_a_refusal_says_why(isa, x, fed, reason):
    assert refused(CUMSUM, Case("it", inputs=(x, np.array(0, np.int64))), fed, isa) == reason
