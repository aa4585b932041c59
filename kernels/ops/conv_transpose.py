"""ConvTranspose: y[n, k, o·stride + t·dilation - pad] += x[n, c, o] · w[c, k, t], plus b[k], in any number of dimensions."""

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
from kernels.ops import conv
from kernels.registry import Case, Kernel, Op, require_dtype
from kernels.spec import FLOATS, Array, Spec
from kernels.windows import MAX_TAPS, Ints, Sliding, Window, sizes_of

_MOST_PIXELS = 2**40  # more than any memory holds; large strides could require it


def geometry(
    x: Spec | Array,
    w: Spec | Array,
    *,
    output_padding: Ints = None,
    output_shape: Ints = None,
    **attrs: Any,
) -> Window:
    """The window of the convolution whose transpose this is: it slides over y, and its places are the elements of x."""
    places, kernel = x.shape[2:], w.shape[2:]
    rank, sliding = len(places), Sliding.of(attrs)
    stride, dilation = sliding.steps("ConvTranspose", rank)
    extra = sizes_of("ConvTranspose: output_padding", output_padding, rank, default=0)
    if any(e >= max(s, d) and e for e, s, d in zip(extra, stride, dilation, strict=True)):
        raise AttributeValueError(f"ConvTranspose: output_padding is {list(extra)}, need less than strides {stride} or dilations")
    full = [s * (n - 1) + e + (k - 1) * d + 1 for s, n, e, k, d in zip(stride, places, extra, kernel, dilation, strict=True)]
    if output_shape or sliding.same:
        wanted = tuple(n * s for n, s in zip(places, stride, strict=True))
        size = sizes_of("ConvTranspose: output_shape", output_shape, rank, default=1) if output_shape else wanted
        begin, end = sliding.shared_out([max(0, f - n) for f, n in zip(full, size, strict=True)])
    else:
        begin, end = sliding.given_pads("ConvTranspose", rank)
        size = tuple(f - b - a for f, b, a in zip(full, begin, end, strict=True))
        if any(n < 0 for n in size):
            raise ShapeError(
                f"ConvTranspose: the output is {list(full)} without pads {[*begin, *end]}, need no more than that in pads"
            )
    if math.prod(size) > _MOST_PIXELS or math.prod(kernel) > MAX_TAPS:
        raise ShapeError(
            f"ConvTranspose: a plane is {list(size)}, w {list(kernel)}, the limits are {_MOST_PIXELS} and {MAX_TAPS}"
        )
    return Window(size, kernel, stride, dilation, begin, end, places)


@takes(Sliding)
def infer(
    x: Spec,
    w: Spec,
    b: Spec | None = None,
    *,
    group: int = 1,
    kernel_shape: tuple[int, ...] | None = None,
    output_padding: tuple[int, ...] | None = None,
    output_shape: tuple[int, ...] | None = None,
    **sliding: Any,
) -> Spec:
    """(n, k, *size) of x (n, c, *places), w (c, k / group, *kernel), b (k)."""
    require_dtype("ConvTranspose: x", x, FLOATS)
    one_dtype("ConvTranspose", *(spec for spec in (x, w, b) if spec is not None))
    if x.rank < 3 or w.rank != x.rank or not all((*x.shape[2:], *w.shape[2:])):
        raise ShapeError(f"ConvTranspose: x is {x}, w is {w}, need equal ranks of 3 or more and something in each axis")
    if group < 1 or x.shape[1] != w.shape[0] or x.shape[1] % group:
        raise ShapeError(
            f"ConvTranspose: x has {x.shape[1]} channels, w is {w}, need w's first axis, a multiple of group {group}"
        )
    if kernel_shape is not None and tuple(kernel_shape) != w.shape[2:]:
        raise AttributeValueError(f"ConvTranspose: kernel_shape is {list(kernel_shape)}, w is {w}, need the same")
    channels = w.shape[1] * group
    if b is not None and b.shape != (channels,):
        raise ShapeError(f"ConvTranspose: bias is {b}, need [{channels}]")
    view = geometry(x, w, output_padding=output_padding, output_shape=output_shape, **sliding)
    return Spec((x.shape[0], channels, *view.size), x.dtype)


def cost(out: tuple[Spec, ...], x: Spec, w: Spec, b: Spec | None = None, **attrs: Any) -> Cost:
    """MACs: inputs · (k / group) · taps, products that fall into the padding not deducted. Bias: one addition per output."""
    return Cost(macs=x.elements * math.prod(w.shape[1:]), other_flops=out[0].elements if b is not None else 0)


def workspace_bytes(x: Spec, w: Spec, b: Spec | None = None, **attrs: Any) -> int:
    """One image's products: k · taps · places elements, in float32 for half precision."""
    itemsize = 4 if is_half(x.dtype) else x.dtype.itemsize
    group: int = attrs["group"]
    return group * math.prod(w.shape[1:]) * math.prod(x.shape[2:]) * itemsize


