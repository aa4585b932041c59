"""Convolutions and pools over volumes run natively, between other ops that keep them in blocks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tests.graph.native.nets import image, normal, weights
from tests.graph.oracle import (
    check_all_shapes,
    check_native,
    check_on,
    constant,
    in_numpy,
    ints,
    kernels,
    lowered,
    make,
    node,
    port,
)


def volume(op, kernel, strides=(1, 1, 1), pads=(0, 0, 0), dilations=(1, 1, 1), group=1, **attrs):
    """Return a node of a window over volumes from x to a, padded alike before and behind each axis."""
    inputs = ["x", "w", "b"] if op == "Conv" else ["x"]
    given = {"kernel_shape": kernel, "strides": strides, "pads": [*pads, *pads], "dilations": dilations, **attrs}
    return node(op, inputs, ["y"], **given, **({"group": group} if op == "Conv" else {}))


def parameters(outputs, inputs, *kernel):
    return [weights("w", outputs, inputs, *kernel), constant("b", normal(outputs))]


WINDOWS = {
    "plain": ((3, 3, 3), {"pads": (1, 1, 1)}),
    "not padded": ((2, 3, 1), {}),
    "strided": ((3, 3, 3), {"pads": (1, 1, 1), "strides": (2, 2, 2)}),
    "planes alone": ((3, 1, 1), {"pads": (1, 0, 0), "strides": (2, 1, 1)}),
    "rows alone": ((1, 3, 3), {"pads": (0, 1, 1)}),
    "columns alone": ((1, 1, 3), {"pads": (0, 0, 1)}),
    "points": ((1, 1, 1), {}),
    "strided points": ((1, 1, 1), {"strides": (2, 2, 2)}),
    "dilated": ((2, 3, 2), {"pads": (2, 2, 1), "dilations": (3, 2, 2)}),
}


@pytest.mark.parametrize("window", WINDOWS.values(), ids=WINDOWS)
@pytest.mark.parametrize("channels", [3, 20])
def test_convolutions(isa, window, channels):
    kernel, attrs = window
    x = (2, channels, 5, 6, 7)
    proto = make([volume("Conv", kernel, **attrs)], ["y"], parameters(19, channels, *kernel), image(*x))
    check_native(proto, {"x": normal(*x)}, isa)


@pytest.mark.parametrize("window", WINDOWS.values(), ids=WINDOWS)
def test_depthwise_and_grouped_convolutions(isa, window):
    kernel, attrs = window
    x = (2, 12, 5, 6, 7)
    for group in (12, 3):
        proto = make([volume("Conv", kernel, group=group, **attrs)], ["y"], parameters(12, 12 // group, *kernel), image(*x))
        check_native(proto, {"x": normal(*x)}, isa)


def narrow(window):
    """Return a window padded by no more than half of its sides, as pools must be."""
    kernel, attrs = window
    pads = tuple(min(pad, side // 2) for pad, side in zip(attrs.get("pads", (0, 0, 0)), kernel, strict=True))
    return kernel, {**attrs, "pads": pads}


@pytest.mark.parametrize("window", WINDOWS.values(), ids=WINDOWS)
@pytest.mark.parametrize("counts", [0, 1])
def test_averages(isa, window, counts):
    x, (kernel, attrs) = (2, 9, 6, 7, 8), narrow(window)
    proto = make([volume("AveragePool", kernel, count_include_pad=counts, **attrs)], ["y"], [], image(*x), opset=19)
    check_native(proto, {"x": normal(*x)}, isa, oracle=in_numpy)


@pytest.mark.parametrize("window", WINDOWS.values(), ids=WINDOWS)
def test_maxima(isa, window):
    x, (kernel, attrs) = (2, 9, 6, 7, 8), narrow(window)
    proto = make([volume("MaxPool", kernel, **attrs)], ["y"], [], image(*x))
    check_native(proto, {"x": normal(*x)}, isa, oracle=in_numpy)


def test_a_window_wider_than_the_registers(isa):
    x = (1, 5, 4, 3, 60)
    for op in ("MaxPool", "AveragePool"):
        proto = make([volume(op, (3, 2, 45), pads=(1, 0, 20))], ["y"], [], image(*x))
        check_native(proto, {"x": normal(*x)}, isa, oracle=in_numpy)


def test_a_network_stays_in_blocks(machine):
    """Scales, residuals, channels that are joined and split, and the global pool need no conversion of layouts."""
    nodes = [node("Conv", ["x", "w0"], ["a"], pads=[1] * 6), node("Relu", ["a"], ["a1"]),
             node("Conv", ["a1", "w1"], ["c"], pads=[1] * 6), node("Mul", ["c", "scale"], ["c1"]),
             node("Add", ["c1", "a1"], ["c2"]), node("MaxPool", ["c2"], ["p"], kernel_shape=[1, 2, 2], strides=[1, 2, 2]),
             node("Conv", ["p", "w2"], ["d"], strides=[2, 2, 2]), node("Conv", ["p", "w3"], ["e"], strides=[2, 2, 2]),
             node("Concat", ["d", "e"], ["f"], axis=1), node("GlobalAveragePool", ["f"], ["g"]), node("Flatten", ["g"], ["h"]),
             node("Gemm", ["h", "w4"], ["y"])]  # fmt: skip
    constants = [weights("w0", 32, 3, 3, 3, 3), weights("w1", 32, 32, 3, 3, 3), weights("w2", 32, 32, 1, 1, 1),
                 weights("w3", 16, 32, 1, 1, 1), weights("w4", 48, 5), constant("scale", normal(1, 32, 1, 1, 1))]  # fmt: skip
    x = (2, 3, 6, 8, 8)
    names = kernels(check_on(machine, make(nodes, ["y"], constants, image(*x)), {"x": normal(*x)}))
    assert [name for name in names if "conv" not in name and "pool" not in name] == []


@pytest.mark.parametrize(
    "other", [(20, 1, 1, 1), (1, 20, 4, 1, 1), (1, 1, 4, 5, 1), (5, 6), (2, 1, 4, 5, 6), (2, 20, 1, 5, 1), (4, 1, 6)]
)
@pytest.mark.parametrize("group", [1, 4])
def test_operands_of_any_shape_behind_a_convolution(isa, other, group):
    x, fixed = (2, 20, 4, 5, 6), constant("w", normal(20, 20 // group, 1, 3, 1))
    nodes = [
        node("Conv", ["x", "w"], ["a"], pads=[0, 1, 0] * 2, group=group),
        node("Mul", ["a", "t"], ["b"]),
        node("Add", ["b", "x"], ["y"]),
    ]
    inputs = [*image(*x), port("t", list(other))]
    check_native(make(nodes, ["y"], [fixed], inputs), {"x": normal(*x), "t": normal(*other)}, isa)


@pytest.mark.parametrize("axis", [2, 3, 4])
@pytest.mark.parametrize("op", ["Conv", "MaxPool"])
def test_volumes_that_are_slices_of_others(isa, op, axis):
    """Their rows do not follow one another at one stride."""
    x = (2, 5, 6, 6, 6)
    window = (
        node("Conv", ["a", "w"], ["y"], pads=[1] * 6) if op == "Conv" else node("MaxPool", ["a"], ["y"], kernel_shape=[2, 2, 2])
    )
    constants = [weights("w", 7, 5, 3, 3, 3), ints("begin", 1), ints("end", 6), ints("axis", axis), ints("step", 2)]
    nodes = [node("Slice", ["x", "begin", "end", "axis", "step"], ["a"]), window]
    check_native(make(nodes, ["y"], constants[op != "Conv" :], image(*x)), {"x": normal(*x)}, isa)


def test_rearranged_volumes_between_convolutions(isa):
    x = (1, 20, 4, 5, 6)
    nodes = [node("Conv", ["x", "w"], ["a"]), node("Transpose", ["a"], ["b"], perm=[0, 1, 3, 2, 4]),
             node("Conv", ["b", "v"], ["c"]), node("ReduceMean", ["c"], ["d"], axes=[2], keepdims=1),
             node("Mul", ["c", "d"], ["e"]), node("Reshape", ["e", "s"], ["y"])]  # fmt: skip
    constants = [weights("w", 24, 20, 1, 1, 1), weights("v", 20, 24, 3, 1, 1), ints("s", 1, 20, -1)]
    check_native(make(nodes, ["y"], constants, image(*x)), {"x": normal(*x)}, isa)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_window_over_volumes(isa, data):
    three = lambda low, high: tuple(data.draw(st.lists(st.integers(low, high), min_size=3, max_size=3)))  # noqa: E731
    kernel, strides, dilations, pads, size = three(1, 3), three(1, 3), three(1, 2), three(0, 3), three(1, 7)
    out = [s + 2 * p - d * (k - 1) - 1 for s, p, d, k in zip(size, pads, dilations, kernel, strict=True)]
    assume(min(out) >= 0)
    channels, group = data.draw(st.sampled_from([(1, 1), (3, 1), (4, 2), (17, 17), (32, 2), (18, 1)]))
    x = (data.draw(st.integers(1, 2)), channels, *size)
    one = volume("Conv", kernel, strides, pads, dilations, group)
    proto = make([one], ["y"], parameters(channels, channels // group, *kernel), image(*x))
    check_native(proto, {"x": normal(*x)}, isa, oracle=in_numpy)


@pytest.mark.parametrize("op", ["Conv", "MaxPool", "AveragePool"])
def test_one_kernel_serves_volumes_of_all_sizes(machine, op):
    found = set()
    for size, kernel in (((6, 16, 24), (3, 3, 3)), ((20, 8, 24), (2, 1, 3)), ((3, 40, 24), (3, 5, 3))):
        x = (1, 64, *size)
        proto = make([volume(op, kernel, pads=(1, 0, 1))], ["y"], parameters(64, 64, *kernel) if op == "Conv" else [], image(*x))
        calls = lowered(proto, {"x": np.empty(x, np.float32)}, machine)
        found |= {call.kernel.name for call in calls if "copy" not in call.kernel.name}
    assert len(found) == 1


def test_one_lowering_serves_all_depths_and_heights(isa):
    nodes = [node("Conv", ["x", "w"], ["a"], pads=[1] * 6), node("Relu", ["a"], ["b"]),
             node("MaxPool", ["b"], ["p"], kernel_shape=[3, 3, 3], strides=[1, 2, 2], pads=[1] * 6),
             node("Conv", ["p", "v"], ["c"], group=20, pads=[1] * 6), node("Mul", ["c", "p"], ["d"]),
             node("AveragePool", ["d"], ["e"], kernel_shape=[2, 2, 2], pads=[1] * 6, count_include_pad=1),
             node("GlobalAveragePool", ["e"], ["y"])]  # fmt: skip
    constants = [weights("w", 20, 3, 3, 3, 3), weights("v", 20, 1, 3, 3, 3)]
    proto = make(nodes, ["y"], constants, [port("x", [1, 3, "depth", "height", 9])], opset=19)
    check_all_shapes(proto, [{"x": normal(1, 3, *size, 9)} for size in ((7, 12), (9, 16), (4, 6), (20, 30))], isa)
