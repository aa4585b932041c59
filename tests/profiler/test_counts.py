from __future__ import annotations

import json
import random as python_random
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from graph.formats.onnx.reader import read
from kernels.cost import Cost
from kernels.registry import find
from profiler.counting import counts
from profiler.counting.counts import DATA_DEPENDENT, NO_FORMULA, OpProfile, Uncounted, profile
from tests.profiler import zoo
from tests.profiler.models import branch, model, node, random, small_convnet

GOLDEN = {  # multiply–accumulates and parameters as published, batch 1
    "mobilenet_v1": (zoo.mobilenet_v1, 568_741_376, 4_233_001),
    "mobilenet_v2": (zoo.mobilenet_v2, 300_774_272, 3_504_872),
    "mobilenet_v3_large": (lambda: zoo.mobilenet_v3(zoo.MOBILENET_V3_LARGE, 1280), 216_589_760, 5_483_032),
    "mobilenet_v3_small": (lambda: zoo.mobilenet_v3(zoo.MOBILENET_V3_SMALL, 1024), 56_510_400, 2_542_856),
    "efficientnet_b0": (zoo.efficientnet_b0, 385_814_752, 5_288_548),
    "resnet18": (lambda: zoo.resnet((2, 2, 2, 2), bottleneck=False), 1_814_073_344, 11_689_512),
    "resnet50_v1.5": (lambda: zoo.resnet((3, 4, 6, 3), bottleneck=True), 4_089_184_256, 25_557_032),
    "resnet50_v1": (lambda: zoo.resnet((3, 4, 6, 3), bottleneck=True, stride_in_1x1=True), 3_857_973_248, 25_557_032),
    "squeezenet1.0": (lambda: zoo.squeezenet("1.0"), 818_924_576, 1_248_424),
    "squeezenet1.1": (lambda: zoo.squeezenet("1.1"), 349_151_936, 1_235_496),
    "shufflenet_v2": (zoo.shufflenet_v2, 144_907_992, 2_278_604),
    "vgg16": (zoo.vgg16, 15_470_264_320, 138_357_544),
    "densenet121": (zoo.densenet121, 2_834_161_664, 7_978_856),
    "inception_v3": (zoo.inception_v3, 5_713_216_096, 23_834_568),
    "bert_base_128": (lambda: zoo.bert_base(pooler=False), 11_173_625_856, 109_482_240 - 590_592),
    "bert_base_128_pooler": (zoo.bert_base, 11_174_215_680, 109_482_240),
    "gpt2_small_128": (zoo.gpt2_small, 11_173_625_856, 124_439_808),
    "gpt2_small_128_head": (lambda: zoo.gpt2_small(head=True), 16_114_089_984, 124_439_808),
    "vit_b_16": (zoo.vit_b_16, 17_563_828_224, 86_567_656),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_macs_and_params_of(name):
    build, macs, params = GOLDEN[name]
    counted = profile(build())
    assert (counted.macs, counted.params) == (macs, params)
    assert counted.coverage_percent == 100
    assert sum(op.params for op in counted.ops) == params


def test_attention_share_of_vit_is_exact():
    products = [op for op in profile(zoo.vit_b_16()).ops if op.op == "MatMul" and not op.constant_inputs]
    assert sum(op.macs for op in products) == 715_327_488


@pytest.mark.parametrize("build", [zoo.mobilenet_v1, zoo.mobilenet_v2], ids=["v1", "v2"])
def test_folding_batch_norm_changes_neither_macs_nor_params(build):
    folded, kept = profile(build(folded=True)), profile(build(folded=False))
    assert (folded.macs, folded.params) == (kept.macs, kept.params)
    assert folded.initializer_elements < folded.params < kept.initializer_elements


@settings(max_examples=8, deadline=None)
@given(st.integers(2, 64))
def test_macs_grow_with_the_batch_and_weights_do_not(batch):
    one, many = (profile(zoo.mobilenet_v2("n"), dims={"n": n}) for n in (1, batch))
    assert many.macs == batch * one.macs
    assert many.other_flops == batch * one.other_flops
    assert many.write_bytes == batch * one.write_bytes
    assert (many.params, many.param_bytes) == (one.params, one.param_bytes)
    assert many.read_bytes - many.param_bytes == batch * (one.read_bytes - one.param_bytes)


@settings(max_examples=8, deadline=None)
@given(st.sampled_from([64, 96, 128, 160, 192, 256]))
def test_conv_macs_grow_with_the_area(size):
    def convs(image_size):
        return sum(op.macs for op in profile(zoo.mobilenet_v1(size=image_size)).ops if op.op == "Conv")

    assert convs(size) * 32**2 == convs(32) * size**2


@settings(max_examples=6, deadline=None)
@given(st.sampled_from([16, 32, 64, 128, 256]))
def test_attention_macs_grow_with_the_square_of_the_sequence(sequence):
    def attention(length):
        ops = profile(zoo.bert_base(length, pooler=False)).ops
        return sum(op.macs for op in ops if op.op == "MatMul" and not op.constant_inputs)

    assert attention(sequence) * 8**2 == attention(8) * sequence**2


@given(st.sampled_from([1, 2, 4, 8, 16]))
def test_groups_divide_macs(groups):
    conv = node("Conv", "x w", "y", kernel_shape=[3, 3], group=groups)
    proto = model([conv], {"x": [1, 16, 9, 9]}, ["y"], {"w": random(32, 16 // groups, 3, 3)})
    assert profile(proto).macs == 32 * 7 * 7 * 16 * 9 // groups


@settings(max_examples=10, deadline=None)
@given(st.randoms())
def test_counts_do_not_hang_on_names_or_order(rng: python_random.Random):
    proto = small_convnet()
    expected = profile(proto, dims={"batch": 2})
    values = {name for n in proto.graph.node for name in (*n.input, *n.output)} - {"x", "y"}
    fresh = dict(zip(sorted(values), rng.sample(range(10_000), len(values)), strict=True))
    for n in proto.graph.node:
        n.name = f"node{rng.random()}"
        n.input[:] = [f"v{fresh[i]}" if i in fresh else i for i in n.input]
        n.output[:] = [f"v{fresh[o]}" if o in fresh else o for o in n.output]
    for tensor in proto.graph.initializer:
        tensor.name = f"v{fresh[tensor.name]}"
    nodes = list(proto.graph.node)
    rng.shuffle(nodes)
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    found = profile(proto, dims={"batch": 2})
    for figure in ("macs", "other_flops", "read_bytes", "write_bytes", "params", "param_bytes", "initializer_elements"):
        assert getattr(found, figure) == getattr(expected, figure), figure


def test_ops_are_counted_by_hand():
    counted = {op.name: op for op in profile(small_convnet(), dims={"batch": 2}).ops}
    assert counted["conv1"].macs == 2 * 8 * 14 * 14 * 27
    assert counted["conv1"].other_flops == 2 * 8 * 14 * 14  # the bias
    assert counted["depthwise"].macs == 2 * 8 * 7 * 7 * 9
    assert counted["logits"].macs == 2 * 10 * 16
    assert counted["relu1"].macs == 0
    assert counted["relu1"].flops == 2 * 8 * 14 * 14
    assert counted["both"].flops == 0
    assert counted["conv1"].inputs == ("f32[2,3,14,14]", "f32[8,3,3,3]", "f32[8]")
    assert counted["conv1"].outputs == ("f32[2,8,14,14]",)
    assert counted["conv1"].read_bytes == 4 * (2 * 3 * 196 + 8 * 27 + 8)
    assert counted["conv1"].write_bytes == 4 * 2 * 8 * 196
    assert counted["conv1"].param_bytes == 4 * (8 * 27 + 8)
    assert counted["conv1"].intensity == counted["conv1"].flops / counted["conv1"].moved_bytes


def test_totals_are_sums_over_ops():
    counted = profile(small_convnet(), dims={"batch": 3})
    for figure in ("macs", "other_flops", "flops", "read_bytes", "write_bytes", "params"):
        assert getattr(counted, figure) == sum(getattr(op, figure) for op in counted.ops), figure
    assert [op.index for op in counted.ops] == list(range(len(counted.ops)))


def test_an_input_read_twice_is_one_read():
    counted = profile(model([node("Mul", "x x", "y")], {"x": [4, 5]}, ["y"]))
    assert counted.read_bytes == counted.write_bytes == 80


def test_bytes_agree_with_onnx_runtime(tmp_path):
    proto = small_convnet()
    options = onnxruntime.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(tmp_path / "ort")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.disable_prepacking", "1")  # packed weights vanish from its sizes
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    session.run(None, {"x": random(2, 3, 14, 14)})
    events = json.loads(Path(session.end_profiling()).read_text())
    theirs = {
        event["name"].removesuffix("_kernel_time"): [
            int(event["args"][size]) for size in ("activation_size", "parameter_size", "output_size")
        ]
        for event in events
        if event["name"].endswith("_kernel_time")
    }
    ours = {
        op.name: [op.read_bytes - op.param_bytes, op.param_bytes, op.write_bytes] for op in profile(proto, dims={"batch": 2}).ops
    }
    assert ours == theirs


def test_what_is_known_before_the_run_costs_nothing():
    nodes = [
        node("Shape", "x", "shape"),
        node("Transpose", "w", "wt", perm=[1, 0]),
        node("Identity", "wt", "copy"),
        node("MatMul", "x copy", "product"),
        node("Reshape", "product shape", "y"),
    ]
    counted = profile(model(nodes, {"x": [5, 6]}, ["y"], {"w": random(6, 6)}))
    assert [op.name for op in counted.ops if op.constant] == ["shape", "wt", "copy"]
    assert all(op.flops == op.moved_bytes == 0 for op in counted.ops if op.constant)
    assert counted.macs == 5 * 6 * 6
    assert counted.param_bytes == 4 * 36 + 16
    assert counted.coverage_percent == 100


def test_a_shape_that_only_a_run_tells_is_listed():
    nodes = [node("Relu", "x", "r"), node("Reshape", "r s", "reshaped"), node("Exp", "reshaped", "y")]
    proto = model(nodes, {"x": [4, 6], "s": [2]}, ["y"], dtypes={"s": TensorProto.INT64})
    counted = profile(proto)
    assert counted.uncounted == (
        Uncounted("reshaped", "Reshape", DATA_DEPENDENT),
        Uncounted("y", "Exp", DATA_DEPENDENT),
    )
    assert counted.coverage_percent == pytest.approx(100 / 3)
    assert counted.ops[1].outputs == ("?",)
    assert counted.flops == 24


def test_an_op_without_a_formula_is_listed(monkeypatch):
    monkeypatch.setattr(counts, "find", lambda name: replace(find(name), cost=None) if name == "Relu" else find(name))
    counted = profile(small_convnet(), dims={"batch": 1})
    assert counted.uncounted == (Uncounted("relu1", "Relu", NO_FORMULA),)
    assert counted.coverage_percent == pytest.approx(100 * 10 / 11)


def test_a_fused_epilogue_is_part_of_its_node():
    from graph.ir import Fused
    from graph.shapes import bind, propagate

    graph = read(small_convnet()).graph
    conv, relu, *others = graph.nodes
    fused = replace(conv, outputs=relu.outputs, epilogue=(Fused("Relu", ("",), relu.attrs, origin="relu1"),))
    optimised = replace(graph, nodes=(fused, *others))
    inputs = bind(graph, dims={"batch": 2})
    (first, *_), (bare, *_) = (counts.count_nodes(g, propagate(g, inputs)) for g in (optimised, graph))
    assert first.macs == bare.macs
    assert first.other_flops == bare.other_flops + 2 * 8 * 196
    assert first.moved_bytes == bare.moved_bytes


def conditional(condition_known: bool):
    small = branch("then", node("Relu", "x", "a"), output="a")
    large = branch("else", node("MatMul", "x w", "b"), output="b")
    nodes = [node("If", "c", "y", name="choice", then_branch=small, else_branch=large)]
    inputs = {"x": [8, 8]} if condition_known else {"x": [8, 8], "c": []}
    weights = {"w": random(8, 8), **({"c": np.array(True)} if condition_known else {})}
    return model(nodes, inputs, ["y"], weights, dtypes={"c": TensorProto.BOOL})


def test_if_with_a_known_condition_counts_its_branch():
    counted = profile(conditional(condition_known=True))
    assert (counted.macs, counted.other_flops) == (0, 64)
    assert counted.coverage_percent == 100


def test_if_with_an_open_condition_counts_the_costlier_branch_and_says_so():
    counted = profile(conditional(condition_known=False))
    assert counted.macs == 8 * 8 * 8
    assert counted.params == 64
    assert "costlier branch" in counted.ops[0].reason
    assert [op.name for op in counted.ops[0].body] == ["b"]


def loop(trips: int | None, *, goes_on: str = "Identity"):
    """Return a model that computes state = relu(state @ w) `trips` times. goes_on: op that makes the loop's condition."""
    info = helper.make_tensor_value_info
    condition = node("Identity", "cond", "go") if goes_on == "Identity" else node("Less", "i limit", "go")
    body = helper.make_graph(
        [condition, node("MatMul", "state w", "product"), node("Relu", "product", "next")],
        "body",
        [info("i", TensorProto.INT64, []), info("cond", TensorProto.BOOL, []), info("state", TensorProto.FLOAT, [4, 4])],
        [info("go", TensorProto.BOOL, []), info("next", TensorProto.FLOAT, [4, 4])],
    )
    inputs = {"x": [4, 4]} if trips is not None else {"x": [4, 4], "trips": []}
    constants = {"w": random(4, 4), "limit": np.int64(3), **({"trips": np.int64(trips)} if trips is not None else {})}
    nodes = [node("Loop", "trips _ x", "y", name="loop", body=body)]
    return model(nodes, inputs, ["y"], constants, dtypes={"trips": TensorProto.INT64})


@pytest.mark.parametrize("trips", [0, 1, 7])
def test_loop_with_a_known_trip_count_multiplies(trips):
    counted = profile(loop(trips))
    assert (counted.macs, counted.other_flops) == (trips * 64, trips * 16)
    assert counted.ops[0].executions == trips
    assert counted.params == 16


def test_loop_that_may_end_early_is_listed():
    counted = profile(loop(7, goes_on="Less"))
    (missing,) = counted.uncounted
    assert (missing.node, missing.op) == ("loop", "Loop")
    assert "may end early" in missing.reason
    assert counted.macs == 0


def test_loop_with_an_open_trip_count_is_listed():
    (missing,) = profile(loop(None)).uncounted
    assert missing.reason == "the trip count is only known at run time"


def test_a_node_that_is_not_counted_inside_a_body_is_named_with_its_path(monkeypatch):
    monkeypatch.setattr(counts, "find", lambda name: replace(find(name), cost=None) if name == "Relu" else find(name))
    counted = profile(loop(2))
    assert counted.uncounted == (Uncounted("loop/next", "Relu", NO_FORMULA),)
    assert counted.macs == 128
    assert counted.coverage_percent == 0


def test_scan_multiplies_by_the_length_of_its_axis():
    info = helper.make_tensor_value_info
    body = helper.make_graph(
        [node("Add", "state item", "next"), node("Identity", "next", "seen")],
        "body",
        [info("state", TensorProto.FLOAT, [3]), info("item", TensorProto.FLOAT, [3])],
        [info("next", TensorProto.FLOAT, [3]), info("seen", TensorProto.FLOAT, [3])],
    )
    proto = model(
        [node("Scan", "s x", "last all", name="scan", num_scan_inputs=1, body=body)], {"s": [3], "x": [5, 3]}, ["last", "all"]
    )
    (counted,) = profile(proto).ops
    assert counted.counted
    assert counted.executions == 5
    assert counted.other_flops == 5 * 3


def test_peak_memory_of_a_chain_by_hand():
    nodes = [node("MatMul", "x a", "wide"), node("MatMul", "wide b", "narrow"), node("MatMul", "narrow c", "y")]
    weights = {"a": random(10, 100), "b": random(100, 20), "c": random(20, 5)}
    counted = profile(model(nodes, {"x": [1, 10]}, ["y"], weights))
    assert [point.live_bytes for point in counted.timeline] == [op.live_bytes for op in counted.ops]
    x, wide, narrow, y = 4 * 10, 4 * 100, 4 * 20, 4 * 5
    assert [point.live_bytes for point in counted.timeline] == [x + wide, x + wide + narrow, x + narrow + y]
    assert counted.peak_activation_bytes == x + wide + narrow
    assert counted.arena_lower_bound_bytes <= counted.arena_bytes


def test_memory_leaves_out_what_never_runs():
    nodes = [node("Transpose", "w", "wt", perm=[1, 0]), node("MatMul", "x wt", "y")]
    counted = profile(model(nodes, {"x": [1, 4]}, ["y"], {"w": random(1000, 4)}))
    assert counted.peak_activation_bytes == 4 * 4 + 4 * 1000
    assert [point.node for point in counted.timeline] == ["y"]


def test_profile_takes_bytes_paths_and_loaded_models(tmp_path):
    proto = small_convnet()
    path = tmp_path / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    expected = profile(proto, dims={"batch": 1}).macs
    for source in (proto.SerializeToString(), path, str(path), read(proto)):
        assert profile(source, shapes={"x": (1, 3, 14, 14)}).macs == expected


def test_profile_carries_the_digest_of_the_model():
    assert profile(small_convnet(), dims={"batch": 1}).digest == read(small_convnet()).digest


def test_cost_and_profile_agree_on_flops():
    bare = OpProfile(0, "n", "Conv", (), (), (), (), macs=5, other_flops=3)
    assert bare.flops == Cost(5, 3).flops == 13
    assert bare.intensity == 0
