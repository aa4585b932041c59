"""Where the outputs of a resized axis lie, what is chosen by it, and which axes are copied."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kernels.resampling import NEAREST, Axis, is_copied, resize_axis, tap_count

ATTRS: dict[str, Any] = {
    "mode": "nearest",
    "coordinate_transformation_mode": "asymmetric",
    "nearest_mode": "floor",
    "cubic_coeff_a": -0.75,
    "antialias": 0,
    "exclude_outside": 0,
}


def axis(size_in: int, size_out: int, scale: float) -> Axis:
    return Axis(0, size_in, size_out, scale.as_integer_ratio())


def test_a_nearest_input_is_chosen_in_single_precision() -> None:
    """In fp64 output 11 lies at 9.9999998, since 1.1 is a little more in fp32."""
    scale = float(np.float32(1.1))
    assert resize_axis(axis(12, 13, scale), **ATTRS).index[11, 0] == 10


@pytest.mark.parametrize(("mode", "chosen"), [("round_prefer_floor", 6), ("round_prefer_ceil", 7)])
def test_coordinates_near_the_middle_lie_there(mode: str, chosen: int) -> None:
    near = np.array([6.5 - 5e-7, 6.5, 6.5 + 5e-7])
    np.testing.assert_array_equal(NEAREST[mode](near), chosen)
    np.testing.assert_array_equal(NEAREST[mode](np.array([6.5 - 5e-6, 6.5 + 5e-6])), [6, 7])


@pytest.mark.parametrize(
    ("changes", "copied"),
    [
        ({}, True),
        ({"coordinate_transformation_mode": "half_pixel"}, False),
        ({"mode": "linear", "coordinate_transformation_mode": "half_pixel"}, True),
        ({"mode": "linear", "coordinate_transformation_mode": "half_pixel", "antialias": 1}, False),
        ({"mode": "cubic", "coordinate_transformation_mode": "half_pixel"}, False),
        ({"mode": "cubic", "coordinate_transformation_mode": "align_corners"}, True),
    ],
)
def test_an_axis_whose_size_stays_is_copied_as_pytorch_does(changes: dict[str, Any], *, copied: bool) -> None:
    assert is_copied(axis(10, 10, 1.05), **ATTRS | changes) == copied
    assert is_copied(axis(10, 10, 1.0), **ATTRS | changes)
    assert not is_copied(axis(10, 11, 1.1), **ATTRS | changes)


def test_a_crop_of_scale_1_is_no_copy() -> None:
    crop = {"coordinate_transformation_mode": "tf_crop_and_resize"}
    assert not is_copied(Axis(0, 10, 10, (1, 1), (0.25, 0.75)), **ATTRS | crop)
    assert is_copied(axis(10, 10, 1.0), **ATTRS | crop)


def test_a_filter_takes_more_inputs_where_it_shrinks() -> None:
    assert [tap_count(axis(10, 5, 0.5), mode, filtered) for mode in ("linear", "cubic") for filtered in (0, 1)] == [2, 4, 4, 8]
