"""Resizing inside of graphs, against the numpy backend and ONNX Runtime."""

import itertools

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from graph.choice import Choice
from graph.native.engine import Native
from graph.run.executor import Executor
from kernels.errors import UnsupportedError
from tests.graph.native.nets import graph_of, image, normal, weights
from tests.graph.oracle import NATIVE, check_native, check_on, constant, in_numpy, ints, kernels, make, node, port
from tests.kernels.native.conftest import HOST_ISAS
from tests.machines import MACHINES

COORDINATES = (
    "half_pixel",
    "half_pixel_symmetric",
    "pytorch_half_pixel",
    "align_corners",
    "asymmetric",
    "tf_half_pixel_for_nn",
    "tf_crop_and_resize",
)
ROUNDINGS = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")


def check_scales(shape, scales, **attrs):
    """Resize by several pairs of scales. One instruction set suffices, the widest, since only the tables of kernels differ."""
    nodes = [node("Resize", ["x", "roi", f"s{n}"], [f"y{n}"], axes=[2, 3], **attrs) for n in range(len(scales))]
    constants = [constant("roi", (0.1, 0.2, 1.2, 0.9)), *(constant(f"s{n}", pair) for n, pair in enumerate(scales))]
    proto = make(nodes, [f"y{n}" for n in range(len(scales))], constants, image(*shape), opset=19)
    check_native(proto, {"x": normal(*shape)}, HOST_ISAS[-1], oracle=in_numpy)


@pytest.mark.parametrize(("mode", "rounding"), [*((("nearest", r)) for r in ROUNDINGS), ("linear", "floor"), ("cubic", "floor")])
@pytest.mark.parametrize("coordinates", COORDINATES)
def test_every_mode_of_coordinates_and_rounding(coordinates, mode, rounding):
    attrs = {"mode": mode, "coordinate_transformation_mode": coordinates, "nearest_mode": rounding, "extrapolation_value": 2.5}
    check_scales((2, 3, 5, 7), [(2, 3), (0.6, 1.7), (1, 2)], **attrs)


@pytest.mark.parametrize(("mode", "antialias", "exclude"), [*itertools.product(("linear", "cubic"), (0, 1), (0, 1))])
def test_filters_against_aliasing_and_edges_left_out(mode, antialias, exclude):
    attrs = {"mode": mode, "antialias": antialias, "exclude_outside": exclude, "cubic_coeff_a": -0.5}
    check_scales((1, 5, 23, 31), [(0.3, 0.5), (2, 0.15), (0.09, 1)], **attrs)


def test_one_dimension_and_sizes_of_some_axes(isa):
    nodes = [node("Resize", ["x", "", "", "sizes"], ["y"], mode="linear", axes=[2])]
    check_native(make(nodes, ["y"], [ints("sizes", 25)], image(2, 9, 11), opset=18), {"x": normal(2, 9, 11)}, isa)
    nodes = [node("Resize", ["x", "", "", "sizes"], ["y"], mode="cubic", axes=[3, 2])]
    check_native(make(nodes, ["y"], [ints("sizes", 9, 14)], image(1, 9, 6, 7), opset=18), {"x": normal(1, 9, 6, 7)}, isa)


@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_older_forms(isa, mode):
    nodes = [node("Upsample", ["x", "scales"], ["a"], mode=mode), node("Add", ["a", "a"], ["y"])]
    proto = make(nodes, ["y"], [constant("scales", (1, 1, 2, 3))], image(1, 6, 4, 5), opset=9)
    check_native(proto, {"x": normal(1, 6, 4, 5)}, isa)
    nodes = [node("Resize", ["x", "scales"], ["y"], mode=mode)]
    proto = make(nodes, ["y"], [constant("scales", (1, 1, 2, 3))], image(1, 6, 4, 5), opset=10)
    check_native(proto, {"x": normal(1, 6, 4, 5)}, isa)


@pytest.mark.parametrize("threads", [1, 2])
def test_pyramid_of_features_adds_in_the_resize(machine, threads):
    """A feature pyramid of three levels: each is resized to the one above and added to a 1×1 convolution of that."""
    nearest = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    nodes = [
        node("Conv", ["x", "w0"], ["c0"], strides=[2, 2], pads=[1] * 4), node("Relu", ["c0"], ["r0"]),
        node("Conv", ["r0", "w1"], ["c1"], strides=[2, 2], pads=[1] * 4), node("Relu", ["c1"], ["r1"]),
        node("Conv", ["r1", "w2"], ["c2"], strides=[2, 2], pads=[1] * 4), node("Relu", ["c2"], ["r2"]),
        node("Conv", ["r0", "l0"], ["p0"]), node("Conv", ["r1", "l1"], ["p1"]), node("Conv", ["r2", "l2"], ["p2"]),
        node("Resize", ["p2", "", "s2"], ["u2"], **nearest),
        node("Add", ["p1", "u2"], ["q1"]),
        node("Resize", ["q1", "", "s2"], ["u1"], **nearest),
        node("Add", ["p0", "u1"], ["q0"]), node("Conv", ["q0", "o0"], ["y"], pads=[1] * 4),
    ]  # fmt: skip
    constants = [
        weights("w0", 12, 3, 3, 3), weights("w1", 20, 12, 3, 3), weights("w2", 24, 20, 3, 3), weights("l0", 18, 12, 1, 1),
        weights("l1", 18, 20, 1, 1), weights("l2", 18, 24, 1, 1), weights("o0", 18, 18, 3, 3), constant("s2", (1, 1, 2, 2)),
    ]  # fmt: skip
    proto = make(nodes, ["y"], constants, image(1, 3, 32, 48))
    calls = check_on(machine, proto, {"x": normal(1, 3, 32, 48)}, threads=threads)
    assert sum(name.startswith("f32_resize") for name in kernels(calls)) == 2
    assert not any(name.startswith("f32_map") for name in kernels(calls))


