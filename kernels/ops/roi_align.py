"""RoiAlign: regions of a feature map, interpolated at points inside every bin, averaged or maximised."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from kernels.cost import Cost
from kernels.errors import AttributeValueError, DTypeError, IndexRangeError, InvalidError, ShapeError
from kernels.half import in_single
from kernels.operands import one_dtype, one_of
from kernels.record import record
from kernels.registry import Case, Kernel, Op, require_dtype
from kernels.scratch import twice
from kernels.spec import FLOATS, Array, Spec

_MOST_BINS = 65_536  # an axis
_BLOCK_ELEMENTS = 65_536  # of what is computed between input and output: 256 KiB of float32
_MOST_POINTS = 4096  # per bin and axis: a region that needs more does not belong to a feature map


def infer(
    x: Spec,
    rois: Spec,
    batch_indices: Spec,
    *,
    coordinate_transformation_mode: str = "half_pixel",
    mode: str = "avg",
    output_height: int = 1,
    output_width: int = 1,
    sampling_ratio: int = 0,
    spatial_scale: float = 1.0,
) -> Spec:
    """(rois, c, output_height, output_width) of x (n, c, h, w), rois (rois, 4) as x1, y1, x2, y2, and their images."""
    require_dtype("RoiAlign: x", x, FLOATS)
    one_dtype("RoiAlign", x, rois)
    one_of("RoiAlign: coordinate_transformation_mode", coordinate_transformation_mode, ("half_pixel", "output_half_pixel"))
    one_of("RoiAlign: mode", mode, ("avg", "max"))
    if batch_indices.dtype != np.int64:
        raise DTypeError(f"RoiAlign: batch_indices are {batch_indices}, need int64")
    if x.rank != 4 or not all(x.shape[2:]) or rois.shape[1:] != (4,) or batch_indices.shape != rois.shape[:1]:
        raise ShapeError(f"RoiAlign: x is {x}, rois are {rois}, batch_indices {batch_indices}, need (n, c, h, w), (r, 4) and (r)")
    if not (0 < output_height <= _MOST_BINS and 0 < output_width <= _MOST_BINS and 0 <= sampling_ratio <= _MOST_POINTS):
        raise AttributeValueError(
            f"RoiAlign: output is {output_height}x{output_width}, sampling_ratio {sampling_ratio}, "
            f"need sizes in [1, {_MOST_BINS}] and a ratio in [0, {_MOST_POINTS}]"
        )
    return Spec((rois.shape[0], x.shape[1], output_height, output_width), x.dtype)


def cost(out: tuple[Spec, ...], x: Spec, *inputs: Spec, **attrs: Any) -> Cost:
    """8 per sampling point (4 multiplications, 3 additions, pooling); one point per output where regions decide."""
    return Cost(other_flops=8 * out[0].elements * max(attrs["sampling_ratio"], 1) ** 2)


@record
class _Side:
    """One axis of a region: where it starts in the image, its extent, how many bins it has, and points in each of them.

    size: of the image along the axis.
    """

    start: float
    extent: float
    bins: int
    count: int
    size: int

    @staticmethod
    def of(start: float, extent: float, bins: int, ratio: int, size: int) -> _Side:
        """Check a region's side. Raises InvalidError for one that is not finite, or needs too many points."""
        if not (math.isfinite(start) and math.isfinite(extent)) or extent / bins > _MOST_POINTS:
            raise InvalidError(
                f"RoiAlign: a region spans {extent} from {start}, need at most {_MOST_POINTS} points in each of {bins} bins"
            )
        return _Side(start, extent, bins, ratio or max(math.ceil(extent / bins), 0), size)

    def points(self, bins: slice, points: slice = slice(None)) -> tuple[Array, Array, Array]:
        """Return of these points of these bins, (bins, points) each: lower neighbour, weight of the upper one, whether inside."""
        which = np.arange(self.bins)[bins, None]
        at = self.start + (which + (np.arange(self.count)[points] + 0.5) / max(self.count, 1)) * (self.extent / self.bins)
        inside = (at >= -1) & (at <= self.size)
        at = np.clip(at, 0, self.size - 1)
        low = np.minimum(at.astype(np.int64), self.size - 1)
        return low, at - low, inside

    def weights(self, bins: slice) -> Array:
        """Return (bins, size): how much of each element of the image the mean over a bin's points takes."""
        low, upper, inside = self.points(bins)
        made: Array = np.zeros((len(low), self.size))
        which = np.broadcast_to(np.arange(len(low))[:, None], low.shape)
        np.add.at(made, (which, low), (1 - upper) * inside)
        np.add.at(made, (which, np.minimum(low + 1, self.size - 1)), upper * inside)
        made /= max(self.count, 1)
        return made


