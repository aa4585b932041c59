from __future__ import annotations

from typing import Any

import pytest

from graph.errors import FeedError
from profiler.counting.counts import profile
from profiler.counting.sweep import sweep
from profiler.errors import SweepError
from tests.profiler import zoo
from tests.profiler.models import model, node, random, small_convnet


def test_sweep_gives_the_profile_at_every_size():
    for point, batch in zip(sweep(small_convnet(), {"batch": [1, 2, 8]}), (1, 2, 8), strict=True):
        expected = profile(small_convnet(), dims={"batch": batch})
        assert point.dims == {"batch": batch}
        for figure in ("macs", "other_flops", "flops", "read_bytes", "write_bytes", "peak_activation_bytes", "intensity"):
            assert getattr(point, figure) == getattr(expected, figure), figure


def test_sweep_over_two_dimensions_varies_the_last_fastest():
    proto = model([node("MatMul", "x w", "y")], {"x": ["rows", "inner", 4]}, ["y"], {"w": random(4, 3)})
    points = sweep(proto, {"rows": [1, 2], "inner": [5, 7]})
    assert [(p.dims["rows"], p.dims["inner"]) for p in points] == [(1, 5), (1, 7), (2, 5), (2, 7)]
    assert [p.macs for p in points] == [rows * inner * 12 for rows, inner in ((1, 5), (1, 7), (2, 5), (2, 7))]


def test_intensity_grows_with_the_batch():
    intensities = [point.intensity for point in sweep(zoo.mobilenet_v2("n"), {"n": [1, 4, 16]})]
    assert intensities == sorted(intensities)
    assert intensities[0] < intensities[-1]


def test_sweep_of_shapes_and_dims_together():
    shapes: dict[str, Any] = {"x": ["n", 4], "s": [None]}
    proto = model([node("Mul", "x s", "y")], shapes, ["y"])
    (point,) = sweep(proto, {"n": [3]}, shapes={"s": (4,)})
    assert point.flops == 12


@pytest.mark.parametrize("dims", [{}, {"batch": []}, {"batch": range(1001)}], ids=["no_dims", "no_sizes", "too_many"])
def test_sweep_over_nothing_or_too_much(dims):
    with pytest.raises(SweepError, match="need 1 … 1000"):
        sweep(small_convnet(), dims)


def test_sweep_over_a_dimension_that_does_not_exist():
    with pytest.raises(FeedError, match="'n' does not exist"):
        sweep(small_convnet(), {"n": [1]})
