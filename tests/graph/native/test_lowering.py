"""Graphs that run natively against ONNX Runtime: layouts, conversions, epilogues, aliases, segments."""

import gc
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from graph.choice import Choice
from graph.formats.registry import read
from graph.native.engine import Native
from graph.native.place import PackedConstant
from graph.passes.optimise import optimise
from graph.run.executor import Executor
from graph.shapes import bind
from kernels.errors import UnsupportedError
from tests.graph.native.nets import RNG, graph_of, image, normal, weights
from tests.graph.oracle import NATIVE, build, calls_of, check, check_native, check_on, constant, ints, kernels, make, node, port
from tests.kernels.native.conftest import HOST_ISAS


def test_convolution_reads_the_input_as_it_is_and_writes_the_output_row_major(machine):
    nodes = [node("Conv", ["x", "w", "b"], ["y"], pads=[1, 1, 1, 1])]
    proto = make(nodes, ["y"], [weights("w", 20, 3, 3, 3), constant("b", normal(20))], image(2, 3, 9, 7))
    calls = check_on(machine, proto, {"x": normal(2, 3, 9, 7)})
    assert kernels(calls)[0].startswith("f32_conv2d")


def test_residual_block_adds_and_activates_in_the_last_convolution(machine):
    nodes = [
        node("Conv", ["x", "w0"], ["a"]), node("Relu", ["a"], ["r"]),
        node("Conv", ["r", "w1"], ["b"], pads=[1, 1, 1, 1]), node("Relu", ["b"], ["c"]),
        node("Conv", ["c", "w2"], ["d"]), node("Add", ["d", "r"], ["e"]), node("Relu", ["e"], ["f"]),
        node("GlobalAveragePool", ["f"], ["p"]), node("Flatten", ["p"], ["q"]), node("Gemm", ["q", "w3", "b3"], ["y"], transB=1),
    ]  # fmt: skip
    constants = [weights("w0", 24, 5, 1, 1), weights("w1", 40, 24, 3, 3), weights("w2", 24, 40, 1, 1), weights("w3", 10, 24),
                 constant("b3", normal(10))]  # fmt: skip
    calls = check_on(machine, make(nodes, ["y"], constants, image(2, 5, 10, 10)), {"x": normal(2, 5, 10, 10)})
    assert len(kernels(calls)) == 5


def test_concat_of_whole_blocks_is_written_in_place(machine):
    c = machine.lanes
    nodes = [
        node("Conv", ["x", "w0"], ["s"]), node("Conv", ["s", "w1"], ["a"]),
        node("Conv", ["s", "w2"], ["b"], pads=[1, 1, 1, 1]), node("Concat", ["a", "b"], ["c"], axis=1),
        node("MaxPool", ["c"], ["y"], kernel_shape=[2, 2], strides=[2, 2]),
    ]  # fmt: skip
    constants = [weights("w0", 6, 3, 1, 1), weights("w1", 2 * c, 6, 1, 1), weights("w2", c + 3, 6, 3, 3)]
    calls = check_on(machine, make(nodes, ["y"], constants, image(1, 3, 8, 8)), {"x": normal(1, 3, 8, 8)})
    assert sum(name.startswith(("b4_copy", "f32_map")) for name in kernels(calls)) == 2  # the result's blocks, and their rest


def test_concat_of_odd_channels_is_copied(isa):
    nodes = [node("Conv", ["x", "w0"], ["a"]), node("Conv", ["x", "w1"], ["b"]), node("Concat", ["a", "b", "x"], ["c"], axis=1),
             node("Conv", ["c", "w2"], ["y"])]  # fmt: skip
    constants = [weights("w0", 5, 3, 1, 1), weights("w1", 7, 3, 1, 1), weights("w2", 4, 15, 1, 1)]
    check_native(make(nodes, ["y"], constants, image(1, 3, 6, 5)), {"x": normal(1, 3, 6, 5)}, isa)


