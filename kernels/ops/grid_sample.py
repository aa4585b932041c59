"""GridSample reads an image at the positions of a grid; AffineGrid makes such a grid of affine maps."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from kernels.cost import Cost
from kernels.errors import AttributeValueError, DTypeError, ShapeError
from kernels.operands import NUMBERS, known_ints, one_of
from kernels.registry import Case, Kernel, Op, require_dtype
from kernels.scratch import FIXED_BYTES
from kernels.spec import FLOATS, Array, Spec

_TAPS = {"nearest": 1, "linear": 2, "cubic": 4}
_PADDING = ("zeros", "border", "reflection")
_FAR = 2.0**30  # beyond every image: infinite and undefined positions are taken there, where integers still hold them
_CUBIC_A = -0.75


def infer(x: Spec, grid: Spec, *, mode: str = "linear", padding_mode: str = "zeros", align_corners: int = 0) -> Spec:
    """x (n, c, d1 … dr) and grid (n, o1 … or, r) make (n, c, o1 … or)."""
    one_of("GridSample: attribute mode", mode, _TAPS)
    one_of("GridSample: attribute padding_mode", padding_mode, _PADDING)
    require_dtype("GridSample: x", x, NUMBERS if mode == "nearest" else FLOATS)
    require_dtype("GridSample: grid", grid, FLOATS)
    r = x.rank - 2
    if r < 1 or grid.rank != x.rank or grid.shape[0] != x.shape[0] or grid.shape[-1] != r:
        raise ShapeError(f"GridSample: x is {x} and grid {grid}, need (n, c, d1 … dr) and (n, o1 … or, r)")
    if 0 in x.shape[2:]:
        raise ShapeError(f"GridSample: x is {x}, need pixels to read")
    return Spec((*x.shape[:2], *grid.shape[1:-1]), x.dtype)


def cost(out: tuple[Spec, ...], x: Spec, grid: Spec, *, mode: str = "linear", **attrs: Any) -> Cost:
    """4 per grid number (its pixel position), 2·tapsʳ per output: 2 taps per axis for linear, 4 for cubic, none for nearest."""
    weighed = 0 if mode == "nearest" else 2 * _TAPS[mode] ** (x.rank - 2) * out[0].elements
    return Cost(other_flops=4 * grid.elements + weighed)


def _reflect(position: Array, low: float, high: float) -> Array:
    """Folded at both borders until it is between them."""
    extent = high - low
    if extent == 0:
        return np.full_like(position, low)
    offset = np.abs(position - low) % (2 * extent)
    return low + np.minimum(offset, 2 * extent - offset)


def _padded(position: Array, size: int, padding_mode: str, align_corners: int) -> Array:
    """Positions outside the image brought in, or left where they are for zeros. An unaligned image ends half a pixel out."""
    if padding_mode == "zeros":
        return position
    low, high = (0.0, size - 1.0) if align_corners else (-0.5, size - 0.5)
    inside = np.clip(position, 0, size - 1) if padding_mode == "border" else _reflect(position, low, high)
    return np.where((position < low) | (position > high), inside, position)


def _axis_taps(position: Array, size: int, mode: str, padding_mode: str, align_corners: int) -> list[tuple[Array, Array]]:
    """Index and weight of every tap along one axis; a tap outside weighs nothing where the padding is zeros.

    As in PyTorch, nearest and linear bring the position into the image, before it is rounded, and cubic each of its taps.
    """
    if mode != "cubic":
        position = _padded(position, size, padding_mode, align_corners)
    first = np.rint(position) if mode == "nearest" else np.floor(position)
    t = position - first
    if mode == "nearest":
        weights = [np.ones_like(t)]
    elif mode == "linear":
        weights = [1 - t, t]
    else:
        first -= 1
        weights = [_cubic(np.abs(t - offset)) for offset in (-1, 0, 1, 2)]
    taps = []
    for offset, weight in enumerate(weights):
        index = first + offset
        if padding_mode == "zeros":
            weight = np.where((index < 0) | (index >= size), 0, weight)  # noqa: PLW2901
        elif padding_mode == "reflection":
            index = np.trunc(_padded(index, size, padding_mode, align_corners))
        taps.append((np.clip(index, 0, size - 1).astype(np.intp), weight))
    return taps


def _cubic(d: Array) -> Array:
    near = ((_CUBIC_A + 2) * d - (_CUBIC_A + 3)) * d * d + 1
    far = ((_CUBIC_A * d - 5 * _CUBIC_A) * d + 8 * _CUBIC_A) * d - 4 * _CUBIC_A
    return np.where(d <= 1, near, far)


def scratch_bytes(out: tuple[Spec, ...], x: Spec, grid: Spec, *, mode: str = "linear", **attrs: Any) -> int:
    """Indices and weights of every tap along each axis, their product, and the pixels of one tap beside the sum."""
    axes = x.rank - 2
    spots = grid.elements // max(axes, 1)
    return FIXED_BYTES + spots * (24 * axes * _TAPS[mode] + 64) + 3 * 8 * out[0].elements


def run(
    out: tuple[Array, ...], x: Array, grid: Array, *, mode: str = "linear", padding_mode: str = "zeros", align_corners: int = 0
) -> None:
    """Sum over the taps of all axes of gathered pixels times weights, channels last; half precisions in single."""
    (y,) = out
    if not y.size:
        return
    r = x.ndim - 2
    work = np.float64 if np.float64 in (x.dtype, grid.dtype) else np.float32
    spots = np.nan_to_num(grid.astype(work), nan=-_FAR, posinf=_FAR, neginf=-_FAR)
    axes = []
    for axis, size in enumerate(x.shape[2:]):
        unit = spots[..., r - 1 - axis] + 1  # the grid's last number is the first axis
        position = unit / 2 * (size - 1) if align_corners else (unit * size - 1) / 2
        axes.append(_axis_taps(np.clip(position, -_FAR, _FAR), size, mode, padding_mode, align_corners))
    pixels = np.moveaxis(x, 1, -1)
    batch = np.arange(x.shape[0]).reshape(-1, *(1,) * r)
    total = np.zeros((*grid.shape[:-1], x.shape[1]), x.dtype if mode == "nearest" else work)
    for taps in itertools.product(*axes):
        weight = np.prod([tap[1] for tap in taps], axis=0)
        part = pixels[(batch, *(tap[0] for tap in taps))]
        total += np.where(weight[..., None] == 0, 0, part * weight[..., None]).astype(total.dtype)
    np.copyto(np.moveaxis(y, 1, -1), total, casting="unsafe")


def upgrade(opset: int, attrs: dict[str, Any], outputs: int) -> tuple[dict[str, Any], dict[int, Array]]:
    """Opset 16 had images only, and names for that."""
    mode = attrs.get("mode", "bilinear")
    if opset >= 20 or not isinstance(mode, str):
        return attrs, {}
    return {**attrs, "mode": {"bilinear": "linear", "bicubic": "cubic"}.get(mode, mode)}, {}


def infer_affine(theta: Spec, size: Spec, *, align_corners: int = 0) -> Spec:
    """theta (n, r, r+1) and size [n, c, d1 … dr] make (n, d1 … dr, r), r being 2 or 3."""
    require_dtype("AffineGrid: theta", theta, FLOATS)
    sizes = known_ints("AffineGrid: size", size)
    r = len(sizes) - 2
    if r not in (2, 3) or theta.shape != (sizes[0], r, r + 1) or min(sizes) < 0:
        raise ShapeError(f"AffineGrid: theta is {theta} and size {sizes}, need (n, r, r+1) and [n, c, d1 … dr], r 2 or 3")
    return Spec((sizes[0], *sizes[2:], r), theta.dtype)


def cost_affine(out: tuple[Spec, ...], theta: Spec, size: Spec, *, align_corners: int = 0) -> Cost:
    """r + 1 MACs per output number."""
    return Cost(macs=out[0].elements * theta.shape[2])


def run_affine(out: tuple[Array, ...], theta: Array, size: Array, *, align_corners: int = 0) -> None:
    """Homogeneous pixel positions, in [-1, 1], times theta transposed."""
    (y,) = out
    n, *sizes, r = y.shape
    work = theta if theta.dtype in (np.float32, np.float64) else theta.astype(np.float32)
    base = np.ones((*sizes, r + 1), work.dtype)
    for axis, extent in enumerate(sizes):
        line = np.linspace(-1, 1, extent) if align_corners else (2 * np.arange(extent) + 1) / extent - 1
        base[..., r - 1 - axis] = line.reshape([-1 if k == axis else 1 for k in range(r)])
    np.copyto(y.reshape(n, -1, r), base.reshape(-1, r + 1) @ work.transpose(0, 2, 1), casting="unsafe")


def _i(*values: int) -> Array:
    return np.array(values, np.int64)


_IMAGE, _WIDE = (2, 3, 4, 5), (-1.6, 1.6)
_SPECIAL = np.array([[[[np.nan, 0], [np.inf, 0], [0, -np.inf]]]], np.float32)
_HALFWAY = np.array([[[[1.4, 0]]]], np.float32)  # the fifth and a half of five pixels, reflected to 3.5
_CASES = (
    Case("linear", inputs=(_IMAGE, (2, 3, 2, 2)), domain=_WIDE, cost=Cost(other_flops=4 * 24 + 8 * 36)),
    Case("linear_border", inputs=(_IMAGE, (2, 3, 2, 2)), domain=_WIDE, attrs={"padding_mode": "border", "align_corners": 1}),
    Case("linear_reflected", inputs=(_IMAGE, (2, 3, 2, 2)), domain=(-4, 4), attrs={"padding_mode": "reflection"}),
    Case(
        "linear_reflected_aligned",
        inputs=(_IMAGE, (2, 3, 2, 2)),
        domain=(-4, 4),
        attrs={"padding_mode": "reflection", "align_corners": 1},
    ),
    Case("nearest", inputs=(_IMAGE, (2, 3, 2, 2)), domain=_WIDE, attrs={"mode": "nearest"}, cost=Cost(other_flops=96)),
    Case("nearest_border", inputs=(_IMAGE, (2, 3, 2, 2)), domain=_WIDE, attrs={"mode": "nearest", "padding_mode": "border"}),
    Case("cubic", inputs=(_IMAGE, (2, 3, 2, 2)), domain=_WIDE, attrs={"mode": "cubic"}),
    Case("cubic_border", inputs=(_IMAGE, (2, 3, 2, 2)), domain=_WIDE, attrs={"mode": "cubic", "padding_mode": "border"}),
    Case(
        "cubic_reflected",
        inputs=(_IMAGE, (2, 3, 2, 2)),
        domain=(-4, 4),
        attrs={"mode": "cubic", "padding_mode": "reflection", "align_corners": 1},
    ),
    Case("nearest_reflected", inputs=((1, 1, 2, 5), _HALFWAY), attrs={"mode": "nearest", "padding_mode": "reflection"}),
    Case("volume", inputs=((1, 2, 3, 4, 5), (1, 2, 3, 2, 3)), domain=_WIDE),
    Case("nowhere", inputs=((1, 1, 3, 3), _SPECIAL)),
    Case("no_position", inputs=(_IMAGE, (2, 0, 2, 2))),
    Case("grid_rank", inputs=(_IMAGE, (2, 3, 2)), raises=ShapeError),
    Case("batch", inputs=(_IMAGE, (1, 3, 2, 2)), raises=ShapeError),
    Case("unknown_mode", inputs=(_IMAGE, (2, 3, 2, 2)), attrs={"mode": "bilinear"}, raises=AttributeValueError),
    Case("int_linear", inputs=(np.ones((1, 1, 2, 2), np.int32), (1, 1, 1, 2)), raises=DTypeError),
)
_AFFINE = (
    Case("image", inputs=((2, 2, 3), _i(2, 3, 4, 5)), cost=Cost(macs=240)),
    Case("aligned", inputs=((1, 2, 3), _i(1, 1, 3, 2)), attrs={"align_corners": 1}),
    Case("volume", inputs=((1, 3, 4), _i(1, 1, 2, 3, 4))),
    Case("theta_shape", inputs=((1, 2, 2), _i(1, 1, 2, 3)), raises=ShapeError),
    Case("theta_dtype", inputs=(np.ones((1, 2, 3), np.int32), _i(1, 1, 2, 3)), raises=DTypeError),
)

OPS = (
    Op(
        "GridSample",
        infer,
        cost,
        (Kernel("gather", run, scratch_bytes=scratch_bytes),),
        upgrade=upgrade,
        tolerance_eps=64,
        cases=_CASES,
    ),
    Op("AffineGrid", infer_affine, cost_affine, (Kernel("matmul", run_affine),), cases=_AFFINE),
)
