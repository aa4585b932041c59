"""Slices, concatenations and shuffles of channels of images in blocks, against ONNX Runtime."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.graph.native.nets import image, normal, weights
from tests.graph.oracle import check_native, check_on, constant, ints, kernels, make, node
from tests.kernels.native.conftest import HOST_ISAS


@pytest.fixture(params=HOST_ISAS, ids=lambda isa: isa.name)
def isa(request):
    return request.param


def moved(calls) -> list[str]:
    """Return the calls that only move elements."""
    return [name for name in kernels(calls) if name.startswith("b4_")]


def shuffle(source: str, target: str, shape: tuple[int, int, int, int], groups: int):
    """Return the three nodes of a channel shuffle as frameworks export them, and their constants."""
    n, c, height, width = shape
    constants = [ints(f"{target}/apart", n, groups, c // groups, height, width), ints(f"{target}/whole", n, -1, height, width)]
    return [
        node("Reshape", [source, f"{target}/apart"], [f"{target}/a"]),
        node("Transpose", [f"{target}/a"], [f"{target}/b"], perm=[0, 2, 1, 3, 4]),
        node("Reshape", [f"{target}/b", f"{target}/whole"], [target]),
    ], constants


@pytest.mark.parametrize(("channels", "groups"), [(116, 2), (240, 3), (48, 4)])
def test_shuffle_is_one_copy_between_images_in_blocks(machine, channels, groups):
    nodes, constants = shuffle("a", "s", (2, channels, 5, 6), groups)
    nodes = [node("Conv", ["x", "w0"], ["a"]), *nodes, node("Conv", ["s", "w1"], ["y"], pads=[1, 1, 1, 1], group=channels)]
    constants += [weights("w0", channels, 3, 1, 1), weights("w1", channels, 1, 3, 3)]
    calls = check_on(machine, make(nodes, ["y"], constants, image(2, 3, 5, 6)), {"x": normal(2, 3, 5, 6)})
    assert moved(calls)[0] == "b4_channels"
    assert moved(calls)[1:] == ["b4_copy"] * (1 + (channels % machine.lanes > 0))  # the result out of its blocks


def test_unit_of_a_shuffle_net_stays_in_blocks(machine):
    """Both halves are concatenated, shuffled and split again."""
    half = 29
    nodes, constants = shuffle("c", "s", (1, 2 * half, 7, 7), 2)
    nodes = [
        node("Conv", ["x", "w0"], ["a"]), node("Conv", ["x", "w1"], ["b"]), node("Concat", ["a", "b"], ["c"], axis=1), *nodes,
        node("Split", ["s", "halves"], ["l", "r"], axis=1), node("Conv", ["r", "w2"], ["d"]), node("Relu", ["d"], ["e"]),
        node("Concat", ["l", "e"], ["f"], axis=1), node("Conv", ["f", "w3"], ["y"]),
    ]  # fmt: skip
    constants += [weights("w0", half, 3, 1, 1), weights("w1", half, 3, 3, 3), weights("w2", half, half, 1, 1),
                  weights("w3", 8, 2 * half, 1, 1), ints("halves", half, half)]  # fmt: skip
    nodes[1].attribute.extend(node("Conv", [], [], pads=[1, 1, 1, 1]).attribute)
    calls = check_on(machine, make(nodes, ["y"], constants, image(1, 3, 7, 7)), {"x": normal(1, 3, 7, 7)})
    assert moved(calls)[:4] == ["b4_channels"] * 4  # concatenation, shuffle, the second half, concatenation


def test_concatenation_with_a_part_of_itself(isa):
    """The part is in place once; its second use needs a copy."""
    c = isa.lanes
    nodes = [node("Conv", ["x", "w0"], ["a"]), node("Slice", ["a", "lo", "hi", "axis"], ["s"]),
             node("Concat", ["a", "s"], ["b"], axis=1), node("Conv", ["b", "w1"], ["y"])]  # fmt: skip
    constants = [weights("w0", 3 * c, 3, 1, 1), ints("lo", c), ints("hi", 2 * c), ints("axis", 1), weights("w1", 4, 4 * c, 1, 1)]
    check_native(make(nodes, ["y"], constants, image(1, 3, 4, 4)), {"x": normal(1, 3, 4, 4)}, isa)


def test_what_is_fused_behind_the_one_part_that_is_read(isa):
    nodes = [
        node("Conv", ["x", "w"], ["a"]),
        node("Split", ["a", "sizes"], ["b", "c"], axis=1),
        node("Mul", ["b", "half"], ["y"]),
    ]
    constants = [weights("w", 20, 3, 1, 1), ints("sizes", 11, 9), constant("half", 0.5)]
    check_native(make(nodes, ["y"], constants, image(2, 3, 4, 4)), {"x": normal(2, 3, 4, 4)}, isa)


def test_what_is_read_between_is_made_as_ever(isa):
    """A shuffle with an intermediate value that another node reads is not lowered as one copy."""
    nodes, constants = shuffle("a", "y0", (1, 12, 4, 4), 2)
    nodes = [node("Conv", ["x", "w"], ["a"]), *nodes, node("Relu", ["y0/b"], ["y1"])]
    check_native(
        make(nodes, ["y0", "y1"], [weights("w", 12, 3, 1, 1), *constants], image(1, 3, 4, 4)), {"x": normal(1, 3, 4, 4)}, isa
    )


def test_other_swaps_are_no_shuffles(isa):
    nodes = [node("Conv", ["x", "w"], ["a"]), node("Reshape", ["a", "apart"], ["b"]),
             node("Transpose", ["b"], ["c"], perm=[0, 2, 1, 4, 3]), node("Reshape", ["c", "whole"], ["y0"]),
             node("Reshape", ["a", "flat"], ["d"]), node("Transpose", ["d"], ["e"]),
             node("Reshape", ["e", "whole"], ["y1"])]  # fmt: skip
    constants = [weights("w", 12, 3, 1, 1), ints("apart", 1, 3, 4, 4, 4), ints("whole", 1, 12, 4, 4), ints("flat", 3, -1)]
    check_native(make(nodes, ["y0", "y1"], constants, image(1, 3, 4, 4)), {"x": normal(1, 3, 4, 4)}, isa)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_random_cuts_joins_and_shuffles(data):
    channels, height, width = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 6)), data.draw(st.integers(1, 6))
    n = data.draw(st.integers(1, 2))
    nodes, constants = [node("Conv", ["x", "w"], ["v"])], [weights("w", channels, 3, 1, 1)]
    held = [("v", channels)]
    for number in range(data.draw(st.integers(1, 6))):
        source, size = data.draw(st.sampled_from(held))
        out = f"v{number}"
        what = data.draw(st.sampled_from(["slice", "split", "concat", "shuffle", "scale", "conv"]))
        if what == "slice":
            first = data.draw(st.integers(0, size - 1))
            step = data.draw(st.sampled_from([1, 1, 2, -1]))
            end = data.draw(st.integers(first + 1, size)) if step > 0 else -size - 1
            constants += [ints(f"lo{number}", first), ints(f"hi{number}", end), ints(f"ax{number}", 1), ints(f"by{number}", step)]
            nodes.append(node("Slice", [source, *(f"{name}{number}" for name in ("lo", "hi", "ax", "by"))], [out]))
            size = len(range(first, end, step)) if step > 0 else first + 1
        elif what == "split":
            if size < 2:
                continue
            first = data.draw(st.integers(1, size - 1))
            constants.append(ints(f"s{number}", first, size - first))
            nodes.append(node("Split", [source, f"s{number}"], [f"{out}/0", out], axis=1))
            held.append((f"{out}/0", first))
            size -= first
        elif what == "concat":
            other, more = data.draw(st.sampled_from(held))
            nodes.append(node("Concat", [source, other], [out], axis=1))
            size += more
        elif what == "shuffle":
            groups = data.draw(st.sampled_from([g for g in range(1, size + 1) if size % g == 0]))
            made, given_constants = shuffle(source, out, (n, size, height, width), groups)
            nodes += made
            constants += given_constants
        elif what == "scale":
            constants.append(constant(f"c{number}", np.float32(1.5)))
            nodes.append(node("Mul", [source, f"c{number}"], [out]))
        else:
            constants.append(weights(f"w{number}", 5, size, 1, 1))
            nodes.append(node("Conv", [source, f"w{number}"], [out]))
            size = 5
        held.append((out, size))
    outputs = list(dict.fromkeys([held[-1][0], data.draw(st.sampled_from(held))[0]]))
    proto = make(nodes, outputs, constants, image(n, 3, height, width), opset=17)
    check_native(proto, {"x": normal(n, 3, height, width)}, data.draw(st.sampled_from(HOST_ISAS)))


def normalised(source: str, target: str, channels: int):
    """Return a batch norm with a Relu behind it, as between the concatenations of a DenseNet, and its parameters."""
    names = [f"{target}/{what}" for what in ("scale", "shift", "mean", "variance")]
    nodes = [node("BatchNormalization", [source, *names], [f"{target}/n"]), node("Relu", [f"{target}/n"], [target])]
    return nodes, [*(constant(name, normal(channels)) for name in names[:3]), constant(names[3], 0.5 + np.abs(normal(channels)))]


@pytest.mark.parametrize("growth", [1, 12, 32])
def test_dense_block_has_no_step_but_convolutions_concatenations_and_maps(machine, growth):
    """A batch norm behind a concatenation that others read has no convolution to be folded into."""
    nodes, constants, have, count = [node("Conv", ["x", "w"], ["c0"])], [weights("w", 24, 3, 1, 1)], "c0", 24
    for n in range(3):
        more = normalised(have, f"a{n}", count)
        nodes += [*more[0], node("Conv", [f"a{n}", f"w{n}"], [f"g{n}"], pads=[1] * 4)]
        nodes.append(node("Concat", [have, f"g{n}"], [f"k{n}"], axis=1))
        constants += [*more[1], weights(f"w{n}", growth, count, 3, 3)]
        have, count = f"k{n}", count + growth
    more = normalised(have, "a", count)
    nodes += [*more[0], node("GlobalAveragePool", ["a"], ["y"])]
    proto = make(nodes, ["y"], [*constants, *more[1]], image(2, 3, 9, 7))
    calls = check_on(machine, proto, {"x": normal(2, 3, 9, 7)})
    names = kernels(calls)
    assert sum(name.startswith("f32_map") for name in names) == names.count("f32_map3") == 4, names
    assert len(moved(calls)) <= 4, names  # one for each concatenation, and the result out of its blocks


@pytest.mark.parametrize("others", [False, True], ids=["alone", "read-again"])
def test_what_is_fused_behind_a_concatenation_changes_nothing_that_others_read(machine, others):
    c = 2 * machine.lanes
    nodes = [
        node("Conv", ["x", "w0"], ["a"]), node("Conv", ["x", "w1"], ["b"]), node("Concat", ["a", "b"], ["k"], axis=1),
        node("Mul", ["k", "scale"], ["m"]), node("Relu", ["m"], ["r"]), node("Conv", ["r", "w2"], ["y"]),
        *([node("Conv", ["a", "w3"], ["z"])] if others else []),
    ]  # fmt: skip
    constants = [weights(f"w{n}", c, size, 1, 1) for n, size in enumerate((3, 3, 2 * c, c))]
    constants.append(constant("scale", normal(2 * c, 1, 1)))
    proto = make(nodes, ["y", "z"][: 1 + others], constants, image(1, 3, 5, 6))
    names = kernels(check_on(machine, proto, {"x": normal(1, 3, 5, 6)}))
    assert names.count("f32_map2") == 1
