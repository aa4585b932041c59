"""Conv: y[n, k, o] = Σ x[n, c, o·stride + t·dilation - pad] · w[k, c, t] + b[k], over 1, 2, 3… spatial dimensions and groups."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from kernels.attributes import takes
from kernels.batch_axis import only_first_input_has_rows
from kernels.cost import Cost
from kernels.errors import AttributeValueError, ShapeError
from kernels.half import in_single, is_half
from kernels.operands import one_dtype
from kernels.registry import Case, Kernel, Op, require_dtype
from kernels.scratch import twice
from kernels.spec import FLOATS, Array, Spec
from kernels.windows import Sliding, Window, window

TAP_BYTES = 1024  # of Python's objects that describe one tap
_BLOCK_ELEMENTS = 65_536  # of depthwise input and output worked on at once: what stays in a 1 MiB L2 cache


def geometry(x: Spec | Array, w: Spec | Array, **attrs: Any) -> Window:
    """The window of a convolution of x (n, c, …) with w (k, c / group, …)."""
    return window("Conv", x.shape[2:], w.shape[2:], Sliding.of(attrs))


@takes(Sliding)
def infer(
    x: Spec,
    w: Spec,
    b: Spec | None = None,
    *,
    group: int = 1,
    kernel_shape: tuple[int, ...] | None = None,
    **sliding: Any,
) -> Spec:
    """(n, k, *out) of x (n, c, *size), w (k, c / group, *kernel), b (k)."""
    require_dtype("Conv: x", x, FLOATS)
    one_dtype("Conv", *(spec for spec in (x, w, b) if spec is not None))
    if x.rank < 3 or w.rank != x.rank:
        raise ShapeError(f"Conv: x is {x}, w is {w}, need equal ranks of 3 or more")
    if group < 1 or x.shape[1] != w.shape[1] * group or w.shape[0] % group:
        raise ShapeError(f"Conv: x has {x.shape[1]} channels, w is {w}, need c = w.c · group and k a multiple of group {group}")
    if kernel_shape is not None and tuple(kernel_shape) != w.shape[2:]:
        raise AttributeValueError(f"Conv: kernel_shape is {list(kernel_shape)}, w is {w}, need the same")
    if b is not None and b.shape != (w.shape[0],):
        raise ShapeError(f"Conv: bias is {b}, need [{w.shape[0]}]")
    return Spec((x.shape[0], w.shape[0], *geometry(x, w, **sliding).out), x.dtype)


def cost(out: tuple[Spec, ...], x: Spec, w: Spec, b: Spec | None = None, **attrs: Any) -> Cost:
    """MACs: outputs · (c / group) · taps, padding not deducted. Bias: one addition per output."""
    return Cost(macs=out[0].elements * (w.elements // max(w.shape[0], 1)), other_flops=out[0].elements if b is not None else 0)


def _add_bias(y: Array, b: Array | None) -> None:
    if b is not None:
        y += b.reshape(-1, *[1] * (y.ndim - 2))


def _grouped(y: Array, w: Array, group: int) -> tuple[Array, Array]:
    """Views (n, group, k / group, pixels) of y and (group, k / group, c / group · taps) of w."""
    return y.reshape(y.shape[0], group, y.shape[1] // group, -1), w.reshape(group, w.shape[0] // group, -1)


def refuses_gemm(x: Spec, w: Spec, b: Spec | None = None, **attrs: Any) -> str | None:
    """Refuse all but pointwise convolutions."""
    view = geometry(x, w, **attrs)
    if view.taps != 1 or any(view.begin) or any(view.end):
        return f"the kernel is {view.kernel} with padding {view.begin}, it needs 1x1 without padding"
    return None


@in_single
def run_gemm(out: tuple[Array, ...], x: Array, w: Array, b: Array | None = None, **attrs: Any) -> None:
    """A pointwise convolution is a matrix product over the pixels; a strided one first drops the pixels it skips."""
    (y,) = out
    if not y.size:
        return
    view, group = geometry(x, w, **attrs), attrs["group"]
    if any(stride > 1 for stride in view.strides):
        x = x[(slice(None), slice(None), *(slice(None, None, stride) for stride in view.strides))]
    rows, weights = _grouped(y, w, group)
    np.matmul(weights, x.reshape(x.shape[0], group, x.shape[1] // group, -1), out=rows)
    _add_bias(y, b)


def refuses_taps(x: Spec, w: Spec, b: Spec | None = None, **attrs: Any) -> str | None:
    """Refuse all but depthwise convolutions."""
    if w.shape[1] != 1 or attrs["group"] == 1:
        return f"a group has {w.shape[1]} input channels, it needs depthwise"
    return None


@in_single
def run_taps(out: tuple[Array, ...], x: Array, w: Array, b: Array | None = None, **attrs: Any) -> None:
    """Depthwise: whole planes times one tap at a time, over blocks of channels that stay in cache.

    A matrix product would have one row; here every pass is a contiguous multiply and add.
    """
    (y,) = out
    view, many = geometry(x, w, **attrs), w.shape[0] // attrs["group"]
    slices = list(view.slices())
    plane = max(view.pixels, math.prod(view.size), 1)
    step = max(1, _BLOCK_ELEMENTS // plane)
    column = (slice(None), *[None] * len(view.out))
    for n in range(x.shape[0]):
        for low in range(0, w.shape[0], step):
            block = y[n, low : low + step]
            source = x[n, np.arange(low, low + len(block)) // many] if many > 1 else x[n, low : low + step]
            block[...] = 0 if b is None else b[low : low + step][column]
            product = np.empty_like(block)
            for tap, into, of in slices:
                factor = w[low : low + step, 0][(..., *tap)][column]
                np.multiply(source[of], factor, out=product[into])
                block[into] += product[into]


def scratch_bytes(out: tuple[Spec, ...], x: Spec, w: Spec, *inputs: Spec | None, **attrs: Any) -> int:
    """Copies of operands, and what Python needs to know of every tap."""
    return twice(out, x, w, *inputs) + TAP_BYTES * math.prod(w.shape[2:])


def im2col_bytes(x: Spec, w: Spec, b: Spec | None = None, **attrs: Any) -> int:
    """One image's columns: c · taps · pixels elements, in float32 for half precision."""
    itemsize = 4 if is_half(x.dtype) else x.dtype.itemsize
    view = geometry(x, w, **attrs)
    return x.shape[1] * view.taps * view.pixels * itemsize


