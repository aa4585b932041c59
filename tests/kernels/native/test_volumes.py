"""Kernels of convolutions and pools over volumes against their operators in float64, on every instruction set."""

from __future__ import annotations

import numpy as np
import pytest

from kernels.native.emit.epilogue import Epilogue
from kernels.native.emit.geometry import Conv, Depth
from kernels.native.families.conv import conv_tiles, emit_conv, pack_bias, pack_weights
from kernels.native.families.depthwise import depthwise_tiles, emit_depthwise, pack_depthwise, pack_depthwise_bias
from kernels.native.families.pool import Pooling, emit_pooling
from kernels.native.memory.image import Image
from kernels.registry import evaluate, find
from tests.kernels.native.convolutions import image
from tests.kernels.native.reference import assert_close, place, run_kernel

BIASED: Epilogue[Image] = Epilogue(bias=True)
WINDOWS = [  # kernel, strides, dilations, padding before and behind each axis
    ((3, 3, 3), (1, 1, 1), (1, 1, 1), (1, 1, 1)),
    ((3, 2, 3), (2, 2, 1), (1, 1, 1), (1, 0, 1)),
    ((2, 3, 1), (1, 1, 2), (3, 2, 1), (2, 2, 0)),
]
SIZE = (4, 5, 9)


def over(isa, window, channels, outputs, batch=2, layout="blocked", groups=1):
    """Return the convolution of a window over volumes of SIZE, and the attributes of the operator."""
    kernel, strides, dilations, pads = window
    sizes = zip(SIZE, pads, dilations, kernel, strides, strict=True)
    out = [(size + 2 * pad - dilation * (k - 1) - 1) // stride + 1 for size, pad, dilation, k, stride in sizes]
    x = image(layout, isa, batch, channels, SIZE[0] * SIZE[1], SIZE[2])
    y = image(layout if layout != "nchw" else "blocked", isa, batch, outputs, out[0] * out[1], out[2])
    depth = Depth(SIZE[0], out[0], kernel[0], strides[0], dilations[0], pads[0])
    conv = Conv(x, y, kernel[1:], strides[1:], dilations[1:], pads[1], pads[2], groups, depth)
    return conv, {"strides": strides, "dilations": dilations, "pads": (*pads, *pads)}


def assert_computes(kernel, isa, conv, exact, terms, **arrays):
    """Run a kernel over memory of NaN, and compare what it wrote, and where, with the result."""
    memory = np.full(conv.y.elements + 64, np.nan, np.float32)
    run_kernel(kernel, isa, y=memory, **arrays)
    assert_close(conv.y.load(memory), exact.reshape(*exact.shape[:2], -1, exact.shape[-1]), terms)
    conv.y.view(memory)[...] = np.nan
    assert np.isnan(memory).all()


def volume(conv, rng):
    """Return random elements (n, c, d, h, w), and memory that holds them with NaN around."""
    x = rng.standard_normal((conv.x.batch, conv.x.channels, *SIZE)).astype(np.float32)
    return x, place(conv.x, x.reshape(*x.shape[:2], -1, x.shape[-1]))


@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize("layout", ["blocked", "nhwc", "nchw"])
def test_convolutions(isa, window, layout):
    conv, attrs = over(isa, window, 5, isa.lanes + 3, layout=layout)
    rng, tile = np.random.default_rng(0), conv_tiles(conv, isa)[0]
    w, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((conv.y.channels, 5, *window[0]), conv.y.channels))
    x, memory = volume(conv, rng)
    (exact,) = evaluate(find("Conv"), [a.astype(np.float64) for a in (x, w, b)], attrs)
    packed = pack_weights(conv, tile, isa, w.reshape(*w.shape[:2], -1, w.shape[-1]))
    kernel = emit_conv(conv, tile, BIASED, isa)
    assert_computes(kernel, isa, conv, exact, w[0].size, x=memory, w=packed, b=pack_bias(conv, isa, b, tile.vectors))


@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize("layout", ["blocked", "nhwc"])
def test_depthwise_convolutions(isa, window, layout):
    channels = isa.lanes + 3
    conv, attrs = over(isa, window, channels, channels, layout=layout, groups=channels)
    rng, tile = np.random.default_rng(0), depthwise_tiles(conv, isa)[0]
    w, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((channels, 1, *window[0]), channels))
    x, memory = volume(conv, rng)
    (exact,) = evaluate(find("Conv"), [a.astype(np.float64) for a in (x, w, b)], {**attrs, "group": channels})
    packed = pack_depthwise(conv, tile, isa, w.reshape(channels, 1, -1, w.shape[-1]))
    given = {"x": memory, "w": packed, "b": pack_depthwise_bias(isa, b, tile.vectors)}
    assert_computes(emit_depthwise(conv, tile, BIASED, isa), isa, conv, exact, w[0].size, **given)


@pytest.mark.parametrize("window", WINDOWS[:2], ids=str)
@pytest.mark.parametrize(("kind", "counts"), [("max", False), ("average", False), ("average", True)])
def test_pools(isa, window, kind, counts):
    conv, attrs = over(isa, window, isa.lanes + 3, isa.lanes + 3)
    x, memory = volume(conv, np.random.default_rng(0))
    given = {**attrs, "kernel_shape": window[0], **({"count_include_pad": int(counts)} if kind == "average" else {})}
    exact, *_ = evaluate(find("MaxPool" if kind == "max" else "AveragePool"), [x.astype(np.float64)], given)
    pooling = Pooling(conv, kind, window[3] if counts else None)
    assert_computes(emit_pooling(pooling, Epilogue(), isa), isa, conv, exact, sum(window[0]), x=memory)


def test_one_kernel_serves_volumes_and_windows_of_all_sizes(isa):
    kernels = []
    for window, channels in ((WINDOWS[0], 8 * isa.lanes), (((2, 2, 3), (1, 1, 1), (1, 1, 1), (0, 1, 1)), 16 * isa.lanes)):
        conv, _ = over(isa, window, channels, channels)
        kernels.append(emit_conv(conv, conv_tiles(conv, isa)[0], BIASED, isa))
    assert len({kernel.name for kernel in kernels}) == len({kernel.ir for kernel in kernels}) == 1
    assert len({kernel.numbers for kernel in kernels}) == len(kernels)
