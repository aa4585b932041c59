"""Every case of every operator with a native form, run natively and compared with the same op in numpy."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import pytest

from graph.ir import Graph, Node, Port
from graph.native.constants import ConstantCache
from graph.native.facts import Facts, known
from graph.native.partition import Part
from graph.native.rules.table import RULES, refusal
from graph.native.segment import LoweredSegment, Segment
from graph.run.bounds import RunBounds
from graph.shapes import propagate
from kernels.native.code.cache import CodeCache
from kernels.native.run.thread_pool import shared_thread_pool
from kernels.native.target.isa import Isa
from kernels.registry import Case, Op, evaluate
from kernels.size import PLAIN
from kernels.spec import FLOATS, Array, Spec
from tests.kernels.native.conftest import HOST_ISAS
from tests.kernels.ops.cases import arrays, assert_close, in_float64, valid_cases

REFUSED_ALL = r"is empty$|, a segment holds |^its shapes are only known at run time$"
BYTES = "its weights or zero points are not constants|do not fit into int8"
REFUSED = {  # what kernels cannot do, by op; any other case of an op that has a rule runs natively
    "Attention": "its scores are capped|it has a cache", "CumProd": "not a constant", "CumSum": "not a constant",
    "Conv": "not constants", "ConvTranspose": "not constants|need rank 3 or 4", "Resize": "need fp32",
    "Dropout": "its mask is used", "Gemm": "its addend is scaled", "LayerNormalization": "outputs other than the first",
    "ConvInteger": BYTES, "MatMulInteger": f"{BYTES}|zero points of their own|need a tensor of rows and a matrix",
    "GridSample": "need rank 4", "MatMul": "is a vector|need fp32", "MaxPool": "indices of the maxima|need fp32",
    "Mod": "no (rem|mod) of .float32", "com.microsoft.MatMulNBits": "are not constants|have not 4 bits",
    **dict.fromkeys(("LSTM", "GRU", "RNN"), "its weights are not constants"),
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear"), "no expression for inputs of"),
    "PRelu": "no prelu of .int32", "Pad": "mode (reflect|wrap|edge) allows", "Pow": "no expression for inputs of int",
}  # fmt: skip
REFUSED_REDUCTION = "it reduces nothing|need fp32"
NATIVE_EPS = 32  # of float results at least, relative to the largest: sums are taken in another order than numpy's
SAME_BITS = {"DequantizeLinear"}  # ops on floats that are defined to the last bit
GUARD_BYTES = 64
CASES = [parameter.values for parameter in valid_cases() if parameter.values[0].name in RULES]


def single(op: Op, case: Case, fed: Sequence[int]) -> tuple[Graph, dict[str, Spec]]:
    """Return a graph of one node, and the specs of its inputs. fed: positions of the inputs that are not constants."""
    given = arrays(op, case)
    inputs = tuple("" if array is None else f"x{n}" for n, array in enumerate(given))
    ports = [Port(f"x{n}", given[n].dtype, given[n].shape) for n in fed]
    outputs = tuple(f"y{n}" for n in range(case.outputs))
    node = Node("it", op.name, inputs, outputs, op.bind(case.attrs))
    constants = {f"x{n}": array for n, array in enumerate(given) if array is not None and n not in fed}
    specs = {port.name: Spec(given[n].shape, given[n].dtype) for n, port in zip(fed, ports, strict=True)}
    return Graph("g", tuple(ports), tuple(Port(name, np.dtype(np.float32), None) for name in outputs), (node,), constants), specs


def refused(op: Op, case: Case, fed: Sequence[int], isa: Isa = HOST_ISAS[0]) -> str | None:
    """Return why the case has no native form, or None."""
    graph, specs = single(op, case, fed)
    return refusal(graph.nodes[0], Facts(propagate(graph, specs), graph.constants, isa))


@pytest.fixture(scope="module")
def cache() -> CodeCache | None:
    """Return the code cache that all cases and processes of the session share, since many cases have the same kernels."""
    return CodeCache.default()


def compiled(op: Op, case: Case, fed: Sequence[int], isa: Isa, cache: CodeCache | None) -> tuple[Segment, list[Spec]]:
    """Return the case as a segment of its own, and the specs of its outputs."""
    graph, inputs = single(op, case, fed)
    specs, node = propagate(graph, inputs), graph.nodes[0]
    part = Part((node,), tuple(port.name for port in graph.inputs), node.outputs)
    facts = Facts(specs, graph.constants, isa, threads=2)
    segment = LoweredSegment(part, facts, {}, ConstantCache()).bind(PLAIN, shared_thread_pool(2), cache)
    return segment, [known(specs, name) for name in node.outputs]


def run(segment: Segment, inputs: Sequence[Array], specs: Sequence[Spec], threads: int) -> list[Array]:
    """Run the segment over poisoned memory with guards around its outputs, and return these."""
    outputs, memories = [], []
    for spec in specs:
        memory = np.full(spec.nbytes + 2 * GUARD_BYTES, 0xA5, np.uint8)
        memories.append(memory)
        outputs.append(memory[GUARD_BYTES : GUARD_BYTES + spec.nbytes].view(spec.dtype).reshape(spec.shape))
    arena = np.full(segment.arena_bytes + 64, 0xFF, np.uint8)
    arena = arena[-arena.ctypes.data % 64 :]
    segment.run(arena, inputs, outputs, threads, RunBounds().stop)
    for memory in memories:
        assert (memory[:GUARD_BYTES] == 0xA5).all()
        assert (memory[len(memory) - GUARD_BYTES :] == 0xA5).all()
    return outputs


def ways(op: Op, case: Case) -> list[tuple[int, ...]]:
    """Return the positions of inputs that are not constants: the first alone, or all of them."""
    given = tuple(n for n, array in enumerate(arrays(op, case)) if array is not None)
    return list(dict.fromkeys([given[:1], given]))


RUNS = [
    pytest.param(op, case, fed, id=f"{op.name}-{case.id}-{len(fed)}")
    for op, case in CASES
    for fed in ways(op, case)
    if refused(op, case, fed) is None
]


@pytest.mark.parametrize("isa", HOST_ISAS, ids=lambda isa: isa.name)
@pytest.mark.parametrize(("op", "case", "fed"), RUNS)
def test_case_runs_natively_as_in_numpy(op, case, fed, isa, cache):
    """Moves, integers and bools are exact, floats within a tolerance of float64; one thread and two give the same bits."""
    given = arrays(op, case)
    wanted = evaluate(op, given, case.attrs)
    same_bits = wanted[0].dtype not in FLOATS or op.name in SAME_BITS
    exact = wanted if same_bits else evaluate(op, in_float64(given), case.attrs)
    segment, specs = compiled(op, case, fed, isa, cache)
    one, two = (run(segment, [given[n] for n in fed], specs, threads) for threads in (1, 2))
    for y, again, expected, numpys in zip(one, two, exact, wanted, strict=False):
        assert y.dtype == numpys.dtype
        np.testing.assert_array_equal(y, again)
        assert_close(y, expected, 0 if same_bits else max(op.tolerance_eps, NATIVE_EPS))


@pytest.mark.parametrize(("op", "case"), CASES, ids=lambda each: getattr(each, "name", getattr(each, "id", None)))
def test_case_is_refused_for_a_reason_that_is_known(op, case):
    rest = REFUSED_REDUCTION if op.name.startswith("Reduce") else REFUSED.get(op.name, "nothing else")
    reasons = [reason for fed in ways(op, case) if (reason := refused(op, case, fed))]
    assert all(re.search(f"{REFUSED_ALL}|{rest}", reason) for reason in reasons), reasons


OF_SYMBOLS = {"Range"}  # its rule is for bounds that depend on symbols: tests/graph/test_any_shape.py


def test_every_rule_has_a_case_that_runs():
    assert set(RULES) - {parameter.values[0].name for parameter in RUNS} == OF_SYMBOLS
