"""What PyTorch computes where ONNX's text leaves room, written out one element at a time from its documented definitions.

PyTorch is no dependency of this project, so its formulas stand here: `interpolate`, `grid_sample` and the sizes of pools.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from kernels.registry import evaluate, find
from kernels.spec import Array, Spec
from kernels.windows import Sliding, window

SINGLE = np.float32
RESIZE = find("Resize")


def _output_size(size: int, scale: float) -> int:
    """Return floor(size · scale) of the number that a program wrote, before an exporter rounded it to fp32."""
    return math.floor(size * scale)


def _position(size: int, new: int, at: int, *, aligned: bool) -> float:
    if aligned:
        return at * (size - 1) / (new - 1) if new > 1 else 0.0
    return (at + 0.5) * size / new - 0.5


def _linear(line: Array, new: int, *, aligned: bool) -> list[float]:
    """Interpolate one line: a position below 0 counts as 0, and the pixel after the last is the last."""
    found = []
    for at in range(new):
        position = max(_position(len(line), new, at, aligned=aligned), 0.0)
        first = min(int(position), len(line) - 1)
        t = position - first
        found.append((1 - t) * line[first] + t * line[min(first + 1, len(line) - 1)])
    return found


def _cubic_weights(t: float, a: float = -0.75) -> list[float]:
    def near(d: float) -> float:
        return ((a + 2) * d - (a + 3)) * d * d + 1

    def far(d: float) -> float:
        return ((a * d - 5 * a) * d + 8 * a) * d - 4 * a

    return [far(t + 1), near(t), near(1 - t), far(2 - t)]


def _cubic(line: Array, new: int, *, aligned: bool) -> list[float]:
    """Interpolate one line: each of the four pixels is clamped to the line, the position is not."""
    found = []
    for at in range(new):
        position = _position(len(line), new, at, aligned=aligned)
        first = math.floor(position)
        weights = _cubic_weights(position - first)
        pixels = [line[min(max(first + k - 1, 0), len(line) - 1)] for k in range(4)]
        found.append(sum(w * x for w, x in zip(weights, pixels, strict=True)))
    return found


def test_sizes_are_those_of_the_scale_that_was_written() -> None:
    """An exporter stores the fp32 number nearest to a scale. The size that PyTorch made of it in fp64 is met from that number in
    fp32, but for a few, and missed more than five times as often in fp64.
    """
    pairs = [(size, hundredth / 100) for size in range(1, 65) for hundredth in range(50, 300)]
    missed = [pair for pair in pairs if _size_of_resize(*pair) != _output_size(*pair)]
    missed_in_double = [pair for pair in pairs if math.floor(pair[0] * float(SINGLE(pair[1]))) != _output_size(*pair)]
    assert 5 * len(missed) < len(missed_in_double)
    assert _size_of_resize(10, 1.3) == 13


def _size_of_resize(size: int, scale: float) -> int:
    x, scales = Spec((size,), np.dtype(np.int8)), Spec.of(np.array([scale], SINGLE))
    (y,) = RESIZE.infer_specs((x, None, scales), RESIZE.bind({}))
    return y.shape[0]


@pytest.mark.parametrize("mode", ["linear", "cubic"])
@pytest.mark.parametrize("aligned", [False, True], ids=["half_pixel", "align_corners"])
def test_a_line_is_interpolated_as_by_interpolate(mode: str, *, aligned: bool) -> None:
    rng = np.random.default_rng(5)
    attrs = {"mode": mode, "coordinate_transformation_mode": "align_corners" if aligned else "half_pixel"}
    definition = {"linear": _linear, "cubic": _cubic}[mode]
    for size, new in itertools.product((1, 2, 5, 9), (1, 2, 3, 5, 8, 14)):
        line = rng.standard_normal(size)
        y = evaluate(RESIZE, [line, None, None, np.array([new])], attrs)[0]
        np.testing.assert_allclose(y, definition(line, new, aligned=aligned), atol=1e-12, err_msg=f"{size} to {new}")


def test_corners_stay_aligned_when_the_size_was_rounded() -> None:
    line = np.random.default_rng(6).standard_normal(7)
    attrs = {"mode": "linear", "coordinate_transformation_mode": "align_corners"}
    y = evaluate(RESIZE, [line, None, np.array([1.5], SINGLE)], attrs)[0]
    np.testing.assert_allclose(y, _linear(line, _output_size(7, 1.5), aligned=True), atol=1e-12)
    assert y[-1] == line[-1]


@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("aligned", [False, True])
def test_cubic_grid_sample_pads_each_pixel(padding: str, *, aligned: bool) -> None:
    rng = np.random.default_rng(7)
    image, grid = rng.standard_normal((1, 1, 4, 5)), rng.uniform(-2.5, 2.5, (1, 3, 6, 2))
    attrs = {"mode": "cubic", "padding_mode": padding, "align_corners": int(aligned)}
    y = evaluate(find("GridSample"), [image, grid], attrs)[0]
    for at in itertools.product(range(3), range(6)):
        column, row = (
            (g + 1) / 2 * (size - 1) if aligned else ((g + 1) * size - 1) / 2 for g, size in zip(grid[0][at], (5, 4), strict=True)
        )
        top, left = math.floor(row), math.floor(column)
        total = 0.0
        for (r, by_row), (c, by_column) in itertools.product(
            enumerate(_cubic_weights(row - top)), enumerate(_cubic_weights(column - left))
        ):
            total += by_row * by_column * _pixel(image[0, 0], top + r - 1, left + c - 1, padding, aligned=aligned)
        assert y[0, 0][at] == pytest.approx(total, abs=1e-10)


def _pixel(image: Array, row: int, column: int, padding: str, *, aligned: bool) -> float:
    indices = []
    for index, size in zip((row, column), image.shape, strict=True):
        if padding == "zeros" and not 0 <= index < size:
            return 0.0
        inside = _reflected(index, size, aligned=aligned) if padding == "reflection" else index
        indices.append(int(min(max(inside, 0), size - 1)))
    return float(image[tuple(indices)])


def _reflected(index: float, size: int, *, aligned: bool) -> float:
    """Fold an index at the middles of the outer pixels, or at their outer sides, as often as it takes."""
    low, high = (0.0, size - 1.0) if aligned else (-0.5, size - 0.5)
    while not low <= index <= high:
        index = 2 * low - index if index < low else 2 * high - index
    return index


def test_pools_in_ceil_mode_have_as_many_places() -> None:
    """The last window starts in the input or in the padding before it; the first may reach over the end."""
    taken = 0
    for n, k, s, d, b, a in itertools.product(range(1, 8), (1, 2, 3, 5), (1, 2, 3), (1, 2), (0, 1), (0, 1)):
        extent = (k - 1) * d + 1
        places = (n + b + a - extent + s - 1) // s + 1
        if (places - 1) * s >= n + b:
            places -= 1
        if places >= 1:
            sliding = Sliding(strides=(s,), dilations=(d,), pads=(b, a))
            assert window("Pool", (n,), (k,), sliding, ceil_mode=True).out == (places,), (n, k, s, d, b, a)
            taken += n + b + a < extent
    assert taken, "no window is wider than its input"


def test_the_maximum_of_a_window_with_nan_is_nan() -> None:
    x = np.array([[[1, np.nan, 3, 2, np.nan, np.nan]]], np.float32)
    y, indices = evaluate(find("MaxPool"), [x], {"kernel_shape": (2,), "strides": (2,)})
    np.testing.assert_array_equal(y, [[[np.nan, 3, np.nan]]])
    np.testing.assert_array_equal(indices, [[[1, 2, 5]]])


def test_the_maximum_of_nothing_is_below_every_number() -> None:
    """A dilated window may step over the whole input; no element has its index."""
    attrs = {"kernel_shape": (2,), "dilations": (2,), "pads": (1, 1)}
    y, indices = evaluate(find("MaxPool"), [np.ones((1, 2, 1), np.float32)], attrs)
    np.testing.assert_array_equal(y, [[[-np.inf], [-np.inf]]])
    np.testing.assert_array_equal(indices, [[[-1], [-1]]])


def test_nearest_reflects_a_position_before_it_rounds_it() -> None:
    """The position 5.5 behind five pixels is 3.5 in front of their end, which is rounded to the even pixel 4."""
    x, grid = np.arange(5, dtype=np.float32).reshape(1, 1, 5), np.array([[[1.4]]], np.float32)
    y = evaluate(find("GridSample"), [x, grid], {"mode": "nearest", "padding_mode": "reflection"})[0]
    assert y.item() == 4
