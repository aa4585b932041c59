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
from tests.kernels.ops.cases import arrays, assert_close

F32 = np.dtype(np.float32)
TRILU = find("Trilu")
EPS = 32  # tolerance in epsilons of the largest result

pytestmark = pytest.mark.parametrize("isa", HOST_ISAS, ids=lambda isa: isa.name)


@pytest.mark.parametrize("upper", [0, 1])
@pytest.mark.parametrize(
    ("shape", "diagonal"),
    [
        ((7, 7), 0),
        ((1, 64), 3),  # one row, whole vectors
        ((2, 9, 5), -2),  # less than a vector
        ((3, 4, 21, 37), 5),  # vectors and a tail; two dimensions side by side
        ((600, 131), -300),  # chunks of rows
        ((5, 6), 2**40),  # beyond the corners
        ((5, 6), -(2**40)),
    ],
)
def test_triangles_are_those_of_numpy(isa, shape, diagonal, upper):
    case = Case("it", inputs=(shape, np.array(diagonal)), attrs={"upper": upper})
    given = [array for array in arrays(TRILU, case) if array is not None]
    segment, specs = compiled(TRILU, case, (0,), isa, None)
    (one,), (two,) = (run(segment, given[:1], specs, threads) for threads in (1, 2))
    np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(one, evaluate(TRILU, given, case.attrs)[0])


def test_a_segment_holds_it_with_the_ops_around_it(isa):
    ops = (("Exp", ("x",), "e"), ("Trilu", ("e",), "s"), ("Sqrt", ("s",), "y"))
    nodes = tuple(Node(op, op, inputs, (output,), find(op).bind({})) for op, inputs, output in ops)
    x = np.random.default_rng(0).standard_normal((6, 10, 45), F32)
    graph = Graph("g", (Port("x", F32, x.shape),), (Port("y", F32, None),), nodes, {})
    ready = optimise(graph, {"x": Spec(x.shape, F32)})
    _, parts = Native(isa, None).parts(ready.graph, ready.specs, {})
    (part,) = parts.values()
    assert [(node.op, [fused.op for fused in node.epilogue]) for node in part.nodes] == [("Exp", []), ("Trilu", ["Sqrt"])]
    facts = Facts(ready.specs, ready.graph.constants, isa, threads=2)
    segment = LoweredSegment(part, facts, {}, ConstantCache()).bind(PLAIN, shared_thread_pool(2), None)
    for threads in (1, 2):
        (y,) = run(segment, [x], [Spec(x.shape, F32)], threads)
        assert_close(y, np.sqrt(np.triu(np.exp(x.astype(np.float64)))), EPS)


@pytest.mark.parametrize(
    ("x", "fed", "reason"),
    [((4, 3), (0, 1), "its diagonal 'x1' is not a constant"), ((0, 3), (0,), "'x0' is empty")],
    ids=["diagonal", "empty"],
)
def test_a_refusal_says_why(isa, x, fed, reason):
    assert refused(TRILU, Case("it", inputs=(x, np.array(0))), fed, isa) == reason
