"""Make convolutions of every form and layout, and compare their kernels with the definition."""

from typing import NamedTuple

import numpy as np
from hypothesis import assume
from hypothesis import strategies as st

from kernels.native.emit.epilogue import Epilogue
from kernels.native.emit.geometry import Conv
from kernels.native.families.conv import ConvTile, emit_conv, pack_bias, pack_weights
from kernels.native.families.depthwise import emit_depthwise, pack_depthwise, pack_depthwise_bias
from kernels.native.memory.image import Image
from tests.kernels.native.reference import PLAIN, assert_close, conv_reference, epilogue_operands, place, run_kernel

LAYOUTS = ["blocked", "nhwc", "slice"]

# kernel, stride, dilation, pad
DIRECT = [
    (3, 1, 1, 1),
    (3, 2, 1, 1),
    (3, 1, 2, 2),
    (3, 1, 3, 1),
    (5, 1, 1, 2),
    (5, 2, 1, 2),
    (7, 2, 1, 3),
    (2, 1, 1, 0),
    (1, 2, 1, 0),
]


def image(layout, isa, n, c, h, w):
    if layout == "blocked":
        return Image.blocked(n, c, h, w, isa.lanes)
    if layout == "slice":
        return Image.nhwc(n, c, h, w, pixel_stride=c + 3)
    return (Image.nhwc if layout == "nhwc" else Image.nchw)(n, c, h, w)


def pairs(low: int, high: int) -> st.SearchStrategy[tuple[int, int]]:
    """Draw a number for rows and one for columns."""
    return st.tuples(st.integers(low, high), st.integers(low, high))


class Window(NamedTuple):
    """A window that slides over an image, by rows and columns. size, out: of the image and of the result."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    size: tuple[int, int]
    pad: tuple[int, int]
    out: tuple[int, int]


@st.composite
def windows(draw: st.DrawFn, most_kernel: int, most_size: int) -> Window:
    """Draw a window that fits into the padded image."""
    kernel, stride, dilation, size, pad = (
        draw(pairs(low, high)) for low, high in ((1, most_kernel), (1, 3), (1, 2), (1, most_size), (0, 3))
    )
    rows, columns = ((size[i] + 2 * pad[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1 for i in (0, 1))
    assume(min(rows, columns) >= 1)
    return Window(kernel, stride, dilation, size, pad, (rows, columns))


def square(isa, layout, size, inputs, outputs, kernel, stride=1, dilation=1, pad=0, groups=1, batch=1, x_layout=None):
    out = (size + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1
    x = image(x_layout or layout, isa, batch, inputs, size, size)
    y = image(layout, isa, batch, outputs, out, out)
    return Conv(x, y, (kernel, kernel), (stride, stride), (dilation, dilation), pad, pad, groups)


def depthwise(isa, layout, size, channels, kernel, stride=1, dilation=1, pad=0, batch=1):
    out = (size + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1
    x, y = image(layout, isa, batch, channels, size, size), image(layout, isa, batch, channels, out, out)
    return Conv(x, y, (kernel, kernel), (stride, stride), (dilation, dilation), pad, pad, channels)


def check_conv(conv: Conv, tile: ConvTile, isa, epilogue: Epilogue = PLAIN, exact_activation=None, seed=0) -> None:
    """Run a convolution on random data, compare it with the reference, and assert that it wrote nothing outside of its output."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((conv.x.batch, conv.x.channels, conv.x.height, conv.x.width)).astype(np.float32)
    w = rng.standard_normal((conv.y.channels, conv.group_inputs, *conv.kernel)).astype(np.float32)
    w /= np.sqrt(conv.group_inputs * conv.kernel[0] * conv.kernel[1])
    b = rng.standard_normal(conv.y.channels).astype(np.float32) if epilogue.bias else None
    exact = conv_reference(conv, x, w, b)
    operands, exact = epilogue_operands(epilogue, exact, rng)
    if exact_activation:
        exact = exact_activation(exact)
    memory = np.full(conv.y.elements + 64, np.nan, np.float32)
    bias = {} if b is None else {"b": pack_bias(conv, isa, b, tile.vectors)}
    kernel, packed = emit_conv(conv, tile, epilogue, isa), pack_weights(conv, tile, isa, w)
    run_kernel(kernel, isa, x=place(conv.x, x), w=packed, y=memory, **bias, **operands)
    assert_close(conv.y.load(memory), exact, conv.group_inputs * conv.kernel[0] * conv.kernel[1])
    conv.y.view(memory)[...] = np.nan
    assert np.isnan(memory).all()  # memory outside of the image was not written


def check_depthwise(conv, tile, isa, epilogue=None, exact_activation=None):
    epilogue = epilogue or Epilogue(bias=True)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((conv.x.batch, conv.x.channels, conv.x.height, conv.x.width)).astype(np.float32)
    w = rng.standard_normal((conv.y.channels, 1, *conv.kernel)).astype(np.float32)
    b = rng.standard_normal(conv.y.channels).astype(np.float32)
    exact = conv_reference(conv, x, w, b if epilogue.bias else None)
    operands, exact = epilogue_operands(epilogue, exact, rng)
    exact = exact_activation(exact) if exact_activation else exact
    memory = np.full(conv.y.elements + 64, np.nan, np.float32)
    kernel, packed = emit_depthwise(conv, tile, epilogue, isa), pack_depthwise(conv, tile, isa, w)
    run_kernel(kernel, isa, x=place(conv.x, x), w=packed, b=pack_depthwise_bias(isa, b, tile.vectors), y=memory, **operands)
    assert_close(conv.y.load(memory), exact, conv.kernel[0] * conv.kernel[1])
    conv.y.view(memory)[...] = np.nan
    assert np.isnan(memory).all()  # memory outside of the image was not written