def test_squeeze_and_excite_stays_in_blocks(isa):
    nodes = [
        node("Conv", ["x", "w0"], ["a"], pads=[1, 1, 1, 1], group=20), node("GlobalAveragePool", ["a"], ["p"]),
        node("Conv", ["p", "w1", "b1"], ["q"]), node("Relu", ["q"], ["r"]),
        node("Conv", ["r", "w2"], ["s"]), node("HardSigmoid", ["s"], ["t"]),
        node("Mul", ["t", "a"], ["u"]), node("Conv", ["u", "w3"], ["y"]),
    ]  # fmt: skip
    constants = [weights("w0", 20, 1, 3, 3), weights("w1", 6, 20, 1, 1), constant("b1", normal(6)), weights("w2", 20, 6, 1, 1),
                 weights("w3", 8, 20, 1, 1)]  # fmt: skip
    check_native(make(nodes, ["y"], constants, image(2, 20, 7, 7)), {"x": normal(2, 20, 7, 7)}, isa)


@pytest.mark.parametrize("group", [2, 3, 6])
def test_groups_that_are_no_whole_blocks(isa, group):
    nodes = [node("Conv", ["x", "w"], ["a"], group=group, pads=[1, 1, 1, 1]), node("Relu", ["a"], ["b"]),
             node("MaxPool", ["b"], ["y"], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], ceil_mode=1)]  # fmt: skip
    proto = make(nodes, ["y"], [weights("w", 12, 6 // group, 3, 3)], image(2, 6, 8, 9))
    check_native(proto, {"x": normal(2, 6, 8, 9)}, isa)


@pytest.mark.parametrize(("height", "width", "strides"), [(9, 7, [2, 2]), (8, 6, [2, 2]), (7, 9, [3, 1]), (1, 8, [1, 2])])
def test_pointwise_convolution_with_strides_reads_a_copy_of_its_pixels(machine, height, width, strides):
    nodes = [node("Conv", ["x", "w0"], ["a"]), node("Conv", ["a", "w1"], ["b"], strides=strides), node("Relu", ["b"], ["y"])]
    constants = [weights("w0", 21, 3, 1, 1), weights("w1", 70, 21, 1, 1)]
    proto = make(nodes, ["y"], constants, image(2, 3, height, width))
    calls = check_on(machine, proto, {"x": normal(2, 3, height, width)})
    names = [name.split("_")[1] for name in kernels(calls)]
    assert names[names.index("conv2d", names.index("conv2d") + 1) - 1] == "copy"


def test_pointwise_convolution_with_strides_and_padding(isa):
    nodes = [node("Conv", ["x", "w0"], ["a"]), node("Conv", ["a", "w1"], ["y"], strides=[2, 2], pads=[1, 0, 0, 1])]
    constants = [weights("w0", 21, 3, 1, 1), weights("w1", 70, 21, 1, 1)]
    check_native(make(nodes, ["y"], constants, image(1, 3, 8, 7)), {"x": normal(1, 3, 8, 7)}, isa)


@pytest.mark.parametrize("shape", [(), (1, 1, 4, 5), (2, 1, 4, 5), (2, 1, 1, 1)], ids=str)
@pytest.mark.parametrize("channels", [2, 16, 40])
@pytest.mark.parametrize("op", ["MaxPool", "AveragePool", "GlobalAveragePool"])
def test_pool_followed_by_an_operand_that_all_channels_share(isa, op, channels, shape):
    shape = (*shape[:2], 1, 1) if op.startswith("Global") and shape else shape
    window: dict[str, Any] = {} if op.startswith("Global") else {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    nodes = [node(op, ["x"], ["a"], **window), node("Mul", ["a", "s"], ["b"]), node("Relu", ["b"], ["y"])]
    proto = make(nodes, ["y"], [constant("s", normal(*shape))], image(2, channels, 4, 5))
    check_native(proto, {"x": normal(2, channels, 4, 5)}, isa)


@pytest.mark.parametrize("merged", [(2, 40, 5, 1), (2, 1, 5, 1), (1, 40, 1, 1), (5, 1), ()], ids=str)
@pytest.mark.parametrize("channels", [1, 40])
def test_pointwise_convolution_of_an_image_one_column_wide_merged_with_a_tensor(isa, channels, merged):
    merged = tuple(channels if size == 40 else size for size in merged)
    nodes = [node("Conv", ["x", "w"], ["a"]), node("Mul", ["a", "s"], ["b"]), node("Relu", ["b"], ["y"])]
    feeds = {"x": normal(2, 3, 5, 1), "s": normal(*merged)}
    ports = [port(name, array.shape) for name, array in feeds.items()]
    check_native(make(nodes, ["y"], [weights("w", channels, 3, 1, 1)], ports), feeds, isa)


def test_one_dimensional_convolution_and_pool(isa):
    nodes = [node("Conv", ["x", "w"], ["a"], pads=[2, 2], dilations=[2]), node("Sigmoid", ["a"], ["b"]),
             node("AveragePool", ["b"], ["c"], kernel_shape=[3], strides=[2], count_include_pad=1, pads=[1, 1]),
             node("Conv", ["c", "w1"], ["y"])]  # fmt: skip
    proto = make(nodes, ["y"], [weights("w", 9, 4, 3), weights("w1", 5, 9, 1)], image(2, 4, 21))
    check_native(proto, {"x": normal(2, 4, 21)}, isa)


@pytest.mark.parametrize("shape", [(2, 12, 8, 9), (12, 1, 1), (8, 9), (2, 1, 8, 9), (9,), ()])
def test_what_is_merged_behind_groups_that_are_no_whole_blocks(isa, shape):
    nodes = [node("Conv", ["x", "w"], ["a"], group=2, pads=[1, 1, 1, 1]), node("Mul", ["a", "z"], ["y"])]
    inputs = [*image(2, 6, 8, 9), port("z", list(shape))]
    proto = make(nodes, ["y"], [weights("w", 12, 3, 3, 3)], inputs)
    check_native(proto, {"x": normal(2, 6, 8, 9), "z": normal(*shape)}, isa)


def test_residual_of_a_pointwise_convolution_of_one_dimension(isa):
    nodes = [node("Conv", ["x", "w"], ["a"]), node("Add", ["a", "x"], ["y"])]
    check_native(make(nodes, ["y"], [weights("w", 12, 12, 1)], image(2, 12, 7)), {"x": normal(2, 12, 7)}, isa)


def test_products_of_rows_with_biases_residuals_and_activations(machine):
    nodes = [
        node("MatMul", ["x", "w0"], ["a"]), node("Add", ["a", "b0"], ["b"]), node("Gelu", ["b"], ["c"]),
        node("MatMul", ["c", "w1"], ["d"]), node("Add", ["d", "b1"], ["e"]), node("Add", ["e", "x"], ["y"]),
    ]  # fmt: skip
    constants = [weights("w0", 24, 50), constant("b0", normal(50)), weights("w1", 50, 24), constant("b1", normal(24))]
    proto = make(nodes, ["y"], constants, image(3, 7, 24), opset=20)
    assert len(kernels(check_on(machine, proto, {"x": normal(3, 7, 24)}))) == 2


@pytest.mark.parametrize(("alpha", "beta", "shape"), [(1, 1, (9,)), (0.5, 1, (5, 1)), (2, 3, (1, 9)), (1, 1, (5, 9)), (1, 1, ())])
def test_gemm_scales_and_adds(isa, alpha, beta, shape):
    nodes = [node("Gemm", ["x", "w", "c"], ["y"], transB=1, alpha=float(alpha), beta=float(beta))]
    check_native(make(nodes, ["y"], [weights("w", 9, 6), constant("c", normal(*shape))], image(5, 6)), {"x": normal(5, 6)}, isa)


def test_transposes_reshapes_slices_and_picks_are_views(machine):
    nodes = [
        node("MatMul", ["x", "w"], ["a"]), node("Reshape", ["a", "s"], ["b"]),
        node("Transpose", ["b"], ["c"], perm=[2, 0, 3, 1, 4]),
        node("Gather", ["c", "two"], ["d"], axis=0), node("Slice", ["d", "lo", "hi", "axes", "steps"], ["e"]),
        node("Mul", ["e", "half"], ["y"]),
    ]  # fmt: skip
    constants = [weights("w", 8, 24), ints("s", 2, 5, 3, 2, 4), constant("two", 2, np.int64), ints("lo", 4, 0), ints("hi", -9, 3),
                 ints("axes", 2, 3), ints("steps", -2, 2), constant("half", 0.5)]  # fmt: skip
    calls = check_on(machine, make(nodes, ["y"], constants, image(2, 5, 8)), {"x": normal(2, 5, 8)})
    assert len(kernels(calls)) == 2


@pytest.mark.parametrize("source", ["x", "c"])
def test_split_whose_last_outputs_nobody_reads_before_an_elementwise_op(isa, source):
    nodes = [
        node("Conv", ["x", "w"], ["c"]),
        node("Split", [source, "sizes"], ["a", "b", "d"], axis=1),
        node("Relu", ["a"], ["y"]),
    ]
    proto = make(nodes, ["y"], [weights("w", 40, 40, 1, 1), ints("sizes", 20, 3, 17)], image(1, 40, 4, 3))
    check_native(proto, {"x": normal(1, 40, 4, 3)}, isa)
    check(proto, {"x": normal(1, 40, 4, 3)})


def test_value_that_is_an_output_and_read_again(isa):
    nodes = [node("Conv", ["x", "w"], ["a"]), node("Relu", ["a"], ["y0"]), node("Conv", ["y0", "w1"], ["b"]),
             node("Add", ["b", "y0"], ["y1"]), node("Reshape", ["y0", "flat"], ["y2"])]  # fmt: skip
    constants = [weights("w", 6, 6, 1, 1), weights("w1", 6, 6, 1, 1), ints("flat", -1)]
    check_native(make(nodes, ["y0", "y1", "y2"], constants, image(1, 6, 4, 4)), {"x": normal(1, 6, 4, 4)}, isa)


def test_output_that_is_the_input_seen_otherwise(isa):
    nodes = [node("Transpose", ["x"], ["y0"]), node("Conv", ["x", "w"], ["y1"])]
    check_native(make(nodes, ["y0", "y1"], [weights("w", 3, 2, 1, 1)], image(1, 2, 3, 4)), {"x": normal(1, 2, 3, 4)}, isa)


def test_ops_without_native_form_run_between_segments(isa):
    nodes = [node("Conv", ["x", "w"], ["a"]), node("Trilu", ["a"], ["b"]), node("Conv", ["b", "w"], ["c"]),
             node("Relu", ["c"], ["y"])]  # fmt: skip
    proto = make(nodes, ["y"], [weights("w", 3, 3, 1, 1)], image(1, 3, 4, 5))
    executor = check_native(proto, {"x": normal(1, 3, 4, 5)}, isa, {"Trilu"})
    assert executor.steps[0].algorithm.startswith("native/direct")
    assert len(executor._program._segments) == 2


def test_independent_numpy_ops_do_not_split_segments(isa):
    nodes = [node("Conv", ["x", "w"], ["a"]), node("Trilu", ["x"], ["b"]), node("Conv", ["a", "w"], ["c"]),
             node("Add", ["c", "b"], ["y"])]  # fmt: skip
    proto = make(nodes, ["y"], [weights("w", 3, 3, 1, 1)], image(1, 3, 4, 5))
    assert len(check_native(proto, {"x": normal(1, 3, 4, 5)}, isa, {"Trilu"})._program._segments) == 1


def test_chosen_tiles_give_the_same_result():
    proto = make([node("Conv", ["x", "w"], ["y"], name="conv")], ["y"], [weights("w", 40, 8, 1, 1)], image(1, 8, 9, 9))
    feeds = {"x": normal(1, 8, 9, 9)}
    graph, specs = graph_of(proto, feeds)
    (conv,) = graph.nodes
    wanted = Executor(graph, specs).run(feeds)["y"]
    for choice in NATIVE.candidates(conv, graph, specs, 2):
        executor = Executor(graph, specs, {"conv": choice}, threads=2, backend=NATIVE)
        assert executor.steps[0].algorithm == str(choice)
        np.testing.assert_allclose(executor.run(feeds)["y"], wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("choice", "says"),
    [
        (Choice("native", "direct", (("tile", "0x4"),)), "need pixels x vectors"),
        (Choice("native", "direct", (("tile", "6x999999999"),)), "need pixels x vectors"),
    ],
)
def test_tiles_that_do_not_exist_are_refused(choice, says):
    proto = make([node("Conv", ["x", "w"], ["y"], name="conv")], ["y"], [weights("w", 4, 3, 1, 1)], image(1, 3, 4, 4))
    graph, specs = graph_of(proto, {"x": normal(1, 3, 4, 4)})
    with pytest.raises(UnsupportedError, match=says):
        Executor(graph, specs, {"conv": choice}, backend=NATIVE)


def test_native_choice_of_a_refused_node_says_why():
    proto = make([node("Trilu", ["x"], ["y"], name="half")], ["y"])
    graph, specs = graph_of(proto, {"x": normal(2, 6)})
    with pytest.raises(UnsupportedError, match="Trilu has no native form"):
        Executor(graph, specs, {"half": Choice("native", "map")}, backend=NATIVE)


def test_executors_of_one_model_share_packed_weights():
    proto = make([node("Conv", ["x", "w"], ["y"])], ["y"], [weights("w", 32, 16, 1, 1)], [port("x", ["n", 16, 8, 8])])
    native = Native(cache=None)
    graph = read(proto).graph
    packed: list[frozenset[PackedConstant]] = []
    for n in (1, 2):
        ready = optimise(graph, bind(graph, {"x": (n, 16, 8, 8)}))
        executor = Executor(ready.graph, ready.specs, backend=native)
        packed.append(executor.packed)
    assert packed[0] == packed[1]
    assert len(native.constants._entries) == 2  # the weights, and a bias of 0
    del executor, packed
    gc.collect()
    assert not native.constants._entries


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_random_image_networks(data):
    """Convolutions, pools, merges and concatenations in any order, over any channels and sizes."""
    channels = st.integers(1, 40)
    n, c, height, width = data.draw(st.tuples(st.integers(1, 2), channels, st.integers(4, 12), st.integers(4, 12)))
    values, nodes, constants = [("x", c)], [], []
    for number in range(data.draw(st.integers(1, 7))):
        (source, c_in), out = data.draw(st.sampled_from(values)), f"v{number}"
        kind = data.draw(st.sampled_from(["conv", "depthwise", "pool", "unary", "binary", "concat", "scale", "swap"]))
        c_out = c_in
        if kind in ("conv", "depthwise"):
            c_out = data.draw(channels) if kind == "conv" else c_in
            k = data.draw(st.sampled_from([1, 3]))
            constants.append(weights(f"w{number}", c_out, c_in if kind == "conv" else 1, k, k))
            pads, group = [k // 2] * 4, 1 if kind == "conv" else c_in
            nodes.append(node("Conv", [source, f"w{number}"], [out], pads=pads, group=group))
        elif kind == "pool":
            op = data.draw(st.sampled_from(["MaxPool", "AveragePool"]))
            nodes.append(node(op, [source], [out], kernel_shape=[3, 3], pads=[1, 1, 1, 1]))
        elif kind == "unary":
            nodes.append(node(data.draw(st.sampled_from(["Relu", "Sigmoid", "HardSwish", "Abs"])), [source], [out]))
        elif kind == "binary":
            other = data.draw(st.sampled_from([name for name, channels_of in values if channels_of == c_in]))
            nodes.append(node(data.draw(st.sampled_from(["Add", "Mul", "Sub", "Max"])), [source, other], [out]))
        elif kind == "scale":
            shape = data.draw(st.sampled_from([(), (c_in, 1, 1), (1, c_in, 1, 1), (height, width), (width,)]))
            constants.append(constant(f"s{number}", normal(*shape)))
            nodes.append(node(data.draw(st.sampled_from(["Add", "Mul"])), [source, f"s{number}"], [out]))
        elif kind == "swap":
            nodes.append(node("Transpose", [source], [f"t{number}"], perm=[0, 2, 3, 1]))
            nodes.append(node("Tanh", [f"t{number}"], [f"u{number}"]))
            nodes.append(node("Transpose", [f"u{number}"], [out], perm=[0, 3, 1, 2]))
        else:
            other, c_other = data.draw(st.sampled_from(values))
            nodes.append(node("Concat", [source, other], [out], axis=1))
            c_out = c_in + c_other
        values.append((out, c_out))
    outputs = list(dict.fromkeys([values[-1][0], data.draw(st.sampled_from(values[1:]))[0]]))
    proto = make(nodes, outputs, constants, image(n, c, height, width), opset=18)
    check_native(proto, {"x": normal(n, c, height, width)}, data.draw(st.sampled_from(HOST_ISAS)))


@pytest.mark.parametrize(("op", "attrs"), [("Softmax", {"axis": -1}), ("Softmax", {"axis": 1}), ("LogSoftmax", {"axis": 2})])
def test_softmax_over_any_dimension_and_what_follows(isa, op, attrs):
    nodes = [node(op, ["x"], ["a"], **attrs), node("Mul", ["a", "s"], ["b"]), node("Add", ["b", "x"], ["y"])]
    check_native(make(nodes, ["y"], [constant("s", normal(7))], image(2, 5, 7)), {"x": normal(2, 5, 7)}, isa)


def test_layer_norm_of_a_transpose(isa):
    nodes = [
        node("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
        node("LayerNormalization", ["t", "w", "b"], ["a"], axis=-1, epsilon=1e-3),
        node("MatMul", ["a", "m"], ["y"]),
    ]  # fmt: skip
    constants = [constant("w", normal(24)), constant("b", normal(24)), weights("m", 24, 9)]
    check_native(make(nodes, ["y"], constants, image(3, 5, 24)), {"x": normal(3, 5, 24)}, isa)


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_group_norm_and_what_follows(isa, groups):
    nodes = [node("Conv", ["x", "k"], ["c"]), node("GroupNormalization", ["c", "w", "b"], ["a"], num_groups=groups),
             node("Mul", ["a", "s"], ["d"]), node("Add", ["d", "c"], ["y"])]  # fmt: skip
    constants = [weights("k", 6, 3, 1, 1), constant("w", normal(6)), constant("b", normal(6)), constant("s", normal(6, 1, 1))]
    check_native(make(nodes, ["y"], constants, image(2, 3, 5, 4), opset=21), {"x": normal(2, 3, 5, 4)}, isa, tolerance=1e-4)


@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize("axes", [(2, 3), (1,), (0, -1), (0, 1, 2, 3)])
def test_reductions_and_what_follows(isa, axes, keepdims):
    nodes = [node("ReduceMean", ["x", "axes"], ["a"], keepdims=keepdims), node("Relu", ["a"], ["b"]),
             node("Add", ["b", "one"], ["y0"]), node("ReduceMax", ["x", "axes"], ["y1"], keepdims=keepdims)]  # fmt: skip
    proto = make(nodes, ["y0", "y1"], [ints("axes", *axes), constant("one", 1.0)], image(2, 5, 4, 3), opset=18)
    check_native(proto, {"x": normal(2, 5, 4, 3)}, isa)


def test_instance_norm_of_an_image_in_blocks(isa):
    nodes = [node("Conv", ["x", "k"], ["c"]), node("InstanceNormalization", ["c", "w", "b"], ["a"]), node("Relu", ["a"], ["y"])]
    constants = [weights("k", 18, 3, 1, 1), constant("w", normal(18)), constant("b", normal(18))]
    check_native(make(nodes, ["y"], constants, image(1, 3, 5, 4)), {"x": normal(1, 3, 5, 4)}, isa, tolerance=1e-4)


@pytest.mark.parametrize("masked", [False, True])
def test_attention_out_of_one_matrix_copies_nothing(machine, masked):
    """Queries, keys and values are slices of one product, as encoders are exported."""
    batch, length, heads, size = 2, 9, 3, 8
    width = heads * size
    nodes = [
        node("MatMul", ["x", "w"], ["qkv"]), node("Reshape", ["qkv", "s5"], ["five"]),
        node("Transpose", ["five"], ["apart"], perm=[2, 0, 3, 1, 4]),
        *(node("Gather", ["apart", f"i{n}"], ["qkv"[n] + "h"], axis=0) for n in range(3)),
        node("Transpose", ["kh"], ["kt"], perm=[0, 1, 3, 2]), node("MatMul", ["qh", "kt"], ["scores"]),
        node("Mul", ["scores", "scale"], ["scaled"]), node("Add", ["scaled", "mask"], ["added"]),
        node("Softmax", ["added" if masked else "scaled"], ["p"], axis=-1), node("MatMul", ["p", "vh"], ["o"]),
        node("Transpose", ["o"], ["back"], perm=[0, 2, 1, 3]), node("Reshape", ["back", "s3"], ["flat"]),
        node("MatMul", ["flat", "w1"], ["y"]),
    ]  # fmt: skip
    mask = np.where(RNG.random((batch, 1, length, length)) < 0.3, np.float32(-1e9), np.float32(0))
    constants = [weights("w", width, 3 * width), ints("s5", batch, length, 3, heads, size), ints("s3", batch, length, width),
                 *(constant(f"i{n}", n, np.int64) for n in range(3)), constant("scale", size**-0.5), constant("mask", mask),
                 weights("w1", width, width)]  # fmt: skip
    nodes = [n for n in nodes if masked or n.op_type != "Add"]
    proto = make(nodes, ["y"], constants, image(batch, length, width))
    calls = check_on(machine, proto, {"x": normal(batch, length, width)})
    assert [name.split("_")[1] for name in kernels(calls)] == ["conv2d", "attention", "conv2d"]


@pytest.mark.parametrize(("heads", "groups", "causal"), [(4, 4, 0), (4, 2, 1), (2, 1, 0)])
def test_attention_with_heads_side_by_side(isa, heads, groups, causal):
    nodes = [node("MatMul", ["x", "wq"], ["q"]), node("MatMul", ["x", "wk"], ["k"]), node("MatMul", ["x", "wv"], ["v"]),
             node("Attention", ["q", "k", "v"], ["y"], q_num_heads=heads, kv_num_heads=groups, is_causal=causal)]  # fmt: skip
    constants = [weights("wq", 10, heads * 6), weights("wk", 10, groups * 6), weights("wv", 10, groups * 5)]
    check_native(make(nodes, ["y"], constants, image(2, 7, 10), opset=23), {"x": normal(2, 7, 10)}, isa)


@pytest.mark.parametrize(
    ("a", "b"), [((3, 4, 5), (3, 5, 6)), ((2, 3, 4, 5), (5, 6)), ((1, 4, 5), (3, 5, 6)), ((4, 5), (2, 5, 6))]
)
def test_products_of_two_tensors(isa, a, b):
    nodes = [node("MatMul", ["x", "z"], ["a"]), node("Mul", ["a", "s"], ["b"]), node("Relu", ["b"], ["y"])]
    proto = make(nodes, ["y"], [constant("s", 0.5)], [port("x", list(a)), port("z", list(b))])
    check_native(proto, {"x": normal(*a), "z": normal(*b)}, isa)


@pytest.mark.parametrize("trans", [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_gemm_of_two_tensors(isa, trans):
    shapes = [(5, 7) if trans[0] == 0 else (7, 5), (7, 9) if trans[1] == 0 else (9, 7)]
    nodes = [node("Gemm", ["x", "z", "c"], ["y"], transA=trans[0], transB=trans[1], alpha=0.5)]
    proto = make(nodes, ["y"], [constant("c", normal(9))], [port("x", list(shapes[0])), port("z", list(shapes[1]))])
    check_native(proto, {"x": normal(*shapes[0]), "z": normal(*shapes[1])}, isa)


def test_product_written_as_the_transpose_that_reads_it(machine):
    nodes = [
        node("MatMul", ["x", "z"], ["a"]),
        node("Transpose", ["a"], ["b"], perm=[0, 2, 1]),
        node("MatMul", ["b", "w"], ["y"]),
    ]
    proto = make(nodes, ["y"], [weights("w", 4, 3)], [port("x", [2, 4, 5]), port("z", [2, 5, 6])])
    calls = check_on(machine, proto, {"x": normal(2, 4, 5), "z": normal(2, 5, 6)})
    assert len(kernels(calls)) == 2


def test_product_whose_result_is_turned_while_its_operands_are_not(isa):
    nodes = [node("MatMul", ["x", "b"], ["a"]), node("Mul", ["a", "s"], ["c"]), node("Transpose", ["c"], ["y"])]
    feeds = {"x": normal(2, 8), "b": normal(8, 7), "s": normal(2, 7)}
    check_native(make(nodes, ["y"], [], [port(name, array.shape) for name, array in feeds.items()]), feeds, isa)


def test_kernels_that_are_only_looked_at_are_those_that_run(isa):
    nodes = [node("Gather", ["x", "at"], ["g"]), node("Conv", ["g", "w"], ["y"])]
    proto = make(nodes, ["y"], [ints("at", 2, 0), weights("w", 8, 3, 1, 1)], image(4, 3, 5, 5))
    graph = read(proto).graph
    executor = check_native(proto, {"x": normal(4, 3, 5, 5)}, isa)
    ready = optimise(graph, bind(graph, None))
    looked_at = Native(isa).kernels(ready.graph, ready.specs, 1, {})
    assert [kernel.name.partition("__")[0] for found in looked_at.values() for kernel in found] == kernels(calls_of(executor))


def test_a_product_over_nothing_stays_in_numpy() -> None:
    """Constants may be empty, where they are parameters: as a factor of a product they divided by zero."""
    factors = [constant("a", np.ones((2, 0))), constant("b", np.ones((0, 3)))]
    proto = make([node("Gemm", ["a", "b", "x"], ["y"])], ["y"], factors, [port("x", [3])])
    executor = build(proto, backend=NATIVE)
    assert [step.algorithm.startswith("native") for step in executor.steps] == [False]
    np.testing.assert_array_equal(executor.run({"x": np.arange(3, dtype=np.float32)})["y"], [[0, 1, 2]] * 2)
