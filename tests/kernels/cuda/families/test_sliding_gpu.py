"""Pools and depthwise convolutions on a GPU against float64."""

import dataclasses

import numpy as np
import pytest

from kernels.cuda.families.problem import Window
from kernels.cuda.families.sliding import WAYS, Windows
from tests.kernels.cuda.families import product_cases as expressions
from tests.kernels.cuda.families.cases import STORAGES, assert_close, draw, padded, poison
from tests.kernels.cuda.families.product_cases import patches, window

pytestmark = pytest.mark.gpu

CASES = {
    "2x2s2": window(2, 14, 64, 2, stride=2),
    "3x3s2": window(2, 15, 64, 3, stride=2, pad=1),
    "3x3_of_3": window(1, 9, 3, 3, pad=1),
    "3x3d2": window(1, 12, 20, 3, pad=2, dilation=2),
    "5x5": window(1, 11, 32, 5, pad=2),
    "7x7s3": window(3, 20, 8, 7, stride=3, pad=3),
    "5x3_uneven": Window(2, 9, 13, 24, (5, 3), (2, 1), (2, 0, 1, 1)),
    "1x1": window(2, 7, 17, 1),
}


def windowed(x: np.ndarray, w: Window, fill: float) -> np.ndarray:
    """Return (pixels, taps, channels) in float64, with `fill` in the padding."""
    top, left, bottom, right = w.padding
    whole = np.pad(x.astype(np.float64), ((0, 0), (top, bottom), (left, right), (0, 0)), constant_values=fill)
    inner = dataclasses.replace(w, height=whole.shape[1], width=whole.shape[2], padding=(0, 0, 0, 0))
    return patches(whole, inner).reshape(-1, w.kernel[0] * w.kernel[1], w.channels)


def compute(gpu, op, storage, windows, arrays, *, blocks=None, way=None, **options):
    pixels = windows.window.batch * windows.window.out[0] * windows.window.out[1]
    y = poison((pixels, windows.strides[1]), storage)
    memory = {name: gpu.upload(array) for name, array in (arrays | {"y": y}).items()}
    form = windows.form(op, storage, **options)
    if way is not None:
        form = dataclasses.replace(form, pixels=way[0], taps=way[1])
    launch = windows.launch(form, **{name: name for name in memory})
    gpu.run(dataclasses.replace(launch, blocks=blocks or launch.blocks), memory)
    return memory["y"].read(y)


WAY_IDS = [(pixels, taps) for pixels, each in WAYS.items() for taps in each]


@pytest.mark.parametrize("way", WAY_IDS, ids=str)
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("storage", STORAGES)
def test_max_pool(gpu, storage, name, way):
    w = CASES[name]
    x = draw((w.batch, w.height, w.width, w.channels), storage)
    found = compute(gpu, "max_pool", storage, Windows(w), {"x": x}, way=way)
    np.testing.assert_array_equal(found.astype(np.float64), windowed(x, w, -np.inf).max(1))


@pytest.mark.parametrize("way", WAY_IDS, ids=str)
@pytest.mark.parametrize("count_padding", [False, True])
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("storage", STORAGES)
def test_average_pool(gpu, storage, name, count_padding, way):
    w = CASES[name]
    x = draw((w.batch, w.height, w.width, w.channels), storage)
    found = compute(gpu, "average_pool", storage, Windows(w, count_padding=count_padding), {"x": x}, way=way)
    values = windowed(x, w, np.nan)
    counts = values.shape[1] if count_padding else (~np.isnan(values)).sum(1)
    assert_close(found, np.nansum(values, 1) / counts, storage, np.nansum(np.abs(values), 1))


@pytest.mark.parametrize("way", WAY_IDS, ids=str)
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("storage", STORAGES)
def test_depthwise(gpu, storage, name, way):
    w = CASES[name]
    x, kernel = draw((w.batch, w.height, w.width, w.channels), storage), draw((*w.kernel, w.channels), storage, 1)
    bias = draw((w.channels,), "fp32", 2)
    pixels = w.batch * w.out[0] * w.out[1]
    residual = draw((pixels, w.channels), storage, 3)
    arrays = {"x": x, "w": kernel, "bias": bias, "r0": residual}
    windows = Windows(w, others=(w.channels,))
    found = compute(gpu, "depthwise", storage, windows, arrays, way=way, bias=True, expression=expressions.ADD_RELU)
    terms = windowed(x, w, 0.0) * kernel.reshape(1, -1, w.channels).astype(np.float64)
    truth = np.maximum(terms.sum(1) + bias + residual.astype(np.float64), 0)
    assert_close(found, truth, storage, np.abs(terms).sum(1) + np.abs(bias) + np.abs(residual.astype(np.float64)))


@pytest.mark.parametrize("apart", [8, 3])
def test_pixels_that_lie_apart_and_few_blocks(gpu, apart):
    w = CASES["3x3s2"]
    x = draw((w.batch, w.height, w.width, w.channels), "bf16")
    pixel = w.channels + apart
    windows = Windows(w, x_stride=pixel, y_stride=pixel)
    found = compute(gpu, "max_pool", "bf16", windows, {"x": padded(x, pixel)}, blocks=2)
    np.testing.assert_array_equal(found[:, : w.channels].astype(np.float64), windowed(x, w, -np.inf).max(1))
    assert np.isnan(found[:, w.channels :].astype(np.float32)).all()


def test_nan_spreads_through_max_pool(gpu):
    w = window(1, 4, 8, 2, stride=2)
    x = draw((1, 4, 4, 8), "fp32")
    x[0, 1, 1, 3] = np.nan
    found = compute(gpu, "max_pool", "fp32", Windows(w), {"x": x}).reshape(2, 2, 8)
    assert np.isnan(found[0, 0, 3])
    assert np.isnan(found).sum() == 1
