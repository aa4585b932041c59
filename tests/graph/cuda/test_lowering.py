"""Where values lie, which launches a graph becomes, and what is refused."""

import numpy as np
import pytest

from graph.budget import RunBudget
from graph.choice import Choice
from graph.cuda.engine import Cuda
from graph.cuda.facts import Facts
from graph.cuda.gpu import Gpu
from graph.cuda.layouts import in_order_of, matrix_of, new_view
from graph.cuda.lowering import round_to_tf32
from graph.cuda.ranking import estimated_ns
from graph.cuda.rules.table import refusal
from graph.formats.registry import read
from graph.passes.optimise import optimise
from graph.shapes import bind
from kernels.cuda.families.candidates import candidates
from kernels.cuda.families.problem import Problem
from kernels.errors import UnsupportedError
from kernels.native.memory.view import View
from tests.graph.cuda.simulated import lower_graph, simulate
from tests.graph.cuda.small import MODELS
from tests.graph.oracle import INT64, constant, ints, make, node, port
from tests.kernels.cuda.fake import FakeCuda, fake_driver


def lowered(name, precision="fp32", choices=None):
    proto, _ = MODELS[name]()
    return lower_graph(read(proto).graph, precision, choices)


def kernels(segment):
    return [launch.kernel.name for launch in segment.launches]


def test_results_are_written_into_the_concatenation_that_they_begin_at_16_bytes_of():
    names = [kernel.partition("_")[2] for kernel in kernels(lowered("joined"))]
    assert sum("map" in name or "transpose" in name for name in names) == 3, "x to channels last, c2 and x into the channels"


def test_products_of_one_value_are_one_launch():
    products = (launch for launch in lowered("products").launches if "product" in launch.kernel.name)
    assert next(launch.told.n for launch in products) == 16 + 16 + 24