@in_single
def run_im2col(out: tuple[Array, ...], x: Array, w: Array, b: Array | None = None, *, workspace: Array, **attrs: Any) -> None:
    """Lay the input under every tap side by side, then one matrix product per image and group."""
    (y,) = out
    view, group, channels = geometry(x, w, **attrs), attrs["group"], x.shape[1]
    if not y.size:
        return
    columns = workspace.view(y.dtype)[: channels * view.taps * view.pixels].reshape(channels, *view.kernel, *view.out)
    rows, weights = _grouped(y, w, group)
    slices = list(view.slices())
    if any(view.begin) or any(view.end):
        columns.fill(0)  # padding is 0; no tap writes there
    for n in range(x.shape[0]):
        for tap, into, of in slices:
            columns[(slice(None), *tap)][into] = x[n][of]
        np.matmul(weights, columns.reshape(group, -1, view.pixels), out=rows[n])
    _add_bias(y, b)


CONV = Op(
    "Conv",
    infer,
    cost,
    (
        Kernel("gemm", run_gemm, refuses=refuses_gemm),
        Kernel("taps", run_taps, refuses=refuses_taps, scratch_bytes=scratch_bytes),
        Kernel("im2col", run_im2col, workspace_bytes=im2col_bytes, scratch_bytes=scratch_bytes),
    ),
    tolerance_eps=16,
    mixes_rows=only_first_input_has_rows,
    cases=(
        Case("pointwise", inputs=((2, 3, 4, 5), (6, 3, 1, 1), (6,)), cost=Cost(macs=2 * 6 * 20 * 3, other_flops=240)),
        Case("pointwise_strided", inputs=((1, 4, 5, 7), (3, 4, 1, 1)), attrs={"strides": (2, 3)}, cost=Cost(macs=3 * 9 * 4)),
        Case("3x3_same", inputs=((1, 3, 8, 8), (4, 3, 3, 3), (4,)), attrs={"pads": (1, 1, 1, 1)}, cost=Cost(4 * 64 * 27, 256)),
        Case("7x7_stride_2", inputs=((2, 3, 15, 17), (5, 3, 7, 7)), attrs={"pads": (3, 3, 3, 3), "strides": (2, 2)}),
        Case("uneven_pads", inputs=((1, 2, 6, 5), (3, 2, 3, 2)), attrs={"pads": (0, 1, 2, 0)}),
        Case("dilated", inputs=((1, 2, 9, 9), (3, 2, 3, 3), (3,)), attrs={"dilations": (2, 3), "pads": (2, 3, 2, 3)}),
        Case(
            "grouped", inputs=((2, 6, 5, 5), (9, 2, 3, 3), (9,)), attrs={"group": 3, "pads": (1, 1, 1, 1)}, cost=Cost(8100, 450)
        ),
        Case(
            "depthwise", inputs=((2, 5, 7, 7), (5, 1, 3, 3), (5,)), attrs={"group": 5, "pads": (1, 1, 1, 1)}, cost=Cost(4410, 490)
        ),
        Case(
            "depthwise_stride_2", inputs=((1, 4, 8, 8), (4, 1, 5, 5)), attrs={"group": 4, "pads": (2, 2, 2, 2), "strides": (2, 2)}
        ),
        Case("depthwise_multiplied", inputs=((1, 3, 5, 5), (6, 1, 3, 3), (6,)), attrs={"group": 3}),
        Case("one_dimension", inputs=((2, 3, 11), (4, 3, 4)), attrs={"strides": (3,), "pads": (1, 2)}),
        Case("three_dimensions", inputs=((1, 2, 4, 5, 6), (3, 2, 2, 3, 2), (3,)), attrs={"pads": (1, 0, 1, 0, 1, 0)}),
        Case("same_upper", inputs=((1, 2, 6, 7), (2, 2, 3, 4)), attrs={"auto_pad": "SAME_UPPER", "strides": (2, 2)}),
        Case("same_lower", inputs=((1, 2, 6, 7), (2, 2, 3, 4)), attrs={"auto_pad": "SAME_LOWER", "strides": (2, 3)}),
        Case("empty_batch", inputs=((0, 3, 4, 4), (2, 3, 3, 3)), cost=Cost()),
        Case("channels_differ", inputs=((1, 3, 4, 4), (2, 4, 1, 1)), raises=ShapeError),
        Case("kernel_wider_than_input", inputs=((1, 1, 2, 2), (1, 1, 3, 3)), raises=ShapeError),
        Case("bias_length", inputs=((1, 1, 2, 2), (2, 1, 1, 1), (3,)), raises=ShapeError),
        Case("negative_pads", inputs=((1, 1, 4, 4), (1, 1, 1, 1)), attrs={"pads": (-1, 0, 0, 0)}, raises=AttributeValueError),
    ),
)
