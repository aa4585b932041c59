"""DeformConv: a convolution whose taps are moved by offsets, between elements, and weighed by a mask."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np

from kernels.attributes import takes
from kernels.cost import Cost
from kernels.errors import ShapeError
from kernels.half import in_single
from kernels.operands import one_dtype
from kernels.ops import conv
from kernels.registry import Case, Kernel, Op, require_dtype
from kernels.scratch import twice
from kernels.spec import FLOATS, Array, Spec
from kernels.windows import Sliding, Window, window


@takes(Sliding, "dilations", "pads", "strides")
def infer(
    x: Spec,
    w: Spec,
    offset: Spec,
    b: Spec | None = None,
    mask: Spec | None = None,
    *,
    group: int = 1,
    kernel_shape: tuple[int, ...] | None = None,
    offset_group: int = 1,
    **sliding: Any,
) -> Spec:
    """Conv's shape. offset (n, offset_group · taps · axes, *out), mask (n, offset_group · taps, *out)."""
    require_dtype("DeformConv: x", x, FLOATS)
    one_dtype("DeformConv", *(spec for spec in (x, w, offset, b, mask) if spec is not None))
    y = conv.infer(x, w, b, group=group, kernel_shape=kernel_shape, **sliding)
    if offset_group < 1 or x.shape[1] % offset_group:
        raise ShapeError(f"DeformConv: offset_group is {offset_group}, need a divisor of the {x.shape[1]} channels of x")
    taps = offset_group * math.prod(w.shape[2:])
    for name, spec, rows in (("offset", offset, taps * (x.rank - 2)), ("mask", mask, taps)):
        wanted = (x.shape[0], rows, *y.shape[2:])
        if spec is not None and spec.shape != wanted:
            raise ShapeError(f"DeformConv: {name} is {spec}, need {list(wanted)} for x {x} and w {w}")
    return y


def cost(
    out: tuple[Spec, ...], x: Spec, w: Spec, offset: Spec, b: Spec | None = None, mask: Spec | None = None, **attrs: Any
) -> Cost:
    """MACs as Conv. Others: multiply and add each of the 2^axes neighbours of every sample; 1 for a mask, 1 for a bias."""
    axes = x.rank - 2
    samples = x.shape[1] * math.prod(w.shape[2:]) * out[0].shape[0] * math.prod(out[0].shape[2:])
    return conv.cost(out, x, w, b) + Cost(other_flops=(2 ** (axes + 1) + (mask is not None)) * samples)


def scratch_bytes(out: tuple[Spec, ...], x: Spec, w: Spec, *inputs: Spec | None, **attrs: Any) -> int:
    """One image's samples: places and weights of each moved tap, and the neighbours that each channel reads there."""
    samples = math.prod(w.shape[2:]) * math.prod(out[0].shape[2:])
    places = samples * (24 * len(w.shape[2:]) + 64)
    return twice(out, x, w, *inputs) + places + 4 * samples * x.shape[1] * max(x.dtype.itemsize, 4)


@in_single
def run(
    out: tuple[Array, ...], x: Array, w: Array, offset: Array, b: Array | None = None, mask: Array | None = None, **attrs: Any
) -> None:
    """Sample the input under every moved tap, then one matrix product per image and group."""
    (y,) = out
    if not y.size:
        return
    view = window("DeformConv", x.shape[2:], w.shape[2:], Sliding.of(attrs))
    n, groups, parts, axes = x.shape[0], attrs["group"], attrs["offset_group"], len(view.size)
    moves = offset.reshape(n, parts, view.taps, axes, view.pixels)
    weights = w.reshape(groups, w.shape[0] // groups, -1)
    rows = y.reshape(n, groups, w.shape[0] // groups, view.pixels)
    planes = x.reshape(n, parts, x.shape[1] // parts, -1)
    factors = None if mask is None else mask.reshape(n, parts, 1, view.taps, view.pixels)
    for i in range(n):
        columns = np.stack([_sampled(planes[i, part], moves[i, part], view) for part in range(parts)])
        if factors is not None:
            columns *= factors[i]
        np.matmul(weights, columns.reshape(groups, -1, view.pixels), out=rows[i])
    if b is not None:
        y += b.reshape(-1, *[1] * axes)


def _sampled(planes: Array, moves: Array, view: Window) -> Array:
    """(channels, taps, pixels): the planes (channels, elements) interpolated at every tap; what lies outside is 0."""
    lows, uppers = [], []
    for axis, place in enumerate(np.indices(view.out).reshape(len(view.out), -1)):
        tap = np.indices(view.kernel).reshape(len(view.kernel), -1)[axis][:, None]
        at = place * view.strides[axis] - view.begin[axis] + tap * view.dilations[axis] + moves[:, axis].astype(np.float64)
        at = np.clip(np.nan_to_num(at, nan=-2), -2, view.size[axis] + 1)  # beyond is 0 anyway, and must index something
        low = np.floor(at)
        lows.append(low.astype(np.int64))
        uppers.append(at - low)
    made = np.zeros((planes.shape[0], view.taps, view.pixels), planes.dtype)
    for corner in itertools.product((0, 1), repeat=len(lows)):
        flat, weight = np.zeros((), np.int64), np.ones(())
        for size, low, upper, above in zip(view.size, lows, uppers, corner, strict=True):
            index = low + above
            inside = (index >= 0) & (index < size)
            weight = weight * (upper if above else 1 - upper) * inside
            flat = flat * size + np.clip(index, 0, size - 1)
        made += planes[:, flat] * weight.astype(planes.dtype)
    return made


_OFFSET = np.linspace(-1.7, 1.9, 2 * 8 * 9, dtype=np.float32).reshape(2, 8, 3, 3)
DEFORM_CONV = Op(
    "DeformConv",
    infer,
    cost,
    (Kernel("im2col", run, scratch_bytes=scratch_bytes),),
    tolerance_eps=64,
    cases=(
        Case("2x2", inputs=((2, 3, 4, 4), (4, 3, 2, 2), _OFFSET), cost=Cost(macs=72 * 12, other_flops=8 * 12 * 18)),
        Case("mask_and_bias", inputs=((2, 3, 4, 4), (4, 3, 2, 2), _OFFSET, (4,), (2, 4, 3, 3)), cost=Cost(864, 72 + 9 * 216)),
        Case(
            "padded_stride", inputs=((1, 2, 5, 5), (2, 2, 3, 3), (1, 18, 3, 3)), attrs={"pads": (1, 1, 1, 1), "strides": (2, 2)}
        ),
        Case("offset_groups", inputs=((1, 4, 4, 4), (2, 4, 2, 2), (1, 16, 3, 3)), attrs={"offset_group": 2}),
        Case("groups", inputs=((1, 4, 4, 4), (2, 2, 2, 2), (1, 8, 3, 3)), attrs={"group": 2}),
        Case("dilated", inputs=((1, 1, 5, 5), (1, 1, 2, 2), (1, 8, 3, 3)), attrs={"dilations": (2, 2)}),
        Case("empty_batch", inputs=((0, 3, 4, 4), (4, 3, 2, 2), (0, 8, 3, 3)), cost=Cost()),
        Case("offset_shape", inputs=((2, 3, 4, 4), (4, 3, 2, 2), (2, 4, 3, 3)), raises=ShapeError),
        Case("mask_shape", inputs=((2, 3, 4, 4), (4, 3, 2, 2), _OFFSET, None, (2, 8, 3, 3)), raises=ShapeError),
        Case("offset_group", inputs=((2, 3, 4, 4), (4, 3, 2, 2), _OFFSET), attrs={"offset_group": 2}, raises=ShapeError),
    ),
)
