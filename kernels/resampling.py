"""Resampling of one axis: where every output lies in the input, and the inputs and weights that it is made of.

PyTorch's and ONNX Runtime's formulas are followed where ONNX's text is read in two ways (`docs/numerics.md`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from kernels.record import record
from kernels.spec import Array


@record
class Axis:
    """One axis to resize. ratio: the scale as two whole numbers, a given one's or size_out / size_in where sizes are given."""

    axis: int
    size_in: int
    size_out: int
    ratio: tuple[int, int]
    roi: tuple[float, float] = (0.0, 1.0)

    @property
    def scale(self) -> float:
        """The scale in fp64: exactly the given one."""
        return self.ratio[0] / self.ratio[1]

    @property
    def plain(self) -> Axis:
        """This axis with plain numbers: sizes that depend on symbols are guarded to have the values of their hints."""
        over, under = self.ratio
        return replace(self, size_in=int(self.size_in), size_out=int(self.size_out), ratio=(int(over), int(under)))


def _half_pixel(a: Axis, x: Array) -> Array:
    return (x + 0.5) / a.scale - 0.5


def _half_pixel_symmetric(a: Axis, x: Array) -> Array:
    """Half pixels, moved so that the images' centres meet although size_out was rounded."""
    width = np.multiply(a.scale, a.size_in, dtype=x.dtype)
    moved = a.size_in / 2 * (1 - a.size_out / width)
    rounded = replace(a, ratio=float(x.dtype.type(a.scale)).as_integer_ratio())
    y: Array = (_half_pixel(rounded, x.astype(np.float64)) + moved).astype(x.dtype)
    return y


def _crop(a: Axis, x: Array) -> Array:
    start, end = a.roi
    last = a.size_in - 1
    if a.size_out == 1:
        return np.full_like(x, 0.5 * (start + end) * last)
    extent = np.subtract(end, start, dtype=x.dtype)
    y: Array = np.multiply(start, last, dtype=x.dtype) + x * extent * last / (a.size_out - 1)
    return y


COORDINATES: dict[str, Callable[[Axis, Array], Array]] = {
    "half_pixel": _half_pixel,
    "half_pixel_symmetric": _half_pixel_symmetric,
    "pytorch_half_pixel": lambda a, x: _half_pixel(a, x) if a.size_out > 1 else x * 0.0,
    "align_corners": lambda a, x: x * (a.size_in - 1) / (a.size_out - 1) if a.size_out > 1 else x * 0.0,
    "asymmetric": lambda a, x: x / a.scale,
    "tf_half_pixel_for_nn": lambda a, x: (x + 0.5) / a.scale,
    "tf_crop_and_resize": _crop,
}
NEAREST: dict[str, Callable[[Array], Array]] = {
    "round_prefer_floor": lambda x: np.ceil(x - 0.5 - HALFWAY),
    "round_prefer_ceil": lambda x: np.floor(x + 0.5 + HALFWAY),
    "floor": np.floor,
    "ceil": np.ceil,
}
HALFWAY = 1e-6  # a coordinate as near as this to the middle of two inputs lies there; ONNX Runtime has the same tolerance


@dataclass(frozen=True, slots=True, eq=False)
class Pass:
    """The interpolation along one axis. index: (size_out, taps), the inputs of every output. weights: of these inputs, None where
    each output is a copy of one input. outside: (size_out,), outputs that get the extrapolation value."""

    axis: int
    index: Array
    weights: Array | None
    outside: Array

    @property
    def copies(self) -> bool:
        """Whether every output is one input."""
        return self.weights is None and not self.outside.any()


def leaves_alone(step: Pass, size_in: int) -> bool:
    """Whether every output of a pass is the input at its position, and there are as many."""
    return step.copies and np.array_equal(step.index[:, 0], np.arange(size_in))


