"""MaxPool and AveragePool over any number of spatial dimensions, and their global forms."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from kernels.attributes import takes
from kernels.batch_axis import only_first_input_has_rows
from kernels.cost import Cost
from kernels.errors import AttributeValueError, ShapeError
from kernels.half import in_single
from kernels.registry import Case, Kernel, Op, require_dtype
from kernels.spec import FLOATS, Array, DType, Spec
from kernels.windows import Sliding, Window, window

_MAX_DTYPES: frozenset[DType] = FLOATS | {np.dtype(np.int8), np.dtype(np.uint8)}
_INT64 = np.dtype(np.int64)


def geometry(subject: str, x: Spec | Array, attrs: dict[str, Any]) -> Window:
    """Return the window of a pool over x (n, c, spatial…). Refuses a pad as wide as the kernel: a place might be empty."""
    if len(x.shape) < 3:
        raise ShapeError(f"{subject}: x is {x}, need (n, c, spatial…)")
    kernel_shape = tuple(attrs["kernel_shape"])
    view = window(subject, x.shape[2:], kernel_shape, Sliding.of(attrs), ceil_mode=bool(attrs["ceil_mode"]))
    for pad, kernel, dilation in zip(view.begin + view.end, view.kernel * 2, view.dilations * 2, strict=True):
        if pad >= (kernel - 1) * dilation + 1:
            raise AttributeValueError(f"{subject}: a pad is {pad}, need less than the kernel {view.kernel}")
    return view


@takes(Sliding)
def infer_max(
    x: Spec, *, kernel_shape: tuple[int, ...], ceil_mode: int = 0, storage_order: int = 0, **sliding: Any
) -> tuple[Spec, ...]:
    """(n, c, *out) of x (n, c, *size), and the flat index of every maximum in x."""
    require_dtype("MaxPool: x", x, _MAX_DTYPES)
    view = geometry("MaxPool", x, {**sliding, "kernel_shape": kernel_shape, "ceil_mode": ceil_mode})
    shape = (*x.shape[:2], *view.out)
    return Spec(shape, x.dtype), Spec(shape, _INT64)


def cost_max(out: tuple[Spec, ...], x: Spec, **attrs: Any) -> Cost:
    """Per output: taps - 1 comparisons."""
    return Cost(other_flops=out[0].elements * (math.prod(attrs["kernel_shape"]) - 1))


def _lowest(dtype: DType) -> Any:
    return np.iinfo(dtype).min if dtype.kind in "iu" else -np.inf


def run_max(out: tuple[Array, ...], x: Array, **attrs: Any) -> None:
    """Reduce whole planes, one tap at a time. With indices, a tap wins if it is larger or NaN: the first maximum stays.

    A dilated window all of whose taps lie in the padding has the lowest value, and the index -1.
    """
    y, indices = out[0], out[1] if len(out) > 1 else None
    view = geometry("MaxPool", x, attrs)
    y.fill(_lowest(y.dtype))
    if indices is None:
        for _, into, of in view.slices():
            target = y[into]
            np.maximum(target, x[of], out=target)
        return
    indices.fill(-1)
    planes, axes = _positions(x, view, columns_first=bool(attrs["storage_order"]))
    for _, into, of in view.slices():
        target, where, candidate = y[into], indices[into], x[of]
        wins = (where < 0) | (candidate > target)
        if x.dtype in FLOATS:
            wins |= np.isnan(candidate)
        np.copyto(target, candidate, where=wins)
        place = planes
        for axis, along in zip(axes, of[1:], strict=True):
            place = place[..., None] + axis[along]
        np.copyto(where, place, where=wins)


def _positions(x: Array, view: Window, *, columns_first: bool) -> tuple[Array, list[Array]]:
    """Return addends of the flat index of each element: (n, c) of its plane, and one vector for each spatial axis."""
    sizes = view.size[::-1] if columns_first else view.size
    strides = [math.prod(sizes[i + 1 :]) for i in range(len(sizes))]
    axes = [np.arange(size) * stride for size, stride in zip(sizes, strides, strict=True)]
    planes = np.arange(x.shape[0] * x.shape[1]).reshape(x.shape[:2]) * math.prod(sizes)
    return planes, axes[::-1] if columns_first else axes


@takes(Sliding)
def infer_average(
    x: Spec, *, kernel_shape: tuple[int, ...], ceil_mode: int = 0, count_include_pad: int = 0, **sliding: Any
) -> Spec:
    """(n, c, *out) of x (n, c, *size)."""
    require_dtype("AveragePool: x", x, FLOATS)
    view = geometry("AveragePool", x, {**sliding, "kernel_shape": kernel_shape, "ceil_mode": ceil_mode})
    return Spec((*x.shape[:2], *view.out), x.dtype)


def cost_average(out: tuple[Spec, ...], x: Spec, **attrs: Any) -> Cost:
    """Per output: taps - 1 additions and one division."""
    return Cost(other_flops=out[0].elements * math.prod(attrs["kernel_shape"]))


@in_single
def run_average(out: tuple[Array, ...], x: Array, **attrs: Any) -> None:
    """Sum whole planes, one tap at a time, then divide by how many elements each window holds."""
    (y,) = out
    view = geometry("AveragePool", x, attrs)
    y.fill(0)
    for _, into, of in view.slices():
        y[into] += x[of]
    y /= _counts(view, bool(attrs["count_include_pad"]), y.dtype)


def _counts(view: Window, include_pad: bool, dtype: DType) -> Array:
    """Elements under the window at every place: of the input, or of the input and its padding; at least 1."""
    counts = np.ones((), dtype)
    for axis, places in enumerate(view.out):
        first, step, taps = np.arange(places) * view.strides[axis] - view.begin[axis], view.dilations[axis], view.kernel[axis]
        low, high = (-view.begin[axis], view.size[axis] + view.end[axis]) if include_pad else (0, view.size[axis])
        before, until = (np.clip(-((first - edge) // step), 0, taps) for edge in (low, high))  # taps that lie below each edge
        counts = np.multiply.outer(counts, (until - before).astype(dtype))
    return np.maximum(counts, 1, out=counts)


def infer_global(x: Spec) -> Spec:
    """(n, c, 1…) of x (n, c, *size)."""
    require_dtype("Global: x", x, FLOATS)
    if x.rank < 3 or not all(x.shape[2:]):
        raise ShapeError(f"Global: x is {x}, need (n, c, spatial…) with something to pool")
    return Spec((*x.shape[:2], *[1] * (x.rank - 2)), x.dtype)


def cost_global(out: tuple[Spec, ...], x: Spec) -> Cost:
    """One operation per input element: the last of the additions is the division (or comparisons all through)."""
    return Cost(other_flops=x.elements)


@in_single
def run_global_average(out: tuple[Array, ...], x: Array) -> None:
    """Mean over all spatial axes."""
    np.mean(x, axis=tuple(range(2, x.ndim)), keepdims=True, out=out[0])


def run_global_max(out: tuple[Array, ...], x: Array) -> None:
    """Maximum over all spatial axes."""
    np.amax(x, axis=tuple(range(2, x.ndim)), keepdims=True, out=out[0])


_K2 = {"kernel_shape": (2, 2), "strides": (2, 2)}
_K3 = {"kernel_shape": (3, 3)}
_NAN = np.array([[[[1, np.nan, 3, 4], [np.nan, 2, 5, 0]]]], np.float32)
_ASTRIDE = {"kernel_shape": (2, 1), "dilations": (2, 1), "pads": (1, 0, 1, 0)}  # taps before and behind the only row
_PADDED = {**_K3, "strides": (2, 2), "pads": (1, 1, 1, 1)}

MAX_POOL = Op(
    "MaxPool",
    infer_max,
    cost_max,
    (Kernel("taps", run_max),),
    tolerance_eps=0,
    mixes_rows=only_first_input_has_rows,
    cases=(
        Case("2x2", inputs=((1, 3, 4, 6),), attrs=_K2, cost=Cost(other_flops=18 * 3)),
        Case("3x3_padded", inputs=((2, 3, 7, 8),), attrs=_PADDED),
        Case("ceil", inputs=((1, 2, 6, 6),), attrs={**_K3, "strides": (2, 2), "ceil_mode": 1}),
        Case("ceil_wider", inputs=((1, 2, 2, 6),), attrs={**_K3, "strides": (2, 2), "ceil_mode": 1}),
        Case("dilated", inputs=((1, 2, 7, 7),), attrs={**_K3, "dilations": (2, 2)}),
        Case("indices", inputs=((1, 2, 5, 5),), attrs=_PADDED, outputs=2),
        Case("astride", inputs=((1, 2, 1, 4),), attrs=_ASTRIDE),
        Case("astride_indices", inputs=((1, 2, 1, 4),), attrs=_ASTRIDE, outputs=2),
        Case("nan", inputs=(_NAN,), attrs=_K2),
        Case("same_narrow", inputs=((1, 2, 3, 6),), attrs={"kernel_shape": (1, 1), "strides": (1, 3), "auto_pad": "SAME_UPPER"}),
        Case("same_dilated", inputs=((1, 2, 7),), attrs={"kernel_shape": (3,), "dilations": (2,), "auto_pad": "SAME_UPPER"}),
        Case("indices_of_nan", inputs=(_NAN,), attrs=_K2, outputs=2),
        Case("indices_column_major", inputs=((1, 2, 4, 5),), attrs={**_K2, "storage_order": 1}, outputs=2),
        Case("one_dimension", inputs=((1, 2, 9),), attrs={"kernel_shape": (4,), "strides": (3,)}),
        Case("bytes", inputs=(np.arange(-18, 18, dtype=np.int8).reshape(1, 1, 6, 6),), attrs=_K2),
        Case("pad_as_wide_as_kernel", inputs=((1, 1, 4, 4),), attrs={**_K2, "pads": (2, 0, 0, 0)}, raises=AttributeValueError),
        Case("kernel_rank", inputs=((1, 1, 4, 4),), attrs={"kernel_shape": (2,)}, raises=AttributeValueError),
        Case("wider", inputs=((1, 1, 2, 6),), attrs={**_K3, "strides": (2, 2)}, raises=ShapeError),
        Case("ceil_too_wide", inputs=((1, 1, 1, 6),), attrs={**_K3, "strides": (2, 2), "ceil_mode": 1}, raises=ShapeError),
    ),
)
AVERAGE_POOL = Op(
    "AveragePool",
    infer_average,
    cost_average,
    (Kernel("taps", run_average),),
    mixes_rows=only_first_input_has_rows,
    cases=(
        Case("2x2", inputs=((1, 3, 4, 6),), attrs=_K2, cost=Cost(other_flops=18 * 4)),
        Case("3x3_padded", inputs=((2, 3, 7, 8),), attrs=_PADDED),
        Case("3x3_pad_counted", inputs=((1, 3, 7, 8),), attrs={**_PADDED, "count_include_pad": 1}),
        Case("ceil", inputs=((1, 2, 6, 6),), attrs={**_K3, "strides": (2, 2), "ceil_mode": 1}),
        Case("ceil_wider", inputs=((1, 2, 2, 6),), attrs={**_K3, "strides": (2, 2), "ceil_mode": 1}),
        Case(
            "ceil_wider_pad_counted",
            inputs=((1, 2, 1, 6),),
            attrs={"kernel_shape": (4, 3), "strides": (3, 2), "pads": (1, 0, 0, 1), "ceil_mode": 1, "count_include_pad": 1},
        ),
        Case("same_upper", inputs=((1, 2, 5, 5),), attrs={**_K2, "auto_pad": "SAME_UPPER"}),
        Case("astride", inputs=((1, 2, 1, 4),), attrs=_ASTRIDE),
        Case(
            "astride_columns", inputs=((1, 2, 4, 1),), attrs={"kernel_shape": (1, 2), "dilations": (1, 2), "pads": (0, 1, 0, 1)}
        ),
        Case("three_dimensions", inputs=((1, 2, 4, 4, 4),), attrs={"kernel_shape": (2, 2, 2)}),
    ),
)
GLOBAL_CASES = (
    Case("planes", inputs=((2, 3, 4, 5),), cost=Cost(other_flops=120)),
    Case("one_dimension", inputs=((2, 3, 7),)),
    Case("nothing_to_pool", inputs=((2, 3, 0, 4),), raises=ShapeError),
)
GLOBAL_AVERAGE_POOL = Op(
    "GlobalAveragePool",
    infer_global,
    cost_global,
    (Kernel("mean", run_global_average),),
    tolerance_eps=8,
    mixes_rows=only_first_input_has_rows,
    cases=GLOBAL_CASES,
)
GLOBAL_MAX_POOL = Op(
    "GlobalMaxPool",
    infer_global,
    cost_global,
    (Kernel("max", run_global_max),),
    mixes_rows=only_first_input_has_rows,
    cases=(*GLOBAL_CASES, Case("nan", inputs=(_NAN,))),
)