def _blocks(total: int, each: int) -> Iterator[slice]:
    """Yield slices of 0 … total that take at most _BLOCK_ELEMENTS where one takes `each`; at least one at a time."""
    step = max(1, _BLOCK_ELEMENTS // max(each, 1))
    for low in range(0, total, step):
        yield slice(low, min(low + step, total))


def scratch_bytes(out: tuple[Spec, ...], *inputs: Spec, **attrs: Any) -> int:
    """Some blocks, in float64 and as indices, at least one element of every channel or one row of the image."""
    return twice(out, *inputs) + 64 * _BLOCK_ELEMENTS


@in_single
def run(out: tuple[Array, ...], x: Array, rois: Array, batch_indices: Array, **attrs: Any) -> None:
    """A region at a time, in blocks of bins: what is computed between does not grow with the number of bins and points."""
    (y,) = out
    if batch_indices.size and not (batch_indices.min() >= 0 and batch_indices.max() < x.shape[0]):
        raise IndexRangeError(
            f"RoiAlign: batch_indices span [{batch_indices.min()}, {batch_indices.max()}], x has {x.shape[0]} images"
        )
    half = attrs["coordinate_transformation_mode"] == "half_pixel"
    pooled = _mean if attrs["mode"] == "avg" else _largest
    for target, roi, image in zip(y, rois.astype(np.float64), batch_indices, strict=True):
        x1, y1, x2, y2 = (float(corner) * attrs["spatial_scale"] - 0.5 * half for corner in roi)
        extents = (y2 - y1, x2 - x1) if half else (max(y2 - y1, 1.0), max(x2 - x1, 1.0))
        rows, columns = (
            _Side.of(start, extent, bins, attrs["sampling_ratio"], size)
            for start, extent, bins, size in zip((y1, x1), extents, target.shape[1:], x.shape[2:], strict=True)
        )
        pooled(target, x[image], rows, columns)


def _mean(target: Array, x: Array, rows: _Side, columns: _Side) -> None:
    """Two small matrix products, as bilinear weights are a product of the axes'."""
    for some_columns in _blocks(columns.bins, columns.size + columns.count):
        across = columns.weights(some_columns).astype(x.dtype)
        for some_rows in _blocks(rows.bins, max(rows.size + rows.count, x.shape[0] * (x.shape[2] + len(across)))):
            down = rows.weights(some_rows).astype(x.dtype)
            target[:, some_rows, some_columns] = np.matmul(np.matmul(down, x), across.T)


def _largest(target: Array, x: Array, rows: _Side, columns: _Side) -> None:
    """ONNX's maximum is over the four weighted neighbours of every point, not over their sums."""
    if not rows.count or not columns.count:
        target.fill(0)
        return
    target.fill(-np.inf)
    across = min(columns.count, max(1, _BLOCK_ELEMENTS // max(len(x), 1)))  # points of a bin that are looked at together
    for some_rows in _blocks(rows.bins, len(x) * rows.count * across):
        for some_points in _blocks(rows.count, len(x) * across):
            down = rows.points(some_rows, some_points)
            for some_columns in _blocks(columns.bins, len(x) * down[0].size * across):
                place = target[:, some_rows, some_columns]
                for low in range(0, columns.count, across):
                    _raise_to(place, x, down, columns.points(some_columns, slice(low, low + across)))


def _raise_to(place: Array, x: Array, rows: tuple[Array, Array, Array], columns: tuple[Array, Array, Array]) -> None:
    """Raise each element of `place` (c, rows, columns) to the largest of its bin's points."""
    (low_y, up_y, in_y), (low_x, up_x, in_x) = rows, columns
    for at_y, part_y in ((low_y, 1 - up_y), (np.minimum(low_y + 1, x.shape[1] - 1), up_y)):
        for at_x, part_x in ((low_x, 1 - up_x), (np.minimum(low_x + 1, x.shape[2] - 1), up_x)):
            weight = (part_y * in_y)[:, :, None, None] * (part_x * in_x)
            values = x[:, at_y[:, :, None, None], at_x]
            values *= weight.astype(x.dtype)
            np.maximum(place, np.amax(values, axis=(2, 4)), out=place)


def upgrade(opset: int, attrs: dict[str, Any], outputs: int) -> tuple[dict[str, Any], dict[int, Array]]:
    """Before opset 16 there was one coordinate mode."""
    return ({**attrs, "coordinate_transformation_mode": "output_half_pixel"} if opset < 16 else attrs), {}


_ROIS = np.array([[0, 0, 7, 5], [1.5, 2, 6, 7.25], [-3, -2, 4, 20]], np.float32)
_IMAGES = np.array([1, 0, 1], np.int64)
_SIZE = {"output_height": 2, "output_width": 3}
ROI_ALIGN = Op(
    "RoiAlign",
    infer,
    cost,
    (Kernel("bilinear", run, scratch_bytes=scratch_bytes),),
    upgrade=upgrade,
    tolerance_eps=32,
    cases=(
        Case("average", inputs=((2, 3, 8, 9), _ROIS, _IMAGES), attrs={**_SIZE, "sampling_ratio": 2}, cost=Cost(other_flops=1728)),
        Case("adaptive", inputs=((2, 3, 8, 9), _ROIS, _IMAGES), attrs=_SIZE),
        Case("scaled", inputs=((2, 1, 8, 9), _ROIS, _IMAGES), attrs={**_SIZE, "spatial_scale": 0.5}),
        Case(
            "output_half_pixel",
            inputs=((2, 1, 8, 9), _ROIS, _IMAGES),
            attrs={"coordinate_transformation_mode": "output_half_pixel"},
        ),
        Case("largest", inputs=((2, 3, 8, 9), _ROIS, _IMAGES), attrs={**_SIZE, "mode": "max", "sampling_ratio": 2}),
        Case("no_regions", inputs=((2, 3, 8, 9), np.zeros((0, 4), np.float32), np.zeros(0, np.int64))),
        Case("regions_of_five", inputs=((2, 3, 8, 9), (3, 5), _IMAGES), raises=ShapeError),
        Case("images_dtype", inputs=((2, 3, 8, 9), _ROIS, _IMAGES.astype(np.int32)), raises=DTypeError),
        Case("mode_unknown", inputs=((2, 3, 8, 9), _ROIS, _IMAGES), attrs={"mode": "sum"}, raises=AttributeValueError),
        Case("no_height", inputs=((2, 3, 8, 9), _ROIS, _IMAGES), attrs={"output_height": 0}, raises=AttributeValueError),
    ),
)