def resize_axis(plan: Axis, **attrs: Any) -> Pass:
    """Return the interpolation along one axis. attrs: those of Resize."""
    plan, place, mode = plan.plain, attrs["coordinate_transformation_mode"], attrs["mode"]
    outside = np.zeros(plan.size_out, bool)
    if place == "tf_crop_and_resize":
        rounded = _coordinates(plan, place, np.float32)
        outside = (rounded < 0) | (rounded > plan.size_in - 1)
    if mode == "nearest":
        nearest = NEAREST[attrs["nearest_mode"]](_coordinates(plan, place, np.float32))
        return Pass(plan.axis, np.clip(nearest, 0, plan.size_in - 1).astype(np.intp)[:, None], None, outside)
    coordinates = _coordinates(plan, place)
    taps = _taps(plan, coordinates, mode, attrs["cubic_coeff_a"], attrs["antialias"], attrs["exclude_outside"])
    return Pass(plan.axis, *taps, outside)


def _taps(plan: Axis, x: Array, mode: str, a: float, antialias: int, exclude_outside: int) -> tuple[Array, Array]:
    """Indices and weights, both (size_out, taps). A tap beyond an edge reads the edge, or nothing when excluded."""
    stretch = min(plan.scale, 1.0) if antialias else 1.0
    reach = math.ceil((1 if mode == "linear" else 2) / stretch)
    index = np.floor(x)[:, None] + np.arange(1 - reach, reach + 1)
    distance = np.abs(index - x[:, None]) * stretch
    weights = np.clip(1 - distance, 0, None) if mode == "linear" else _cubic(distance, a)
    if exclude_outside:
        weights = np.where((index < 0) | (index >= plan.size_in), 0, weights)
    if exclude_outside or stretch < 1:
        total = weights.sum(1, keepdims=True)
        weights = weights / np.where(total == 0, 1, total)
    return np.clip(index, 0, plan.size_in - 1).astype(np.intp), weights


def _cubic(distance: Array, a: float) -> Array:
    """Keys' kernel, R. G. Keys 1981, equation 4."""
    near = (a + 2) * distance**3 - (a + 3) * distance**2 + 1
    far = a * (distance**3 - 5 * distance**2 + 8 * distance - 4)
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0))


def tap_count(plan: Axis, mode: str, antialias: int) -> int:
    """Return how many inputs each output is made of. mode: "linear" or "cubic"; a filtered axis that shrinks takes more."""
    return 2 * math.ceil((1 if mode == "linear" else 2) / (min(plan.scale, 1.0) if antialias else 1.0))


def _coordinates(plan: Axis, mode: str, dtype: type[np.floating[Any]] = np.float64) -> Array:
    """Return where each output lies in the input, (size_out,) fp64, computed in `dtype`.

    Weights follow from coordinates in fp64. What is chosen by a coordinate, a nearest input or whether it lies outside, follows
    from fp32 as in PyTorch and ONNX Runtime, since both types round a coordinate that should lie halfway to different sides.
    """
    return COORDINATES[mode](plan, np.arange(plan.size_out, dtype=dtype)).astype(np.float64)


def is_copied(plan: Axis, *, mode: str, antialias: int, coordinate_transformation_mode: str, **_: Any) -> bool:
    """Whether outputs are the inputs at their positions.

    An axis of scale 1 is not resized, whatever its coordinates say, but may be cropped. One whose size stays although its scale
    is another, as 10 · 1.05 does, is copied too where PyTorch's `nearest` and `bilinear` are meant, which do so.
    """
    if plan.size_in != plan.size_out:
        return False
    place = coordinate_transformation_mode
    if plan.ratio[0] == plan.ratio[1] and place != "tf_crop_and_resize":
        return True
    if (mode == "linear" and not antialias and place.endswith("half_pixel")) or (mode == "nearest" and place == "asymmetric"):
        return True
    plain = plan.plain
    return np.array_equal(_coordinates(plain, place), np.arange(plain.size_in))
