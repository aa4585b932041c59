from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.spec import Spec
from profiler.counting.counts import OpProfile
from profiler.device.quiet import Quietness
from profiler.run.roofline import RooflinePoint, precision_of, roofline
from profiler.run.trace import trace
from tests.profiler.devices import device
from tests.profiler.timed import scripted

STEPS = 11


def points(step_ns, threads=1, batch=1) -> dict[str, RooflinePoint]:
    measured = trace(scripted([(step_ns, sum(step_ns) + 100)] * 2, batch), {}, runs=1, warmup=0)
    return {point.name: point for point in roofline(measured, device(), threads).points}


def test_a_compute_bound_step_is_under_the_peak():
    conv = points([100_000] * STEPS)["conv1"]  # 86 kFLOP over 9.5 kB: in L1
    assert conv.flops == 2 * 8 * 196 * 27 + 8 * 196
    assert (conv.bound, conv.level) == ("compute", "L1")
    assert conv.roof_ns == pytest.approx(conv.flops / 100e9 * 1e9)
    assert conv.roof_percent == pytest.approx(100 * conv.roof_ns / 100_000)
    assert conv.wasted_ns == pytest.approx(100_000 - conv.roof_ns)
    assert conv.attainable_flops_per_s == pytest.approx(100e9)
    assert conv.achieved_flops_per_s == pytest.approx(conv.flops / 100e-6)


def test_a_memory_bound_step_is_under_the_bandwidth():
    both = points([1_000] * STEPS)["both"]  # a Concat: no arithmetic
    assert (both.bound, both.flops, both.intensity) == ("memory", 0, 0)
    assert both.roof_ns == pytest.approx(both.moved_bytes / 400e9 * 1e9)
    assert both.attainable_flops_per_s == 0


def test_attainable_is_the_lower_of_peak_and_intensity_times_bandwidth():
    for point in points([1_000_000] * STEPS).values():
        expected = min(point.peak_flops_per_s, point.intensity * point.bandwidth_bytes_per_s)
        assert point.attainable_flops_per_s == pytest.approx(expected)
        if point.flops:
            assert point.attainable_flops_per_s == pytest.approx(1e9 * point.flops / point.roof_ns)


def test_more_threads_raise_the_roof():
    one, four = points([100_000] * STEPS), points([100_000] * STEPS, threads=4)
    assert four["conv1"].roof_ns == pytest.approx(one["conv1"].roof_ns / 4)


def test_a_larger_working_set_comes_from_an_outer_level():
    assert points([10**7] * STEPS, batch=1)["relu1"].level == "L1"
    assert points([10**7] * STEPS, batch=64)["relu1"].level == "L2"
    assert points([10**7] * STEPS, batch=4096)["relu1"].level == "DRAM"


def test_a_view_has_no_roof():
    measured = trace(scripted([([1000] * STEPS, 20_000)] * 2), {}, runs=1, warmup=0)
    placed = roofline(measured, device())
    assert "flat" in placed.skipped
    assert "flat" not in {point.name for point in placed.points}
    assert len(placed.points) + len(placed.skipped) == STEPS


def test_a_step_above_its_compute_roof_is_a_contradiction():
    conv = points([2_000] * STEPS, batch=4)["conv1"]
    assert conv.roof_percent > 105
    assert conv.contradiction.startswith("peak:")
    assert conv.wasted_ns == 0


def test_a_step_above_its_memory_roof_is_a_counting_contradiction():
    relu = points([1_000_000] * 1 + [50_000] * (STEPS - 1), batch=4096)["relu1"]
    assert relu.bound == "memory"
    assert relu.contradiction.startswith("counting:")


def test_what_the_clock_cannot_compare_has_no_roof():
    measured = trace(scripted([([0] * STEPS, 100)] * 2), {}, runs=1, warmup=0)
    placed = roofline(measured, device())  # the roof of conv1 is 877 ns, less than 20 steps of the clock of 50 ns
    assert "conv1" in placed.skipped
    assert "conv1" not in {point.name for point in placed.points}


def test_a_step_of_no_time_with_a_roof_that_the_clock_can_tell_is_a_contradiction():
    conv = points([0] * STEPS, batch=4)["conv1"]
    assert conv.measured_ns == 50  # a step of the clock: no percentage without end
    assert conv.roof_percent == pytest.approx(100 * conv.roof_ns / 50)
    assert conv.contradiction.startswith("peak:")


def test_a_roof_of_a_busy_machine_is_what_is_wrong():
    steady = device().stability.model_copy(update={"quietness": Quietness(level="busy", reasons=("other work",), lost=0.5)})
    measured = trace(scripted([([2_000] * STEPS, 30_000)] * 2, 4), {}, runs=1, warmup=0)
    placed = roofline(measured, device(stability=steady))
    conv = next(point for point in placed.points if point.name == "conv1")
    assert conv.contradiction == "peak: the device was busy with other work when it was measured, measure it again"


def test_noise_above_the_roof_is_no_contradiction():
    roof_ns = points([10**6] * STEPS, batch=4)["conv1"].roof_ns
    conv = points([round(roof_ns / 1.03)] * STEPS, batch=4)["conv1"]
    assert conv.roof_percent > 100
    assert conv.contradiction == ""


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 10**9), min_size=STEPS, max_size=STEPS))
def test_roof_and_waste_make_up_the_measured_time(step_ns):
    for point in points(step_ns).values():
        assert point.wasted_ns >= 0
        assert point.wasted_ns == pytest.approx(max(0, point.measured_ns - point.roof_ns))
        assert bool(point.contradiction) == (point.roof_percent > 105)


def test_totals_and_ranking():
    measured = trace(scripted([([10**6, *[10**5] * (STEPS - 1)], 10**7)] * 2), {}, runs=1, warmup=0)
    placed = roofline(measured, device())
    assert placed.wasted_ns == pytest.approx(sum(point.wasted_ns for point in placed.points))
    assert placed.most_wasted()[0].name == "conv1"
    assert placed.device == device().fingerprint


@pytest.mark.parametrize(
    ("dtype", "precision"), [("float32", "fp32"), ("float64", "fp64"), ("uint8", "int8"), ("float16", "fp32"), ("int64", "fp32")]
)
def test_precision_follows_the_first_input(dtype, precision):
    import numpy as np

    spec = Spec((2,), np.dtype(dtype))
    assert precision_of(OpProfile(0, "n", "Relu", ("x",), ("y",), (spec,), (spec,))) == precision
