"""Resizing on a GPU against float64."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from kernels.cuda.families.resize import Resize, table_of
from kernels.resampling import Axis, resize_axis
from tests.kernels.cuda.families import product_cases as expressions
from tests.kernels.cuda.families.cases import STORAGES, assert_close, draw, padded, poison

pytestmark = pytest.mark.gpu


def passes(size, out, **given):
    attributes: dict[str, Any] = {
        "mode": "linear",
        "coordinate_transformation_mode": "half_pixel",
        "nearest_mode": "round_prefer_floor",
        "cubic_coeff_a": -0.75,
        "antialias": 0,
        "exclude_outside": 0,
    } | given
    return [resize_axis(Axis(axis, size[axis], out[axis], (out[axis], size[axis])), **attributes) for axis in range(2)]


def matrix(along, size):
    made = np.zeros((len(along.index), size))
    weights = np.ones(along.index.shape) if along.weights is None else along.weights
    np.add.at(made, (np.arange(len(made))[:, None], along.index), weights)
    return made


WAYS: dict[str, dict[str, Any]] = {
    "nearest": {"mode": "nearest"},
    "nearest_asymmetric": {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
    "linear": {},
    "align_corners": {"coordinate_transformation_mode": "align_corners"},
    "cubic": {"mode": "cubic"},
    "antialias": {"antialias": 1},
}


@pytest.mark.parametrize("channels", [64, 3, 20])
@pytest.mark.parametrize("sizes", [((7, 9), (14, 18)), ((13, 8), (5, 11)), ((4, 4), (4, 4))], ids=str)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("storage", STORAGES)
def test_resize(gpu, storage, way, sizes, channels):
    size, out = sizes
    rows, columns = passes(size, out, **WAYS[way])
    x = draw((2, *size, channels), storage)
    residual = draw((2, *out, channels), storage, 1)
    resize = Resize(2, size, channels, rows, columns, y_stride=channels + 8, others=(channels,))
    y = poison((2, *out, channels + 8), storage)
    arrays = {"x": x, "y": y, "rows": table_of(rows), "columns": table_of(columns), "r0": residual}
    memory = {name: gpu.upload(array) for name, array in arrays.items()}
    launch = resize.launch(storage, expression=expressions.ADD, **{name: name for name in memory})
    gpu.run(dataclasses.replace(launch, blocks=2), memory)
    found = memory["y"].read(y)
    vertical, horizontal = matrix(rows, size[0]), matrix(columns, size[1])
    values = x.astype(np.float64)
    truth = np.einsum("yh,xw,nhwc->nyxc", vertical, horizontal, values)
    sizes_of = np.einsum("yh,xw,nhwc->nyxc", np.abs(vertical), np.abs(horizontal), np.abs(values))
    other = residual.astype(np.float64)
    assert_close(found[..., :channels], truth + other, storage, sizes_of + np.abs(other))
    assert np.isnan(found[..., channels:].astype(np.float32)).all()


def test_input_pixels_may_lie_apart(gpu):
    rows, columns = passes((5, 6), (10, 12))
    x, y = draw((1, 5, 6, 16), "fp32"), poison((1, 10, 12, 16))
    resize = Resize(1, (5, 6), 16, rows, columns, x_stride=24)
    arrays = {"x": padded(x, 24), "y": y, "rows": table_of(rows), "columns": table_of(columns)}
    memory: dict[str, Any] = {name: gpu.upload(array) for name, array in arrays.items()}
    gpu.run(resize.launch("fp32", x="x", y="y", rows="rows", columns="columns"), memory)
    truth = np.einsum("yh,xw,nhwc->nyxc", matrix(rows, 5), matrix(columns, 6), x.astype(np.float64))
    assert_close(memory["y"].read(y), truth, "fp32", 8.0)
