"""MaxUnpool: the inverse of MaxPool, with zeros where no maximum was."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from kernels.attributes import takes
from kernels.cost import Cost, moves
from kernels.errors import AttributeValueError, DTypeError, IndexRangeError, ShapeError
from kernels.operands import known_ints
from kernels.registry import Case, Kernel, Op, require_dtype
from kernels.spec import FLOATS, Array, Spec
from kernels.windows import Sliding


def _unpooled(x: Spec | Array, attrs: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the smallest shape from which a pool with these attributes yields the shape of x."""
    rank, sliding, kernel = len(x.shape) - 2, Sliding.of(attrs), tuple(attrs["kernel_shape"])
    strides, _ = sliding.steps("MaxUnpool", rank)
    begin, end = sliding.given_pads("MaxUnpool", rank)
    if len(kernel) != rank or min(kernel) < 1:
        raise AttributeValueError(f"MaxUnpool: kernel_shape is {list(kernel)}, need {rank} sizes ≥ 1")
    axes = zip(x.shape[2:], kernel, strides, begin, end, strict=True)
    return (*x.shape[:2], *((n - 1) * s + k - before - behind for n, k, s, before, behind in axes))


@takes(Sliding, "pads", "strides")
def infer(
    x: Spec,
    indices: Spec,
    output_shape: Spec | None = None,
    *,
    kernel_shape: tuple[int, ...],
    **sliding: Any,
) -> Spec:
    """output_shape, or (n, c, *size) as the geometry says; indices count through the output, flat."""
    require_dtype("MaxUnpool: x", x, FLOATS)
    if x.rank < 3 or indices.shape != x.shape:
        raise ShapeError(f"MaxUnpool: x is {x}, indices are {indices}, need one shape (n, c, spatial…)")
    if indices.dtype != np.int64:
        raise DTypeError(f"MaxUnpool: indices are {indices}, need int64")
    shape = _unpooled(x, {"kernel_shape": kernel_shape, **sliding})
    if min(shape) < 0:
        raise ShapeError(f"MaxUnpool: x {x} unpooled is {list(shape)}, need sizes ≥ 0")
    if output_shape is None:
        return Spec(shape, x.dtype)
    asked = known_ints("MaxUnpool: output_shape", output_shape, x.rank)
    if any(wanted < size for wanted, size in zip(asked, shape, strict=True)):
        raise ShapeError(f"MaxUnpool: output_shape is {list(asked)}, need at least {list(shape)}")
    return Spec(asked, x.dtype)


def run(
    out: tuple[Array, ...],
    x: Array,
    indices: Array,
    output_shape: Array | None = None,
    **attrs: Any,
) -> None:
    """One scatter into the flat output: with the shape of a MaxPool's input, its maxima are put back where they were."""
    (y,) = out
    if indices.size and not (indices.min() >= 0 and indices.max() < y.size):
        raise IndexRangeError(f"MaxUnpool: indices span [{indices.min()}, {indices.max()}], need [0, {y.size - 1}] for {y.shape}")
    y.fill(0)
    y.reshape(-1)[indices.reshape(-1)] = x.reshape(-1)


_PLACES = np.array([5, 7, 13, 15], np.int64).reshape(1, 1, 2, 2)
_K2 = {"kernel_shape": (2, 2), "strides": (2, 2)}
MAX_UNPOOL = Op(
    "MaxUnpool",
    infer,
    moves,
    (Kernel("scatter", run),),
    tolerance_eps=0,
    cases=(
        Case("2x2", inputs=((1, 1, 2, 2), _PLACES), attrs=_K2, cost=Cost()),
        Case("larger", inputs=((1, 1, 2, 2), _PLACES, np.array([1, 1, 5, 5])), attrs=_K2),
        Case("back", inputs=((1, 1, 2, 2), np.array([0, 2, 13, 19]).reshape(1, 1, 2, 2), np.array([1, 1, 4, 5])), attrs=_K2),
        Case("padded", inputs=((1, 1, 2, 2), _PLACES // 8), attrs={**_K2, "pads": (1, 1, 0, 0)}),
        Case("smaller", inputs=((1, 1, 2, 2), _PLACES, np.array([1, 1, 3, 4])), attrs=_K2, raises=ShapeError),
        Case("indices_shape", inputs=((1, 1, 2, 3), _PLACES), attrs=_K2, raises=ShapeError),
        Case("indices_dtype", inputs=((1, 1, 2, 2), _PLACES.astype(np.int32)), attrs=_K2, raises=DTypeError),
        Case("kernel_rank", inputs=((1, 1, 2, 2), _PLACES), attrs={"kernel_shape": (2,)}, raises=AttributeValueError),
    ),
)
