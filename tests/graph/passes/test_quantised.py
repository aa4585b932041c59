"""Quantised ops become DequantizeLinear, an op on real numbers and QuantizeLinear, which compute the same."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest

from graph.ir import Graph
from graph.passes.constants import SMALL_RESULT_BYTES
from graph.passes.quantised import expand_quantised
from graph.shapes import bind, propagate
from kernels.ops import integer, qgemm, qlinear, quantize, weight_blocks
from kernels.registry import Case, Op, find
from kernels.spec import Array
from tests.graph.interpreter import interpret
from tests.graph.native.test_cases import single
from tests.graph.passes.checks import applied, ops
from tests.kernels.ops.cases import arrays

MICROSOFT = "com.microsoft."
expand = partial(expand_quantised, limit_bytes=1 << 30)
EXPANDED = [
    *qlinear.OPS,
    qgemm.QGEMM,
    *(op for op in integer.OPS if op.name.startswith("QLinear")),
    *(op for op in quantize.OPS if op.name.startswith((MICROSOFT, "Dynamic"))),
]
OF_SUMS = ("QLinearConv", "QLinearMatMul", f"{MICROSOFT}QGemm")  # exact sums become sums of float32


def cases_of(each: list[Op]) -> list[Any]:
    return [
        pytest.param(op, case, id=f"{op.name}-{case.id}")
        for op in each
        for case in op.cases
        if case.raises is None and all(a is None or a.size for a in arrays(op, case))
    ]


def expanded(op: Op, case: Case, fed: list[int]) -> tuple[Graph, list[Array], list[Array]]:
    """Expand a graph of one node. Returns it, and what both make of the case. fed: positions of inputs that are not constants."""
    given = arrays(op, case)
    graph, specs = single(op, case, fed)
    after = applied(graph, expand, propagate(graph, specs))
    feeds = {f"x{n}": array for n, array in enumerate(given) if n in fed and array is not None}
    made = [list(interpret(each, feeds).values()) for each in (after, graph)]
    return after, made[0], made[1]


@pytest.mark.parametrize(("op", "case"), cases_of(EXPANDED))
def test_expansion_computes_the_same(op: Op, case: Case) -> None:
    """Bit by bit, but for sums that float32 rounds: these may be one step off where they lie between two."""
    tensors = [n for n, a in enumerate(arrays(op, case)) if a is not None and a.ndim > 1 and a.dtype != np.float32]
    after, made, wanted = expanded(op, case, tensors[:1] or [0])
    assert op.name not in ops(after)
    for y, expected in zip(made, wanted, strict=True):
        assert y.dtype == expected.dtype
        if y.dtype == np.float32 and op.name in OF_SUMS:
            np.testing.assert_allclose(y, expected, rtol=1e-5)
        elif op.name in OF_SUMS:
            assert np.abs(y.astype(int) - expected.astype(int)).max() <= 1
        else:
            np.testing.assert_array_equal(y, expected)


def test_channels_that_come_last_are_moved_and_moved_back() -> None:
    op = find(f"{MICROSOFT}QLinearGlobalAveragePool")
    after, _, _ = expanded(op, next(case for case in op.cases if case.id == "channels_last"), [0])
    assert ops(after) == ["DequantizeLinear", "Transpose", "GlobalAveragePool", "Transpose", "QuantizeLinear"]


def test_a_bias_is_in_steps_of_both_scales() -> None:
    op = find("QLinearConv")
    after, _, _ = expanded(op, next(case for case in op.cases if case.id == "bias"), [0])
    assert ops(after) == ["DequantizeLinear"] * 3 + ["Conv", "QuantizeLinear"]
    conv = after.nodes[3]
    bias = next(node for node in after.nodes if node.outputs == (conv.inputs[2],))
    np.testing.assert_allclose(after.constants[bias.inputs[1]], 0.02 * 0.01, rtol=1e-6)


@pytest.mark.parametrize("fed", [[0, 1], [0, 4]])
def test_a_bias_stays_where_a_scale_is_computed(fed) -> None:
    """The scale of the bias would be a product of scales that only a run knows."""
    op = find("QLinearConv")
    after, _, _ = expanded(op, next(case for case in op.cases if case.id == "bias"), fed)
    assert ops(after) == ["QLinearConv"]


@pytest.mark.parametrize("position", [1, 2, 4, 5, 7])
@pytest.mark.parametrize("name", ["QLinearConv", "QLinearMatMul", f"{MICROSOFT}QGemm"])
def test_a_scale_or_zero_point_of_several_axes_stays(name, position) -> None:
    """These ops take any shape of one element, DequantizeLinear takes no axes of size 1."""
    op = find(name)
    inputs = list(arrays(op, next(case for case in op.cases if case.id == "plain")))
    given = inputs[position]
    assert given is not None
    inputs[position] = given.reshape(1, 1)
    after, (y,), (wanted,) = expanded(op, Case("it", inputs=tuple(inputs)), [0])
    assert ops(after) == [name] or given.size != 1
    np.testing.assert_array_equal(y, wanted)


def test_a_zero_point_of_very_many_channels_is_not_repeated() -> None:
    """The scales may be computed, and take no memory in the file."""
    w = np.ones((SMALL_RESULT_BYTES + 1, 1, 1, 1), np.uint8)
    scale, zero = np.array(0.1, np.float32), np.array(3, np.uint8)
    case = Case("it", inputs=(w[:1], scale, zero, w, np.full(len(w), 0.1, np.float32), zero, scale, zero))
    after, _, _ = expanded(find("QLinearConv"), case, [0, 3, 4])
    assert ops(after) == ["QLinearConv"]


def test_scales_by_row_stay() -> None:
    rows = np.array([0.1, 0.2], np.float32), np.array([3, 4], np.uint8)
    b = (np.arange(6, dtype=np.uint8).reshape(3, 2), np.array(0.1, np.float32), np.array(0, np.uint8))
    case = Case("rows", inputs=(np.arange(6, dtype=np.uint8).reshape(2, 3), *rows, *b, np.array(0.1, np.float32), b[2]))
    after, _, _ = expanded(find("QLinearMatMul"), case, [0])
    assert ops(after) == ["QLinearMatMul"]


@pytest.mark.parametrize("unread", [(), ("y1", "y2"), ("y0",)])
def test_outputs_of_a_dynamic_quantisation_that_nobody_reads(unread) -> None:
    op = find("DynamicQuantizeLinear")
    graph, specs = single(op, Case("it", inputs=((3, 4),), outputs=3), [0])
    node = graph.nodes[0]
    names = tuple("" if name in unread else name for name in node.outputs)
    kept = tuple(port for port in graph.outputs if port.name not in unread)
    graph = Graph("g", graph.inputs, kept, (type(node)("it", node.op, node.inputs, names, node.attrs),), {})
    feeds = {"x0": np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)}
    after = applied(graph, expand, propagate(graph, specs))
    made, wanted = interpret(after, feeds), interpret(graph, feeds)
    assert list(made) == list(wanted)
    for name, y in wanted.items():
        np.testing.assert_array_equal(made[name], y)


@pytest.mark.parametrize("x", [[0, 0], [3, 5], [-3, -5], [0, -1e-3, 250], [np.inf, 1], [1e38, -3e38]])
def test_ranges_of_dynamic_quantisation(x) -> None:
    case = Case("it", inputs=(np.array(x, np.float32),), outputs=3)
    _, made, wanted = expanded(find("DynamicQuantizeLinear"), case, [0])
    for y, expected in zip(made, wanted, strict=True):
        np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize("zero", [True, False])
@pytest.mark.parametrize("axis", [0, 1, -2])
@pytest.mark.parametrize("name", ["QuantizeLinear", "DequantizeLinear"])
def test_scales_along_an_axis_become_arithmetic(name, axis, zero) -> None:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((3, 3, 5)).astype(np.float32) if name == "QuantizeLinear" else rng.integers(-128, 128, (3, 3, 5))
    point = (np.array([0, 7, -3], np.int8),) if zero else ()
    given = (x if x.dtype == np.float32 else x.astype(np.int8), np.array([0.1, 0.02, 0.4], np.float32), *point)
    after, made, wanted = expanded(find(name), Case("it", inputs=given, attrs={"axis": axis}), [0])
    assert name not in ops(after)
    np.testing.assert_array_equal(made[0], wanted[0])


def test_scales_along_the_last_axis_and_of_blocks_stay() -> None:
    for op, case in (("QuantizeLinear", "last_axis"), ("QuantizeLinear", "blocks"), ("DequantizeLinear", "blocks")):
        found = next(each for each in find(op).cases if each.id == case)
        assert ops(expanded(find(op), found, [0])[0]) == [op]


@pytest.mark.parametrize("case", [case for case in weight_blocks.OPS[0].cases if case.raises is None], ids=lambda case: case.id)
def test_weights_of_few_bits_are_dequantised(case: Case) -> None:
    """Where they are constants of float32, and not too large."""
    op = weight_blocks.OPS[0]
    after, (y,), (wanted,) = expanded(op, case, [0])
    if wanted.dtype == np.float32:
        assert ops(after)[0] == "MatMul"
    np.testing.assert_allclose(y, wanted, rtol=1e-5, atol=1e-6)
    graph, specs = single(op, case, [0])
    assert applied(graph, partial(expand_quantised, limit_bytes=300), propagate(graph, specs)) is graph
    graph, specs = single(op, case, [0, 1])
    assert applied(graph, expand, propagate(graph, specs)) is graph


def test_nothing_is_found_twice() -> None:
    op = find("QLinearConv")
    after, _, _ = expanded(op, op.cases[0], [0])
    assert applied(after, expand, propagate(after, bind(after))) is after
