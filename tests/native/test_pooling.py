import numpy as np
import pytest

from kernels.native.errors import EmitError
from kernels.native.functions import Activation
from kernels.native.geometry import Conv
from kernels.native.isa import ISAS
from kernels.native.kernel import Epilogue, Merge
from kernels.native.layout import Image
from kernels.native.pooling import Pooling, emit_pooling
from tests.native.reference import assert_close, epilogue_operands, place, run_kernel


def pool(isa, kind, size, channels, kernel, stride=1, dilation=1, pad=0, batch=1, counts=False, extra=0):
    """extra: bottom and right padding beyond that of the other sides, as ceil mode makes it without counting it."""
    out = (size + 2 * pad + extra - dilation * (kernel - 1) - 1) // stride + 1
    x, y = (Image.blocked(batch, channels, side, side, isa.lanes) for side in (size, out))
    conv = Conv(x, y, (kernel, kernel), (stride, stride), (dilation, dilation), pad, pad, channels)
    return Pooling(conv, kind, (pad, pad) if counts else None)


def reference(pooling, x):
    """Every window by its definition, in float64."""
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


def check(pooling, isa, epilogue=None, exact_activation=None):
    conv, epilogue, rng = pooling.window, epilogue or Epilogue(), np.random.default_rng(0)
    x = rng.standard_normal((conv.x.batch, conv.x.channels, conv.x.height, conv.x.width)).astype(np.float32)
    operands, exact = epilogue_operands(epilogue, reference(pooling, x), rng)
    exact = exact_activation(exact) if exact_activation else exact
    memory = np.full(conv.y.elements + 64, np.nan, np.float32)
    run_kernel(emit_pooling(pooling, epilogue, isa), isa, x=place(conv.x, x), y=memory, **operands)
    assert_close(conv.y.load(memory), exact, sum(conv.kernel))
    conv.y.view(memory)[...] = np.nan
    assert np.isnan(memory).all()  # what does not belong to the image was left alone


@pytest.mark.parametrize(("kind", "counts"), [("max", False), ("average", False), ("average", True)])
@pytest.mark.parametrize(
    ("kernel", "stride", "dilation", "pad", "extra"),
    [(2, 2, 1, 0, 0), (3, 2, 1, 1, 0), (3, 1, 1, 1, 0), (3, 2, 1, 0, 1), (3, 2, 1, 1, 1), (2, 1, 3, 1, 0), (5, 3, 1, 2, 0)],
)
def test_windows_strides_dilations_and_padding(isa, kind, counts, kernel, stride, dilation, pad, extra):
    check(pool(isa, kind, 11, isa.lanes + 3, kernel, stride, dilation, pad, 2, counts, extra), isa)


@pytest.mark.parametrize("kind", ["max", "average"])
@pytest.mark.parametrize("size", [1, 7, 20])
def test_global_pool(isa, kind, size):
    check(pool(isa, kind, size, 2 * isa.lanes + 1, size, batch=2), isa)


def test_epilogue(isa):
    pooling = pool(isa, "average", 9, isa.lanes, 3, pad=1)
    check(pooling, isa, Epilogue(False, (Merge("add", pooling.window.y), Activation("relu"))), lambda v: np.maximum(v, 0))


def test_max_keeps_nan_and_all_minus_infinity(isa):
    pooling = pool(isa, "max", 4, isa.lanes, 2, 2)
    x = np.full((1, isa.lanes, 4, 4), -np.inf, np.float32)
    x[:, :, 0, 1] = np.nan
    memory = np.zeros(pooling.window.y.elements, np.float32)
    run_kernel(emit_pooling(pooling, Epilogue(), isa), isa, x=place(pooling.window.x, x), y=memory)
    expected = np.array([[np.nan, -np.inf], [-np.inf, -np.inf]], np.float32)
    np.testing.assert_array_equal(pooling.window.y.load(memory)[0, 0], expected)


def test_layouts_and_a_bias_it_cannot_serve_are_refused():
    isa, x = ISAS["avx2"], Image.nchw(1, 8, 4, 4)
    with pytest.raises(EmitError, match="x has blocks of 1 channels, need 8"):
        emit_pooling(Pooling(Conv(x, x), "max"), Epilogue(), isa)
    with pytest.raises(EmitError, match="pools take none"):
        emit_pooling(pool(isa, "max", 4, 8, 2), Epilogue(bias=True), isa)
