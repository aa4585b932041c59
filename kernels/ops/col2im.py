"""Col2Im: the sum of blocks, given as columns, at their places in an image."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from kernels.cost import Cost
from kernels.errors import DTypeError, ShapeError
from kernels.operands import NUMBERS, known_ints
from kernels.registry import Case, Kernel, Op, require_dtype
from kernels.spec import FLOATS, Array, Spec


def _geometry(
    image: Sequence[int], block: Sequence[int], dilations: Sequence[int], pads: Sequence[int], strides: Sequence[int]
) -> tuple[list[int], list[int], list[int], list[int]]:
    """Dilations, strides, pads before, and how many block positions each axis has."""
    r = len(image)
    dilation, stride, before = list(dilations) or [1] * r, list(strides) or [1] * r, list(pads[:r]) or [0] * r
    after = list(pads[r:]) or [0] * r
    if not len(block) == len(dilation) == len(stride) == len(before) == len(after) == r:
        raise ShapeError(
            f"Col2Im: block {block}, dilations {dilation}, strides {stride}, pads {pads}, need {r} (pads {2 * r}) numbers"
        )
    if min([*image, *block, *dilation, *stride], default=0) < 1 or min([*before, *after], default=0) < 0:
        raise ShapeError(
            f"Col2Im: image {image}, block {block}, dilations {dilation}, strides {stride}, need 1 or more; pads 0 or more"
        )
    counts = [(image[i] + before[i] + after[i] - dilation[i] * (block[i] - 1) - 1) // stride[i] + 1 for i in range(r)]
    return dilation, stride, before, counts


def infer(
    x: Spec,
    image_shape: Spec,
    block_shape: Spec,
    *,
    dilations: Sequence[int] = (),
    pads: Sequence[int] = (),
    strides: Sequence[int] = (),
) -> Spec:
    """x (n, c·block, positions) makes (n, c, *image_shape)."""
    require_dtype("Col2Im: x", x, NUMBERS)
    image, block = known_ints("Col2Im: image_shape", image_shape), known_ints("Col2Im: block_shape", block_shape)
    *_, counts = _geometry(image, block, dilations, pads, strides)
    if x.rank != 3 or x.shape[1] % math.prod(block) or x.shape[2] != math.prod(counts):
        raise ShapeError(
            f"Col2Im: x is {x}, need (n, c·{math.prod(block)}, {math.prod(counts)}) for image {image}, block {block}"
        )
    return Spec((x.shape[0], x.shape[1] // math.prod(block), *image), x.dtype)


def cost(out: tuple[Spec, ...], x: Spec, *inputs: Spec, **attrs: Any) -> Cost:
    """1 per input element: add."""
    return Cost(other_flops=x.elements)


def run(
    out: tuple[Array, ...],
    x: Array,
    image_shape: Array,
    block_shape: Array,
    *,
    dilations: Sequence[int] = (),
    pads: Sequence[int] = (),
    strides: Sequence[int] = (),
) -> None:
    """One strided addition for every place in the block, into a padded image in float32 or wider."""
    (y,) = out
    image, block = image_shape.tolist(), block_shape.tolist()
    dilation, stride, before, counts = _geometry(image, block, dilations, pads, strides)
    columns = x.reshape(*y.shape[:2], *block, *counts)
    reach = [d * (b - 1) + s * (n - 1) + 1 for d, b, s, n in zip(dilation, block, stride, counts, strict=True)]
    padded = [max(start + size, end) for start, size, end in zip(before, image, reach, strict=True)]
    total = np.zeros((*y.shape[:2], *padded), np.float32 if x.dtype in FLOATS and x.dtype.itemsize == 2 else x.dtype)
    for place in itertools.product(*map(range, block)):
        source: tuple[Any, ...] = (..., *place, *(slice(None) for _ in block))
        spot = [slice(d * p, d * p + s * (n - 1) + 1, s) for d, p, s, n in zip(dilation, place, stride, counts, strict=True)]
        total[(slice(None), slice(None), *spot)] += columns[source]
    inside = [slice(start, start + size) for start, size in zip(before, image, strict=True)]
    np.copyto(y, total[(slice(None), slice(None), *inside)], casting="unsafe")


def _i(*values: int) -> Array:
    return np.array(values, np.int64)


_CASES = (
    Case("disjoint", inputs=((1, 5, 5), _i(5, 5), _i(1, 5)), cost=Cost(other_flops=25)),
    Case("overlapping", inputs=((2, 8, 6), _i(3, 4), _i(2, 2)), cost=Cost(other_flops=96)),
    Case("padded", inputs=((1, 4, 9), _i(2, 2), _i(2, 2)), attrs={"pads": (1, 1, 1, 1)}),
    Case("strided", inputs=((1, 9, 4), _i(5, 5), _i(3, 3)), attrs={"strides": (2, 2)}),
    Case("dilated", inputs=((1, 4, 16), _i(6, 6), _i(2, 2)), attrs={"dilations": (2, 2)}),
    Case("volume", inputs=((1, 8, 8), _i(3, 3, 3), _i(2, 2, 2))),
    Case("positions_differ", inputs=((1, 4, 5), _i(3, 3), _i(2, 2)), raises=ShapeError),
    Case("pads_short", inputs=((1, 4, 4), _i(3, 3), _i(2, 2)), attrs={"pads": (1,)}, raises=ShapeError),
    Case("stride_zero", inputs=((1, 4, 4), _i(3, 3), _i(2, 2)), attrs={"strides": (0, 1)}, raises=ShapeError),
    Case("strings", inputs=(np.array([[["a"]]], object), _i(1), _i(1)), raises=DTypeError),
)

COL2IM = Op("Col2Im", infer, cost, (Kernel("add", run),), cases=_CASES)