def test_the_launch_before_a_large_product_fetches_its_weights():
    nodes = [node("Tanh", ["x"], ["a"]), node("MatMul", ["a", "w"], ["y"])]
    graph = read(make(nodes, ["y"], [constant("w", np.ones((512, 512)))], [port("x", [64, 512])])).graph
    segment = lower_graph(graph, "fp32")
    first, second = segment.launches
    assert (first.told.ahead_lines, second.told.ahead_lines) == (512 * 512 * 4 // 128, 0)
    assert first.names["ahead"] == second.names["w"]


@pytest.mark.parametrize("columns", [64, 16384])
def test_small_weights_and_huge_ones_are_not_fetched_ahead(columns):
    nodes = [node("Tanh", ["x"], ["a"]), node("MatMul", ["a", "w"], ["y"])]
    graph = read(make(nodes, ["y"], [constant("w", np.ones((512, columns)))], [port("x", [64, 512])])).graph
    assert lower_graph(graph, "fp32").launches[0].told.ahead_lines == 0


def test_constants_beyond_the_range_of_fp16_are_infinite():
    nodes = [node("Mul", ["x", "c"], ["y"])]
    graph = read(make(nodes, ["y"], [constant("c", [1.0, -3e38] * 3)], [port("x", [2, 6])])).graph
    found = simulate(lower_graph(graph, "fp16"), {"x": np.ones((2, 6), np.float32)})["y"]
    assert found[0].tolist() == [1, -np.inf] * 3


def test_weights_are_rounded_to_tf32_to_even():
    given = np.array([1, 1 + 2.0**-11, 1 + 3 * 2.0**-11, -1 - 2.0**-12, np.inf, 0], np.float32)
    assert round_to_tf32(given).tolist() == [1, 1, 1 + 2.0**-9, -1, np.inf, 0]


def test_a_product_of_few_rows_has_a_warp_for_each_result():
    assert any("vector" in name for name in kernels(lowered("squeezed")))


def test_long_columns_of_few_are_reduced_in_parts():
    parts = [launch.told.n for launch in lowered("reduced").launches if "of_columns" in launch.kernel.name]
    assert parts == [32, 32]


def test_values_that_are_never_held_together_share_memory():
    segment = lowered("residual")
    layout = segment.lay_out()
    assert layout.arena_bytes < sum(storage.nbytes for storage in layout.offsets)


def test_chosen_option_is_launched_and_gives_the_same():
    proto, feeds = MODELS["residual"]()
    first = lower_graph(read(proto).graph, "tf32")
    at, call = next((at, call) for at, call in enumerate(first.calls) if len(call.options) > 2)
    node = first.nodes[call.node].name
    option = next(option for option in reversed(call.options) if dict(option.params)["slices"] != "1")
    segment = lower_graph(read(proto).graph, "tf32", {node: Choice("cuda", call.algorithm, option.params, "tf32")})
    assert segment.launches[at].kernel.name == option.launch.kernel.name
    np.testing.assert_allclose(simulate(segment, feeds)["y"], simulate(first, feeds)["y"], rtol=1e-5, atol=1e-5)


REFUSED = {
    "its weights are not constants": make(
        [node("Conv", ["x", "w"], ["y"])], ["y"], [], [port("x", [1, 8, 4, 4]), port("w", [8, 8, 1, 1])]
    ),
    "need multiples of 8": make(
        [node("Conv", ["x", "w"], ["y"], group=2)], ["y"], [constant("w", np.ones((8, 4, 1, 1)))], [port("x", [1, 8, 4, 4])]
    ),
    "it goes backwards": make(
        [node("Slice", ["x", "s", "e", "a", "t"], ["y"])],
        ["y"],
        [ints("s", -1), ints("e", -7), ints("a", 1), ints("t", -1)],
    ),
    "NonZero has no form for GPUs": make([node("NonZero", ["x"], ["y"])], {"y": INT64}),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_nodes_are_refused_with_a_reason(reason):
    graph = read(REFUSED[reason]).graph
    made = optimise(graph, bind(graph, {}))
    assert reason in (refusal(made.graph.nodes[0], Facts(made.specs, made.graph.constants)) or "")


def cuda():
    return Cuda("fp32", Gpu(fake_driver(FakeCuda()).device()))


def test_refused_nodes_are_left_for_numpy():
    nodes = [node("Relu", ["x"], ["a"]), node("NonZero", ["a"], ["i"]), node("Exp", ["x"], ["y"])]
    graph = read(make(nodes, {"i": INT64, "y": 1})).graph
    made = optimise(graph, bind(graph, {}))
    rest, segments = cuda().lowered(made.graph, made.specs, 1, {}, RunBudget())
    assert [each.op for each in rest.nodes] == ["edgewise.Segment", "NonZero"]
    (segment,) = segments.values()
    assert {each.op for each in segment.nodes} == {"Relu", "Exp"}


def test_a_choice_for_a_refused_node_is_an_error():
    graph = read(make([node("NonZero", ["x"], ["y"], name="n")], {"y": INT64})).graph
    made = optimise(graph, bind(graph, {}))
    with pytest.raises(UnsupportedError, match=r"node 'n': cuda/map was chosen, but NonZero has no form for GPUs"):
        cuda().parts(made.graph, made.specs, {"n": Choice("cuda", "map")})


def test_precisions_that_a_gpu_does_not_have_are_refused():
    with pytest.raises(UnsupportedError, match=r"cuda: precision is 'int8', need one of fp32, tf32, bf16, fp16"):
        Cuda.of("int8")


def test_a_matrix_is_seen_where_one_stride_leads_along_its_rows():
    image = new_view((2, 8, 3, 5), "pixels")
    assert matrix_of(image, "pixels") == View((30, 8), (8, 1))
    assert matrix_of(image.sliced(1, 2, 4), "pixels") == View((30, 4), (8, 1), 2)
    assert matrix_of(View.dense((2, 8, 3, 5)), "pixels") is None
    assert matrix_of(image.sliced(3, 0, 4), "pixels") is None, "rows of pixels with gaps"


def test_new_memory_has_the_order_of_a_view_without_its_gaps():
    view = new_view((2, 8, 3, 5), "pixels").sliced(1, 0, 4)
    assert in_order_of(view) == new_view((2, 4, 3, 5), "pixels")


def test_deep_products_of_few_tiles_are_cut_along_their_depth_first():
    device = fake_driver(FakeCuda()).device()
    ranked = sorted(candidates("bf16", Problem(49, 512, 4608), device), key=lambda cut: estimated_ns(cut, device))
    assert ranked[0].slices * ranked[0].form.tile.deep > 4
    wide = sorted(candidates("bf16", Problem(100_000, 512, 512), device), key=lambda cut: estimated_ns(cut, device))
    assert wide[0].slices == 1