def test_resize_writes_straight_into_a_concat(machine):
    c = machine.lanes
    nodes = [
        node("Conv", ["x", "w0"], ["a"]), node("MaxPool", ["a"], ["b"], kernel_shape=[2, 2], strides=[2, 2]),
        node("Resize", ["b", "", "s"], ["d"], mode="linear"), node("Concat", ["d", "a"], ["e"], axis=1),
        node("Conv", ["e", "w1"], ["f"]), node("GlobalMaxPool", ["f"], ["y"]),
    ]  # fmt: skip
    constants = [weights("w0", 2 * c, 3, 1, 1), weights("w1", c, 4 * c, 1, 1), constant("s", (1, 1, 2, 2))]
    calls = check_on(machine, make(nodes, ["y"], constants, image(1, 3, 8, 8)), {"x": normal(1, 3, 8, 8)})
    assert sum("copy" in name or "map" in name for name in kernels(calls)) <= 1  # the skip, which the pool reads too


@pytest.mark.parametrize(
    ("inputs", "says"),
    [(["x", "", "s"], "its shapes are only known at run time"), (["x", "", "t"], "it resizes the batch or channels")],
)
def test_what_stays_in_numpy_says_why(inputs, says):
    ports = [*image(1, 2, 3, 3), port("s", [4])]
    proto = make([node("Resize", inputs, ["y"])], ["y"], [constant("t", (1, 2, 1, 1))], ports)
    graph, specs = graph_of(proto, {"x": normal(1, 2, 3, 3), "s": np.array([1, 1, 2, 2], np.float32)})
    (reason,) = NATIVE.refusals(graph, specs).values()
    assert says in reason


def test_region_that_no_mode_reads_may_come_at_run_time(isa):
    ports = [*image(1, 5, 3, 4), port("region", [8])]
    proto = make([node("Resize", ["x", "region", "t"], ["y"], mode="linear")], ["y"], [constant("t", (1, 1, 2, 3))], ports)
    check_native(proto, {"x": normal(1, 5, 3, 4), "region": normal(8)}, isa)


def test_every_candidate_gives_the_same_result():
    proto = make([node("Resize", ["x", "", "s"], ["y"], name="r", mode="linear")], ["y"], [constant("s", (1, 1, 2, 2.5))],
                 image(1, 40, 6, 7))  # fmt: skip
    feeds = {"x": normal(1, 40, 6, 7)}
    graph, specs = graph_of(proto, feeds)
    wanted, (resized,) = in_numpy(proto, feeds)["y"], graph.nodes
    choices = NATIVE.candidates(resized, graph, specs, 2)
    for machine in MACHINES:
        offered = Native(machine, cache=None).candidates(resized, graph, specs, 2)
        assert {choice.algorithm for choice in offered} == {"direct", "separable"}
    for choice in (*choices, Choice("native", "direct"), Choice("native", "separable")):
        executor = Executor(graph, specs, {"r": choice}, threads=2, backend=NATIVE)
        np.testing.assert_allclose(executor.run(feeds)["y"], wanted, rtol=0, atol=1e-5)


def test_choices_that_do_not_exist_are_refused():
    proto = make([node("Resize", ["x", "", "s"], ["y"], name="r", mode="linear", antialias=1)], ["y"],
                 [constant("s", (1, 1, 0.1, 0.1))], image(1, 4, 60, 60), opset=18)  # fmt: skip
    graph, specs = graph_of(proto, {"x": normal(1, 4, 60, 60)})
    for choice, says in (
        (Choice("native", "direct"), "a row has 20 taps, 8 at most go directly"),
        (Choice("native", "separable", (("tile", "4"),)), "need pixels x vectors"),
    ):
        with pytest.raises(UnsupportedError, match=says):
            Executor(graph, specs, {"r": choice}, backend=NATIVE)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_any_resize(data):
    size = data.draw(st.tuples(st.integers(1, 2), st.integers(1, 20), st.integers(1, 14), st.integers(1, 14)))
    wanted = [*size[:2], data.draw(st.integers(1, 30)), data.draw(st.integers(1, 30))]
    mode = data.draw(st.sampled_from(["nearest", "linear", "cubic"]))
    attrs = {
        "mode": mode,
        "coordinate_transformation_mode": data.draw(st.sampled_from(COORDINATES)),
        "nearest_mode": data.draw(st.sampled_from(ROUNDINGS)),
        "exclude_outside": data.draw(st.integers(0, 1)) if mode == "cubic" else 0,
        "antialias": data.draw(st.integers(0, 1)) if mode != "nearest" else 0,
        "extrapolation_value": data.draw(st.sampled_from([0.0, -3.5])),
    }
    roi = data.draw(st.lists(st.floats(-0.5, 1.5, width=32), min_size=4, max_size=4))
    nodes = [node("Resize", ["x", "roi", "", "sizes"], ["a"], axes=[2, 3], **attrs), node("Add", ["a", "z"], ["y"])]
    inputs = [*image(*size), port("z", wanted)]
    proto = make(nodes, ["y"], [constant("roi", roi), ints("sizes", *wanted[2:])], inputs, opset=19)
    feeds = {"x": normal(*size), "z": normal(*wanted)}
    check_native(proto, feeds, data.draw(st.sampled_from(HOST_ISAS)), threads=data.draw(st.integers(1, 2)), oracle=in_numpy)
