"""Transposed convolutions inside of graphs."""

import itertools

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from graph.run.executor import Executor
from tests.graph.native.nets import graph_of, image, normal, weights
from tests.graph.oracle import NATIVE, check_native, check_on, constant, in_numpy, kernels, make, node, port
from tests.kernels.native.conftest import HOST_ISAS


def up(x, w, y, *bias, **attrs):
    return node("ConvTranspose", [x, w, *bias], [y], **attrs)


def double(x, w, y, *bias):
    """Return a layer of a generator: a kernel of 4x4 that doubles both sides."""
    return up(x, w, y, *bias, kernel_shape=[4, 4], strides=[2, 2], pads=[1, 1, 1, 1])


@pytest.mark.parametrize("threads", [1, 2])
def test_generator_from_a_vector_to_an_image(machine, threads):
    """As in DCGAN: all layers but the last are normalised and rectified, and both are fused into the convolutions."""
    sizes, nodes, constants, x = (20, 40, 24, 12), [], [], "x"
    for n, (c, k) in enumerate(itertools.pairwise(sizes)):
        nodes.append(up(x, f"w{n}", f"c{n}") if n == 0 else double(x, f"w{n}", f"c{n}"))
        nodes.append(node("BatchNormalization", [f"c{n}", f"s{n}", f"b{n}", f"m{n}", f"v{n}"], [f"n{n}"]))
        nodes.append(node("Relu", [f"n{n}"], [f"r{n}"]))
        statistics = (constant(f"{what}{n}", normal(k)) for what in "sbm")
        constants += [weights(f"w{n}", c, k, 4, 4), *statistics, constant(f"v{n}", 0.5 + np.abs(normal(k)))]
        x = f"r{n}"
    nodes += [double(x, "w", "c", "b"), node("Tanh", ["c"], ["y"])]
    constants += [weights("w", sizes[-1], 3, 4, 4), constant("b", normal(3))]
    proto = make(nodes, ["y"], constants, image(2, sizes[0], 1, 1))
    calls = check_on(machine, proto, {"x": normal(2, sizes[0], 1, 1)}, threads=threads, tolerance=1e-4)
    names = kernels(calls)
    assert sum(name.startswith("f32_conv2d") for name in names) == 1 + 3 * 4
    assert sum(name.startswith("f32_map") for name in names) <= 1


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("how", ["transposed", "linear", "nearest"])
def test_decoder_with_skips(machine, threads, how):
    """As in U-Net: convolutions and pools on the way down, upsampling and a skip connection on the way up."""
    c = 2 * machine.lanes
    nodes = [
        node("Conv", ["x", "w0"], ["c0"], pads=[1] * 4), node("Relu", ["c0"], ["s0"]),
        node("MaxPool", ["s0"], ["p0"], kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", ["p0", "w1"], ["c1"], pads=[1] * 4), node("Relu", ["c1"], ["s1"]),
        node("MaxPool", ["s1"], ["p1"], kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", ["p1", "w2"], ["c2"], pads=[1] * 4), node("Relu", ["c2"], ["s2"]),
    ]  # fmt: skip
    constants = [weights("w0", c, 3, 3, 3), weights("w1", c, c, 3, 3), weights("w2", c, c, 3, 3), constant("twice", (1, 1, 2, 2))]
    x = "s2"
    for level in (1, 0):
        if how == "transposed":
            nodes.append(up(x, f"t{level}", f"u{level}", f"tb{level}", strides=[2, 2]))
            constants += [weights(f"t{level}", c, c, 2, 2), constant(f"tb{level}", normal(c))]
        else:
            nodes.append(node("Resize", [x, "", "twice"], [f"u{level}"], mode=how))
        nodes += [
            node("Concat", [f"u{level}", f"s{level}"], [f"k{level}"], axis=1),
            node("Conv", [f"k{level}", f"v{level}"], [f"d{level}"], pads=[1] * 4), node("Relu", [f"d{level}"], [f"e{level}"]),
        ]  # fmt: skip
        constants.append(weights(f"v{level}", c, 2 * c, 3, 3))
        x = f"e{level}"
    nodes.append(node("Conv", [x, "last"], ["y"]))
    constants.append(weights("last", 2, c, 1, 1))
    calls = check_on(machine, make(nodes, ["y"], constants, image(1, 3, 16, 12)), {"x": normal(1, 3, 16, 12)}, threads=threads)
    stem, count = ("f32_conv2d", 2 * 4) if how == "transposed" else ("f32_resize", 2)
    assert sum(name.startswith(stem) for name in kernels(calls)) >= count
    assert sum(name.startswith(("b4_copy", "f32_map")) for name in kernels(calls)) <= 1  # of the last layer's two channels


@pytest.mark.parametrize("how", ["transposed", "resized"])
def test_skip_that_dies_in_the_addition_is_overwritten(machine, how):
    doubled = double("p", "t", "u") if how == "transposed" else node("Resize", ["p", "", "twice"], ["u"], mode="linear")
    nodes = [
        node("Conv", ["x", "w"], ["a"]), node("MaxPool", ["a"], ["p"], kernel_shape=[2, 2], strides=[2, 2]), doubled,
        node("Add", ["u", "a"], ["v"]), node("Relu", ["v"], ["r"]), node("Conv", ["r", "last"], ["y"]),
    ]  # fmt: skip
    constants = [
        weights("w", 20, 3, 1, 1),
        weights("t", 20, 20, 4, 4),
        weights("last", 6, 20, 1, 1),
        constant("twice", (1, 1, 2, 2)),
    ]
    calls = check_on(machine, make(nodes, ["y"], constants, image(2, 3, 8, 6)), {"x": normal(2, 3, 8, 6)})
    merging = [call for call in calls if "r0" in call.arguments]
    assert len(merging) == (4 if how == "transposed" else 1)
    assert all(call.arguments["r0"] == call.arguments["y"] for call in merging)


def test_one_dimension_upsampled_as_vocoders_do(isa):
    nodes = [up("x", "w", "a", "b", strides=[8], pads=[4, 4]), node("LeakyRelu", ["a"], ["c"], alpha=0.1),
             node("Conv", ["c", "w1"], ["y"], pads=[3, 3])]  # fmt: skip
    constants = [weights("w", 24, 12, 16), constant("b", normal(12)), weights("w1", 5, 12, 7)]
    check_native(make(nodes, ["y"], constants, image(2, 24, 11)), {"x": normal(2, 24, 11)}, isa)


@pytest.mark.parametrize("group", [2, 3, 6])
def test_groups_that_are_no_whole_blocks(isa, group):
    nodes = [double("x", "w", "a"), node("Sigmoid", ["a"], ["b"]), node("Add", ["b", "z"], ["y"])]
    nodes[0].attribute.add(name="group", i=group, type=2)
    inputs = [*image(2, 6, 4, 5), port("z", [2, 12, 8, 10])]
    proto = make(nodes, ["y"], [weights("w", 6, 12 // group, 4, 4)], inputs)
    check_native(proto, {"x": normal(2, 6, 4, 5), "z": normal(2, 12, 8, 10)}, isa)


def test_each_channel_by_itself(machine):
    nodes = [node("Conv", ["x", "w0"], ["a"]), double("a", "w", "c", "b"), node("Relu", ["c"], ["y"])]
    nodes[1].attribute.add(name="group", i=20, type=2)
    constants = [weights("w0", 20, 3, 1, 1), weights("w", 20, 1, 4, 4), constant("b", normal(20))]
    calls = check_on(machine, make(nodes, ["y"], constants, image(1, 3, 5, 6)), {"x": normal(1, 3, 5, 6)})
    assert sum(name.startswith("f32_dwconv2d") for name in kernels(calls)) == 4


@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize("bias", [(), ("b",)])
def test_normalisation_behind_it_is_folded(isa, group, bias):
    nodes = [double("x", "w", "a", *bias), node("BatchNormalization", ["a", "s", "t", "m", "v"], ["n"]),
             node("Mul", ["n", "f"], ["y"])]  # fmt: skip
    nodes[0].attribute.add(name="group", i=group, type=2)
    constants = [weights("w", 6, 8 // group, 4, 4), constant("b", normal(8)), *(constant(what, normal(8)) for what in "stm"),
                 constant("v", 0.5 + np.abs(normal(8))), constant("f", normal(8, 1, 1))]  # fmt: skip
    proto = make(nodes, ["y"], constants, image(1, 6, 3, 4))
    executor = check_native(proto, {"x": normal(1, 6, 3, 4)}, isa, tolerance=1e-4)
    graph, _ = graph_of(proto, {"x": normal(1, 6, 3, 4)})
    assert [made.op for made in graph.nodes] == ["ConvTranspose"]
    assert not graph.nodes[0].epilogue
    assert len(executor.steps) == 1


@pytest.mark.parametrize(
    ("nodes", "constants", "says"),
    [
        ([up("x", "w", "y", strides=[64, 64])], [weights("w", 2, 2, 1, 1)], "it has 4096 phases, 1024 at most"),
        ([up("x", "w", "y")], [weights("w", 2, 2, 1, 40)], "its phases are 40 columns wide, 32 at most"),
        ([node("Relu", ["x"], ["v"]), up("x", "v", "y", kernel_shape=[3, 3])], [], "its weights are not constants"),
    ],
)
def test_what_stays_in_numpy_says_why(nodes, constants, says):
    graph, specs = graph_of(make(nodes, ["y"], constants, image(2, 2, 3, 3)), {"x": normal(2, 2, 3, 3)})
    (reason,) = NATIVE.refusals(graph, specs).values()
    assert says in reason


def test_every_candidate_gives_the_same_result():
    proto = make([node("ConvTranspose", ["x", "w"], ["y"], name="t", strides=[2, 2])], ["y"], [weights("w", 24, 40, 3, 3)],
                 image(1, 24, 6, 7))  # fmt: skip
    feeds = {"x": normal(1, 24, 6, 7)}
    graph, specs = graph_of(proto, feeds)
    wanted, (made,) = in_numpy(proto, feeds)["y"], graph.nodes
    for choice in NATIVE.candidates(made, graph, specs, 2):
        executor = Executor(graph, specs, {"t": choice}, threads=2, backend=NATIVE)
        np.testing.assert_allclose(executor.run(feeds)["y"], wanted, rtol=0, atol=1e-5)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_any_transposed_convolution(data):
    rank = data.draw(st.integers(1, 2))
    sides = lambda low, high: data.draw(st.lists(st.integers(low, high), min_size=rank, max_size=rank))  # noqa: E731
    group, c, k = data.draw(st.sampled_from([1, 1, 2, 3])), data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))
    size, kernel, strides, dilations = sides(1, 6), sides(1, 4), sides(1, 4), sides(1, 3)
    pads = [*sides(0, 2), *sides(0, 2)]
    extra = [data.draw(st.integers(0, max(s, d) - 1)) for s, d in zip(strides, dilations, strict=True)]
    reach = [(n - 1) * s + (t - 1) * d + 1 + e for n, s, t, d, e in zip(size, strides, kernel, dilations, extra, strict=True)]
    out = [r - pads[i] - pads[rank + i] for i, r in enumerate(reach)]
    assume(min(out) >= 1)
    attrs = {"strides": strides, "dilations": dilations, "pads": pads, "output_padding": extra, "group": group}
    nodes = [
        node("Abs", ["x"], ["a"]),
        up("a", "w", "c", "b", **attrs),
        node("Mul", ["c", "z"], ["d"]),
        node("Relu", ["d"], ["y"]),
    ]
    shape, made = [2, c * group, *size], [2, k * group, *out]
    constants = [weights("w", c * group, k, *kernel), constant("b", normal(k * group))]
    proto = make(nodes, ["y"], constants, [*image(*shape), port("z", made)])
    feeds = {"x": normal(*shape), "z": normal(*made)}
    check_native(proto, feeds, data.draw(st.sampled_from(HOST_ISAS)), threads=data.draw(st.integers(1, 2)), oracle=in_numpy)


@pytest.mark.parametrize("width", [1, 2, 3, 5])
def test_a_channel_by_itself_has_phases_of_narrower_rows(machine, width):
    """With a kernel of 3 and a stride of 2 the even columns of y are one more than the odd ones, and choose the tile."""
    proto = make([up("x", "w", "y", strides=[3, 2], group=5)], ["y"], [weights("w", 5, 1, 3, 3)], image(1, 5, 2, width))
    calls = check_on(machine, proto, {"x": normal(1, 5, 2, width)})
    assert sum(name.startswith("f32_dwconv2d") for name in kernels(calls)) == 3 * 2
