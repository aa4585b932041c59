from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kernels.native.code.compile import SPILL_LIMIT, generate
from kernels.native.emit.epilogue import Epilogue
from kernels.native.emit.geometry import Conv
from kernels.native.errors import EmitError
from kernels.native.families.depthwise import depthwise_tiles, emit_depthwise, make_depthwise_tile
from kernels.native.memory.image import Image
from kernels.native.target.isa import ISAS
from tests.kernels.native.chains import chain
from tests.kernels.native.convolutions import DIRECT, LAYOUTS, check_depthwise, depthwise, image, windows


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("kernel", "stride", "dilation", "pad"), DIRECT)
def test_kernels_strides_dilations_and_padding(isa, layout, kernel, stride, dilation, pad):
    for size in (8, 11):
        conv = depthwise(isa, layout, size, isa.lanes, kernel, stride, dilation, pad)
        check_depthwise(conv, make_depthwise_tile(conv, isa, min(4, conv.y.width), 1), isa)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("vectors", [1, 2, 3])
def test_channel_tails(isa, layout, vectors):
    lanes = isa.lanes
    for channels in sorted({1, 3, lanes - 1, lanes, lanes + 1, 2 * lanes, 3 * lanes - 1, 4 * lanes + 2}):
        conv = depthwise(isa, layout, 6, channels, 3, pad=1)
        check_depthwise(conv, make_depthwise_tile(conv, isa, 3, vectors), isa)


@pytest.mark.parametrize("pixels", range(1, 9))
def test_pixel_tails(isa, pixels):
    conv = depthwise(isa, "blocked", 8, isa.lanes, 3, pad=1, batch=2)
    check_depthwise(conv, make_depthwise_tile(conv, isa, pixels, 1), isa)


def test_rows_of_a_chunk_need_not_divide_the_rows(isa):
    conv = depthwise(isa, "blocked", 7, 2 * isa.lanes, 3, pad=1, batch=2)
    for rows in (1, 2, 3, 7):
        check_depthwise(conv, replace(make_depthwise_tile(conv, isa, 4, 1), rows=rows), isa)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_epilogue(isa, layout):
    conv = depthwise(isa, layout, 6, isa.lanes + 2, 3, pad=1)
    check_depthwise(
        conv,
        make_depthwise_tile(conv, isa, 3, 1),
        isa,
        chain(("add", conv.y), "relu", bias=True),
        lambda v: np.maximum(v, 0),
    )


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_depthwise_convolution_on_its_default_tiles(isa, data):
    kernel, stride, dilation, size, pad, out = data.draw(windows(7, 14))
    channels, layouts = data.draw(st.integers(1, 40)), st.sampled_from(LAYOUTS)
    x, y = (image(data.draw(layouts), isa, 1, channels, *shape) for shape in (size, out))
    conv = Conv(x, y, kernel, stride, dilation, *pad, groups=channels)
    check_depthwise(conv, data.draw(st.sampled_from(depthwise_tiles(conv, isa))), isa)


@pytest.mark.parametrize(("size", "kernel", "stride"), [(56, 3, 1), (28, 5, 1), (14, 3, 1), (7, 5, 1), (112, 3, 2)])
def test_default_tiles_do_not_spill(tuned, size, kernel, stride):
    conv = depthwise(tuned, "blocked", size, 6 * tuned.lanes, kernel, stride, pad=kernel // 2)
    code = generate(
        emit_depthwise(conv, depthwise_tiles(conv, tuned)[0], Epilogue(bias=True), tuned).ir, tuned, count_spills=True
    )
    assert code.spills <= SPILL_LIMIT


def test_other_groups_and_layouts_are_refused():
    isa, x, y = ISAS["avx512"], Image.nchw(1, 16, 4, 4), Image.blocked(1, 16, 4, 4, 16)
    with pytest.raises(EmitError, match="x has blocks of 1 channels"):
        emit_depthwise(Conv(x, y, groups=16), make_depthwise_tile(Conv(x, y, groups=16), isa, 4, 1), Epilogue(), isa)
    with pytest.raises(EmitError, match="16 to 16 channels in 1 groups, need one each"):
        emit_depthwise(Conv(y, y), make_depthwise_tile(Conv(y, y), isa, 4, 1), Epilogue(), isa)
