"""Reductions and global pools are lowered to pools or to row kernels, as their layout demands."""

import pytest

from tests.graph.native.nets import image, normal, weights
from tests.graph.oracle import check_native, check_on, constant, in_numpy, ints, kernels, make, node


@pytest.mark.parametrize("channels", [3, 40])
@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize("op", ["ReduceMean", "ReduceMax"])
def test_planes_of_blocks_are_pooled_where_they_lie(machine, op, keepdims, channels):
    nodes = [node("Conv", ["x", "w"], ["a"]), node(op, ["a", "axes"], ["b"], keepdims=keepdims)]
    constants = [weights("w", channels, 3, 1, 1), ints("axes", -1, -2)]
    if keepdims:  # squeeze and excite
        nodes += [node("Conv", ["b", "v"], ["c"]), node("Sigmoid", ["c"], ["d"]), node("Mul", ["a", "d"], ["y"])]
        constants.append(weights("v", channels, channels, 1, 1))
    else:  # a classifier's end
        nodes.append(node("Gemm", ["b", "v"], ["y"]))
        constants.append(weights("v", channels, 7))
    calls = check_on(machine, make(nodes, ["y"], constants, image(2, 3, 6, 5), opset=18), {"x": normal(2, 3, 6, 5)})
    names = kernels(calls)
    assert sum("pool_" in name for name in names) == 1
    blocks, rest = divmod(channels, machine.lanes)
    written = [bool(blocks), bool(rest)] if channels > machine.lanes else []  # the result; one block by itself is seen by strides
    assert [name for name in names if "copy" in name] == ["b4_copy"] * sum(written) * keepdims


@pytest.mark.parametrize("keepdims", [0, 1])
def test_what_is_fused_behind_a_reduction_of_planes(isa, keepdims):
    nodes = [node("Conv", ["x", "w"], ["a"]), node("ReduceMean", ["a", "axes"], ["b"], keepdims=keepdims),
             node("Relu", ["b"], ["c"]), node("Mul", ["c", "s"], ["y"])]  # fmt: skip
    shape = (2, 20, 1, 1) if keepdims else (2, 20)
    constants = [weights("w", 20, 3, 1, 1), ints("axes", 2, 3), constant("s", normal(*shape))]
    check_native(make(nodes, ["y"], constants, image(2, 3, 6, 5), opset=18), {"x": normal(2, 3, 6, 5)}, isa)


def test_rows_of_one_dimension_and_planes_that_are_results(isa):
    nodes = [node("Conv", ["x", "w"], ["a"]), node("ReduceMax", ["a", "axes"], ["y0"], keepdims=0),
             node("ReduceMean", ["a", "axes"], ["y1"], keepdims=1)]  # fmt: skip
    proto = make(nodes, ["y0", "y1"], [weights("w", 21, 3, 1), ints("axes", 2)], image(2, 3, 11), opset=18)
    check_native(proto, {"x": normal(2, 3, 11)}, isa)


@pytest.mark.parametrize("op", ["GlobalAveragePool", "GlobalMaxPool"])
@pytest.mark.parametrize("shape", [(2, 9, 3, 4, 5), (2, 9, 7), (1, 5, 2, 3, 2, 3)])
def test_global_pools_of_any_rank(isa, op, shape):
    nodes = [node(op, ["x"], ["a"]), node("Relu", ["a"], ["y"])]
    check_native(make(nodes, ["y"], [], image(*shape)), {"x": normal(*shape)}, isa, oracle=in_numpy)
