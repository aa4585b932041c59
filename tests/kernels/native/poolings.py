"""Make pools of every form, and compare their kernels with the definition."""

import numpy as np

from kernels.native.emit.epilogue import Epilogue
from kernels.native.emit.geometry import Conv
from kernels.native.families.pool import Pooling, emit_pooling
from tests.kernels.native.convolutions import image
from tests.kernels.native.reference import assert_close, epilogue_operands, place, run_kernel


def pool(isa, kind, size, channels, kernel, stride=1, dilation=1, pad=0, batch=1, counts=False, extra=0, layout="blocked"):
    """Return a pool. counts: whether averages count padding.

    extra: pixels of bottom and right padding beyond `pad`, which ceil mode adds and averages never count.
    """
    out = (size + 2 * pad + extra - dilation * (kernel - 1) - 1) // stride + 1
    x, y = (image(layout, isa, batch, channels, side, side) for side in (size, out))
    conv = Conv(x, y, (kernel, kernel), (stride, stride), (dilation, dilation), pad, pad, channels)
    return Pooling(conv, kind, (pad, pad) if counts else None)


def reference(pooling, x):
    """Compute every window by its definition, in float64."""
    conv, (bottom, right) = pooling.window, pooling.counted or (0, 0)
    exact = np.empty((conv.y.batch, conv.y.channels, conv.y.height, conv.y.width))
    for row, column in np.ndindex(exact.shape[2:]):
        ys = [row * conv.strides[0] - conv.top + n * conv.dilations[0] for n in range(conv.kernel[0])]
        xs = [column * conv.strides[1] - conv.left + n * conv.dilations[1] for n in range(conv.kernel[1])]
        inside = [[n for n in at if 0 <= n < side] for at, side in ((ys, conv.x.height), (xs, conv.x.width))]
        taken = x[:, :, inside[0]][:, :, :, inside[1]].astype(np.float64)
        taps = len(inside[0]) * len(inside[1])
        if pooling.counted:
            taps = sum(n < conv.x.height + bottom for n in ys) * sum(n < conv.x.width + right for n in xs)
        exact[:, :, row, column] = taken.max((2, 3)) if pooling.kind == "max" else taken.sum((2, 3)) / taps
    return exact


def check_pool(pooling, isa, epilogue=None, exact_activation=None):
    conv, epilogue, rng = pooling.window, epilogue or Epilogue(), np.random.default_rng(0)
    x = rng.standard_normal((conv.x.batch, conv.x.channels, conv.x.height, conv.x.width)).astype(np.float32)
    operands, exact = epilogue_operands(epilogue, reference(pooling, x), rng)
    exact = exact_activation(exact) if exact_activation else exact
    memory = np.full(conv.y.elements + 64, np.nan, np.float32)
    run_kernel(emit_pooling(pooling, epilogue, isa), isa, x=place(conv.x, x), y=memory, **operands)
    assert_close(conv.y.load(memory), exact, sum(conv.kernel))
    conv.y.view(memory)[...] = np.nan
    assert np.isnan(memory).all()  # memory outside of the image was not written
