"""BatchNormalization, per-channel arithmetic, padding and biases that move into Conv, Gemm and pools."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graph.passes.affine import fold_scales_and_shifts
from graph.passes.batch_norms import fold_batch_norms, split_batch_norms
from graph.passes.gemms import make_gemms
from graph.passes.pads import fold_pads
from tests.graph.passes.checks import applied, build, const, node, ops, optimised, random, rewritten

IMAGE = {"x": (2, 4, 6, 5)}
NORM = [random("g", 6), random("b", 6), random("m", 6), random("v", 6, low=0.5)]


def norm(source: str = "c", target: str = "y", **attrs):
    return node("BatchNormalization", [source, "g", "b", "m", "v"], [target], **attrs)


@pytest.mark.parametrize("bias", [False, True], ids=["new-bias", "bias"])
@pytest.mark.parametrize("group", [1, 2])
def test_batch_norm_folds_into_conv(bias: bool, group: int) -> None:
    conv = node("Conv", ["x", "w", "cb"][: 2 + bias], ["c"], group=group)
    graph = build([conv, norm(epsilon=0.1)], [*NORM, random("w", 6, 4 // group, 3, 3), random("cb", 6)], IMAGE)
    after = rewritten(graph, fold_batch_norms)
    assert ops(after) == ["Conv"]
    assert after.nodes[0].origins == ("n0", "n1")


@pytest.mark.parametrize("transposed", [0, 1])
def test_batch_norm_folds_into_gemm(transposed: int) -> None:
    weight = random("w", 6, 4) if transposed else random("w", 4, 6)
    gemm = node("Gemm", ["x", "w", "cb"], ["c"], alpha=0.5, beta=2.0, transB=transposed)
    graph = build([gemm, norm()], [*NORM, weight, random("cb", 1, 6)])
    assert ops(rewritten(graph, fold_batch_norms)) == ["Gemm"]


def test_batch_norm_stays_behind_a_conv_that_others_read() -> None:
    nodes = [node("Conv", ["x", "w"], ["c"]), norm("c", "n"), node("Add", ["c", "n"], ["y"])]
    assert len(rewritten(build(nodes, [*NORM, random("w", 6, 4, 1, 1)], IMAGE), fold_batch_norms).nodes) == 3


def test_batch_norm_stays_behind_a_conv_that_is_an_output() -> None:
    graph = build([node("Conv", ["x", "w"], ["c"]), norm()], [*NORM, random("w", 6, 4, 1, 1)], IMAGE, outputs=("c", "y"))
    assert len(rewritten(graph, fold_batch_norms).nodes) == 2


def test_batch_norm_with_a_variance_of_minus_epsilon_is_left_alone() -> None:
    bad = [random("g", 6), random("b", 6), random("m", 6), const("v", np.full(6, -1.0))]
    graph = build([node("Conv", ["x", "w"], ["c"]), norm(epsilon=1.0)], [*bad, random("w", 6, 4, 1, 1)], IMAGE)
    assert applied(graph, fold_batch_norms) is graph


@pytest.mark.parametrize("shape", [(2, 6), (2, 6, 5), (2, 6, 5, 4), (2, 6, 3, 2, 4)], ids=len)
def test_batch_norm_that_nothing_folds_becomes_a_product_and_a_sum(shape: tuple[int, ...]) -> None:
    graph = build([node("Sin", ["x"], ["c"]), norm(target="n"), node("Relu", ["n"], ["y"])], NORM, {"x": shape})
    after = rewritten(graph, split_batch_norms)
    assert ops(after) == ["Sin", "Mul", "Add", "Relu"]
    assert [each.origins for each in after.nodes[1:3]] == [("n1",), ("n1",)]
    assert applied(after, split_batch_norms) is after


def test_batch_norm_that_nothing_folds_is_fused_with_the_relu_behind_it() -> None:
    graph = build(
        [node("Concat", ["x", "x"], ["c"], axis=1), norm(target="n"), node("Relu", ["n"], ["y"])], NORM, {"x": (2, 3, 4, 5)}
    )
    assert [[each.op for each in n.epilogue] for n in optimised(graph).graph.nodes] == [["Mul", "Add", "Relu"]]


def test_batch_norm_whose_parameters_are_inputs_stays() -> None:
    shapes = {"x": (2, 6, 4), "g": (6,)}
    assert ops(rewritten(build([norm("x")], NORM[1:], shapes), split_batch_norms)) == ["BatchNormalization"]


@given(
    op=st.sampled_from(["Add", "Sub", "Mul", "Div"]),
    swapped=st.booleans(),
    shape=st.sampled_from([(), (6, 1, 1), (1, 6, 1, 1), (1,)]),
)
@settings(max_examples=30, deadline=None)
def test_constants_per_channel_fold_into_conv(op: str, swapped: bool, shape: tuple[int, ...]) -> None:
    pair = ["k", "c"] if swapped else ["c", "k"]
    graph = build(
        [node("Conv", ["x", "w", "cb"], ["c"]), node(op, pair, ["y"])],
        [random("w", 6, 4, 1, 1), const("cb", np.full(6, 9.0)), random("k", *shape, low=0.5)],
        IMAGE,
    )
    expected = 2 if (op, swapped) == ("Div", True) else 1
    assert len(rewritten(graph, fold_scales_and_shifts).nodes) == expected


@pytest.mark.parametrize("shape", [(5,), (6, 5), (2, 6, 1, 1), (1, 1, 6, 5), (3, 2, 6, 6, 5)], ids=str)
def test_constants_along_other_axes_do_not_fold(shape: tuple[int, ...]) -> None:
    nodes = [node("Conv", ["x", "w"], ["c"]), node("Mul", ["c", "k"], ["y"])]
    assert len(rewritten(build(nodes, [random("w", 6, 4, 1, 1), random("k", *shape)], IMAGE), fold_scales_and_shifts).nodes) == 2


def test_scale_and_shift_fold_into_gemm() -> None:
    nodes = [node("Gemm", ["x", "w"], ["c"]), node("Mul", ["c", "s"], ["d"]), node("Add", ["t", "d"], ["y"])]
    graph = build(nodes, [random("w", 4, 6), random("s", 6), random("t", 1, 6)])
    assert ops(rewritten(graph, fold_scales_and_shifts)) == ["Gemm"]


def test_a_bias_that_varies_by_row_keeps_the_scale_outside() -> None:
    nodes = [node("Gemm", ["x", "w", "cb"], ["c"]), node("Mul", ["c", "s"], ["y"])]
    graph = build(nodes, [random("w", 4, 6), random("s", 6), random("cb", 2, 6)])
    assert len(rewritten(graph, fold_scales_and_shifts).nodes) == 2


PADS = [0, 0, 1, 2, 0, 0, 2, 1]


def padded(host, pads=PADS, *fill, initializers=()):
    names = ["x", "p", "f"] if fill else ["x", "p"]
    return build(
        [node("Pad", names, ["a"]), host],
        [const("p", pads, np.int64), *(const("f", value) for value in fill), *initializers],
        IMAGE,
    )


@pytest.mark.parametrize("own", [None, [1, 0, 0, 1]], ids=["no-own", "own"])
def test_zero_padding_folds_into_conv(own) -> None:
    attrs = {} if own is None else {"pads": own}
    graph = padded(node("Conv", ["a", "w"], ["y"], strides=[2, 1], **attrs), initializers=[random("w", 6, 4, 3, 3)])
    assert ops(rewritten(graph, fold_pads)) == ["Conv"]


@pytest.mark.parametrize(
    ("pads", "fill", "attrs"),
    [
        (PADS, (1.0,), {}),
        ([0, 1, 0, 0, 0, 0, 0, 0], (), {}),
        ([0, 0, -1, 0, 0, 0, 0, 0], (), {}),
        (PADS, (), {"auto_pad": "SAME_UPPER"}),
    ],
    ids=["ones", "channel", "negative", "auto-pad"],
)
def test_other_padding_stays_in_front_of_conv(pads, fill, attrs) -> None:
    channels = 5 if pads[1] else 4
    graph = padded(node("Conv", ["a", "w"], ["y"], **attrs), pads, *fill, initializers=[random("w", 6, channels, 3, 3)])
    assert ops(rewritten(graph, fold_pads)) == ["Pad", "Conv"]


@pytest.mark.parametrize(
    ("fill", "attrs", "folds"),
    [
        ((), {}, True),
        ((), {"count_include_pad": 1, "pads": [1, 1, 1, 1]}, False),
        ((), {"count_include_pad": 0, "pads": [1, 1, 1, 1]}, False),
        ((2.0,), {}, False),
        ((), {"ceil_mode": 1, "strides": [2, 2]}, False),
    ],
    ids=["zeros", "too-far", "own-not-counted", "twos", "ceil"],
)
def test_padding_in_front_of_average_pool(fill, attrs, folds) -> None:
    graph = padded(node("AveragePool", ["a"], ["y"], kernel_shape=[3, 3], **attrs), PADS, *fill)
    assert ops(rewritten(graph, fold_pads)) == ["AveragePool"] if folds else ["Pad", "AveragePool"]


@pytest.mark.parametrize(("fill", "folds"), [((-np.inf,), True), ((), False)], ids=["minus-inf", "zeros"])
def test_padding_in_front_of_max_pool(fill, folds) -> None:
    graph = padded(node("MaxPool", ["a"], ["y"], kernel_shape=[3, 3]), PADS, *fill)
    assert ops(rewritten(graph, fold_pads)) == (["MaxPool"] if folds else ["Pad", "MaxPool"])


@pytest.mark.parametrize("bias", [(6,), (1, 6), (2, 6), (1,)], ids=str)
@pytest.mark.parametrize("swapped", [False, True])
def test_matmul_and_bias_are_gemm(bias, swapped) -> None:
    pair = ["k", "m"] if swapped else ["m", "k"]
    graph = build([node("MatMul", ["x", "w"], ["m"]), node("Add", pair, ["y"])], [random("w", 4, 6), random("k", *bias)])
    assert ops(rewritten(graph, make_gemms)) == ["Gemm"]


def test_matmul_of_higher_rank_stays() -> None:
    nodes = [node("MatMul", ["x", "w"], ["m"]), node("Add", ["m", "k"], ["y"])]
    graph = build(nodes, [random("w", 4, 6), random("k", 6)], {"x": (2, 3, 4)})
    assert ops(rewritten(graph, make_gemms)) == ["MatMul", "Add"]


def test_matmul_added_to_itself_stays() -> None:
    graph = build([node("MatMul", ["x", "w"], ["m"]), node("Add", ["m", "m"], ["y"])], [random("w", 4, 6)])
    assert ops(rewritten(graph, make_gemms)) == ["MatMul", "Add"]


def test_a_bias_that_widens_the_product_stays() -> None:
    nodes = [node("MatMul", ["x", "w"], ["m"]), node("Add", ["m", "k"], ["y"])]
    graph = build(nodes, [random("w", 4, 6), random("k", 3, 6)], {"x": (1, 4)})
    assert ops(rewritten(graph, make_gemms)) == ["MatMul", "Add"]