@in_single
def run(out: tuple[Array, ...], x: Array, w: Array, b: Array | None = None, *, workspace: Array, **attrs: Any) -> None:
    """One matrix product per image and group computes the products of all taps; then one strided addition per tap."""
    (y,) = out
    view, group = geometry(x, w, **attrs), attrs["group"]
    y[...] = 0 if b is None else b.reshape(-1, *[1] * len(view.size))
    if not y.size or not x.size:
        return
    weights = w.reshape(group, x.shape[1] // group, -1).transpose(0, 2, 1)
    products = workspace.view(y.dtype)[: weights.shape[0] * weights.shape[1] * view.pixels]
    matrix, columns = products.reshape(*weights.shape[:2], -1), products.reshape(y.shape[1], *view.kernel, *view.out)
    slices = list(view.slices())
    for n in range(x.shape[0]):
        np.matmul(weights, x[n].reshape(group, x.shape[1] // group, -1), out=matrix)
        for tap, places, into in slices:
            target = y[n][into]
            target += columns[(slice(None), *tap)][places]


_UP = {"strides": (2, 2)}
CONV_TRANSPOSE = Op(
    "ConvTranspose",
    infer,
    cost,
    (Kernel("col2im", run, workspace_bytes=workspace_bytes, scratch_bytes=conv.scratch_bytes),),
    tolerance_eps=16,
    mixes_rows=only_first_input_has_rows,
    cases=(
        Case("2x2_stride_2", inputs=((1, 3, 4, 5), (3, 2, 2, 2), (2,)), attrs=_UP, cost=Cost(macs=480, other_flops=160)),
        Case("overlapping", inputs=((2, 3, 4, 5), (3, 2, 3, 3)), cost=Cost(macs=2160)),
        Case("padded", inputs=((1, 2, 4, 4), (2, 3, 4, 4), (3,)), attrs={**_UP, "pads": (1, 1, 1, 1)}),
        Case("uneven_pads", inputs=((1, 2, 4, 4), (2, 3, 3, 3)), attrs={**_UP, "pads": (0, 1, 2, 0)}),
        Case(
            "output_padding", inputs=((1, 2, 3, 3), (2, 2, 3, 3)), attrs={**_UP, "output_padding": (1, 1), "pads": (1, 1, 1, 1)}
        ),
        Case("output_shape", inputs=((1, 2, 3, 3), (2, 2, 3, 3)), attrs={"strides": (3, 2), "output_shape": (10, 8)}),
        Case("output_shape_cut", inputs=((1, 2, 3, 3), (2, 2, 4, 4)), attrs={**_UP, "output_shape": (5, 6)}),
        Case("dilated", inputs=((1, 2, 4, 4), (2, 2, 2, 3), (2,)), attrs={"dilations": (2, 3)}),
        Case("grouped", inputs=((2, 4, 3, 3), (4, 3, 3, 3), (6,)), attrs={"group": 2}, cost=Cost(1944, 300)),
        Case("depthwise", inputs=((1, 4, 3, 3), (4, 1, 4, 4)), attrs={"group": 4, **_UP, "pads": (1, 1, 1, 1)}),
        Case("same_upper", inputs=((1, 2, 3, 4), (2, 2, 3, 3)), attrs={**_UP, "auto_pad": "SAME_UPPER"}),
        Case("same_narrow", inputs=((1, 2, 3, 4), (2, 2, 1, 2)), attrs={"strides": (2, 3), "auto_pad": "SAME_UPPER"}),
        Case("same_lower", inputs=((1, 2, 3, 4), (2, 2, 3, 3)), attrs={**_UP, "auto_pad": "SAME_LOWER"}),
        Case("one_dimension", inputs=((2, 3, 5), (3, 4, 3), (4,)), attrs={"strides": (2,)}),
        Case("three_dimensions", inputs=((1, 2, 2, 3, 2), (2, 3, 2, 2, 3)), attrs={"strides": (1, 2, 2)}),
        Case("empty_batch", inputs=((0, 3, 4, 4), (3, 2, 3, 3)), cost=Cost()),
        Case("channels_differ", inputs=((1, 3, 4, 4), (2, 3, 1, 1)), raises=ShapeError),
        Case("bias_length", inputs=((1, 1, 2, 2), (1, 2, 2, 2), (3,)), raises=ShapeError),
        Case("pads_eat_everything", inputs=((1, 1, 2, 2), (1, 1, 1, 1)), attrs={"pads": (2, 0, 2, 0)}, raises=ShapeError),
        Case("kernel_shape", inputs=((1, 1, 2, 2), (1, 1, 2, 2)), attrs={"kernel_shape": (3, 3)}, raises=AttributeValueError),
        Case(
            "output_padding_wide",
            inputs=((1, 1, 2, 2), (1, 1, 2, 2)),
            attrs={"output_padding": (1, 0)},
            raises=AttributeValueError,
        ),
        Case("stride_zero", inputs=((1, 1, 2, 2), (1, 1, 2, 2)), attrs={"strides": (0, 1)}, raises=AttributeValueError),
    ),
)
