import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from kernels.native.code.compile import SPILL_LIMIT, generate
from kernels.native.emit.epilogue import Epilogue
from kernels.native.emit.geometry import Conv, row_table
from kernels.native.errors import EmitError
from kernels.native.families.pool import Pooling, emit_pooling
from kernels.native.memory.image import Image
from kernels.native.target.isa import ISAS
from tests.kernels.native.chains import chain
from tests.kernels.native.convolutions import LAYOUTS, image, pairs
from tests.kernels.native.poolings import check_pool, pool
from tests.kernels.native.reference import place, run_kernel


@pytest.mark.parametrize(("kind", "counts"), [("max", False), ("average", False), ("average", True)])
@pytest.mark.parametrize(
    ("kernel", "stride", "dilation", "pad", "extra"),
    [(2, 2, 1, 0, 0), (3, 2, 1, 1, 0), (3, 1, 1, 1, 0), (3, 2, 1, 0, 1), (3, 2, 1, 1, 1), (2, 1, 3, 1, 0), (5, 3, 1, 2, 0)],
)
def test_windows_strides_dilations_and_padding(isa, kind, counts, kernel, stride, dilation, pad, extra):
    check_pool(pool(isa, kind, 11, isa.lanes + 3, kernel, stride, dilation, pad, 2, counts, extra), isa)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_channel_tails(isa, layout):
    lanes = isa.lanes
    for channels in sorted({1, 3, lanes - 1, lanes, lanes + 1, 2 * lanes + 2}):
        check_pool(pool(isa, "max", 7, channels, 3, 2, pad=1, batch=2, layout=layout), isa)


def test_blocks_of_several_vectors_are_refused(isa):
    several, one = (Image.blocked(2, 5 * isa.lanes, 6, 6, count * isa.lanes) for count in (2, 1))
    for x, y in ((several, one), (one, several)):
        with pytest.raises(EmitError, match=f"blocks of {2 * isa.lanes} channels"):
            emit_pooling(Pooling(Conv(x, y, groups=x.channels), "average"), Epilogue(), isa)


@pytest.mark.parametrize("kind", ["max", "average"])
def test_one_kernel_serves_all_sizes_and_paddings(isa, kind):
    kernels = [
        emit_pooling(pool(isa, kind, size, channels, 3, 2, pad=pad), Epilogue(), isa)
        for size, channels, pad in itertools.product((9, 20, 33), (isa.lanes, 3 * isa.lanes), (0, 1))
    ]
    assert len({kernel.name for kernel in kernels}) == len({kernel.ir for kernel in kernels}) <= 2  # small images have few pixels
    assert len({kernel.numbers for kernel in kernels}) == len(kernels)


def test_pools_of_one_dimension_are_images_one_high(isa):
    x, y = Image.nhwc(2, 9, 1, 23), Image.nhwc(2, 9, 1, 12)
    check_pool(Pooling(Conv(x, y, (1, 4), (1, 2), left=1, groups=9), "average", (0, 1)), isa)


@pytest.mark.parametrize("kind", ["max", "average"])
@pytest.mark.parametrize("size", [1, 7, 20, 37])
def test_global_pool(isa, kind, size):
    check_pool(pool(isa, kind, size, 2 * isa.lanes + 1, size, batch=2), isa)


def test_epilogue(isa):
    pooling = pool(isa, "average", 9, isa.lanes, 3, pad=1)
    check_pool(pooling, isa, chain(("add", pooling.window.y), "relu"), lambda v: np.maximum(v, 0))


@pytest.mark.parametrize("kind", ["max", "average"])
def test_windows_wider_than_the_registers_at_the_border(isa, kind):
    check_pool(pool(isa, kind, 40, isa.lanes, 35, 3, pad=15), isa)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_pool(isa, data):
    kernel, stride, dilation, size = (data.draw(pairs(1, high)) for high in (9, 3, 2, 24))
    pad = [data.draw(st.integers(0, side - 1)) for side in kernel]
    out = [(size[i] + 2 * pad[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1 for i in (0, 1)]
    assume(min(out) >= 1)
    channels, layouts = data.draw(st.integers(1, 40)), st.sampled_from(LAYOUTS)
    x, y = (image(data.draw(layouts), isa, 1, channels, *shape) for shape in (size, out))
    conv = Conv(x, y, kernel, stride, dilation, *pad, groups=channels)
    kind = data.draw(st.sampled_from(["max", "average"]))
    counted = tuple(pad) if kind == "average" and data.draw(st.booleans()) else None
    assume(counted or (sees_rows(conv) and sees_rows(turned(conv))))  # a window with nothing in it has no maximum
    check_pool(Pooling(conv, kind, counted), isa)


def sees_rows(conv):
    """Whether a kernel row lies inside the image for every output row."""
    return all(word & 0xFFFFFFFF < word >> 32 for word in row_table(conv).words)


def turned(conv):
    """Return a convolution whose vertical geometry is the horizontal one of `conv`."""
    x, y = replace(conv.x, height=conv.x.width), replace(conv.y, height=conv.y.width)
    kernel, strides, dilations = conv.kernel[::-1], conv.strides[::-1], conv.dilations[::-1]
    return replace(conv, x=x, y=y, kernel=kernel, strides=strides, dilations=dilations, top=conv.left)


@pytest.mark.parametrize(
    ("kind", "size", "kernel", "stride"), [("max", 28, 3, 2), ("max", 28, 2, 2), ("max", 14, 3, 1), ("average", 14, 14, 1)]
)
def test_tiles_do_not_spill(tuned, kind, size, kernel, stride):
    code = generate(
        emit_pooling(pool(tuned, kind, size, tuned.lanes, kernel, stride), Epilogue(), tuned).ir, tuned, count_spills=True
    )
    assert code.spills <= SPILL_LIMIT


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
    with pytest.raises(EmitError, match="x has blocks of 1 channels, need whole vectors of 8"):
        emit_pooling(Pooling(Conv(x, x), "max"), Epilogue(), isa)
    with pytest.raises(EmitError, match="pools take none"):
        emit_pooling(pool(isa, "max", 4, 8, 2), Epilogue(bias=True), isa)
