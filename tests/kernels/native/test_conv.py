import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kernels.native.code.compile import SPILL_LIMIT, generate
from kernels.native.emit.epilogue import Epilogue
from kernels.native.emit.geometry import Conv
from kernels.native.errors import EmitError
from kernels.native.families.conv import conv_tiles, emit_conv, make_tile, pack_bias, pack_weights
from kernels.native.memory.image import Image
from kernels.native.target.isa import ISAS
from tests.kernels.native.chains import chain
from tests.kernels.native.convolutions import DIRECT, LAYOUTS, check_conv, image, square, windows
from tests.kernels.native.reference import place, run_kernel


def product(isa, layout, pixels, inputs, outputs, batch=1):
    return Conv(image(layout, isa, batch, inputs, 1, pixels), image(layout, isa, batch, outputs, 1, pixels))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_product_pixel_tails(isa, layout):
    for pixels in (1, 2, 3, 4, 5, 7, 8, 9):
        conv = product(isa, layout, pixels, 19, 2 * isa.lanes)
        check_conv(conv, make_tile(conv, isa, min(4, pixels), 2), isa)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_product_output_channel_tails(isa, layout):
    lanes = isa.lanes
    for outputs in sorted({1, 2, lanes - 1, lanes, lanes + 1, 2 * lanes - 1, 2 * lanes, 3 * lanes + 2, 4 * lanes}):
        conv = product(isa, layout, 7, 16, outputs)
        check_conv(conv, make_tile(conv, isa, 3, 2), isa, Epilogue(bias=True))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_product_input_channel_tails(isa, layout):
    for inputs in (1, 2, 3, 5, 15, 16, 17, 31, 33, 40):
        conv = product(isa, layout, 6, inputs, isa.lanes)
        check_conv(conv, make_tile(conv, isa, 6, 1), isa)


def test_product_in_batches(isa):
    conv = product(isa, "blocked", 5, 8, 2 * isa.lanes, batch=3)
    check_conv(conv, make_tile(conv, isa, 2, 1), isa)


@pytest.mark.parametrize("weights_inner", [True, False])
@pytest.mark.parametrize(("pixels", "row_pixels"), [(23, 8), (24, 8), (9, 8), (8, 4)])
def test_product_cut_into_rows(isa, weights_inner, pixels, row_pixels):
    conv = product(isa, "nhwc", pixels, 9, 3 * isa.lanes + 1)
    tile = replace(make_tile(conv, isa, 4, 2), row_pixels=row_pixels, rows=2, weights_inner=weights_inner)
    check_conv(conv, tile, isa, chain(("add", conv.y), bias=True))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("kernel", "stride", "dilation", "pad"), [*DIRECT, (1, 2, 1, 0), (4, 3, 2, 3)])
def test_direct_kernels_strides_dilations_and_padding(isa, layout, kernel, stride, dilation, pad):
    for size in (8, 11):
        conv = square(isa, layout, size, 5, isa.lanes + 3, kernel, stride, dilation, pad)
        check_conv(conv, make_tile(conv, isa, min(4, conv.y.width), 2), isa, Epilogue(bias=True))


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_first_layers_read_nchw_as_it_is(isa, channels):
    conv = square(isa, "blocked", 15, channels, 2 * isa.lanes, 7, stride=2, pad=3, x_layout="nchw", batch=2)
    check_conv(conv, make_tile(conv, isa, 4, 2), isa, Epilogue(bias=True))


def test_kernel_larger_than_the_image(isa):
    conv = square(isa, "blocked", 2, 3, isa.lanes, 5, pad=2)
    check_conv(conv, make_tile(conv, isa, 2, 1), isa)


def test_padding_that_hides_the_whole_image_from_some_outputs(isa):
    conv = square(isa, "blocked", 2, 3, isa.lanes, 2, pad=4)
    check_conv(conv, make_tile(conv, isa, 3, 1), isa, Epilogue(bias=True))


def test_only_row_lies_in_the_padding(isa):
    conv = Conv(Image.nchw(1, 5, 1, 11), Image.nhwc(1, 7, 1, 8), (1, 3), (3, 2), top=1, left=3)
    check_conv(conv, make_tile(conv, isa, 4, 1), isa, Epilogue(bias=True))


def test_uneven_padding_follows_from_the_output_size(isa):
    x, y = Image.blocked(1, 4, 6, 7, isa.lanes), Image.blocked(1, 5, 7, 8, isa.lanes)
    conv = Conv(x, y, (3, 2), (1, 1), (1, 1), top=1, left=0)
    check_conv(conv, make_tile(conv, isa, 3, 1), isa)


@pytest.mark.parametrize("groups", [2, 4])
def test_groups(isa, groups):
    lanes = isa.lanes
    conv = square(isa, "blocked", 6, groups * lanes, groups * 2 * lanes, 3, pad=1, groups=groups)
    check_conv(conv, make_tile(conv, isa, 3, 1), isa, Epilogue(bias=True))
    conv = square(isa, "nhwc", 6, groups * 3, groups * 5, 3, pad=1, groups=groups)
    check_conv(conv, make_tile(conv, isa, 3, 1), isa, Epilogue(bias=True))
    conv = square(isa, "nhwc", 6, lanes, lanes, 3, pad=1, groups=groups)  # all groups in one vector
    check_conv(conv, make_tile(conv, isa, 3, 1), isa, chain(("add", conv.y), bias=True))


def group_sizes(isa):
    """Channels of groups of which several share a vector."""
    return [size for size in (2, 4, 8) if size < isa.lanes]


@pytest.mark.parametrize(("kernel", "stride", "dilation", "pad"), DIRECT)
def test_groups_that_share_vectors(isa, kernel, stride, dilation, pad):
    for size, width in itertools.product(group_sizes(isa), (5, 9)):
        for groups in (isa.lanes // size, 2 * isa.lanes // size + 1):  # the last vector is filled, or is not
            apart = square(isa, "blocked", width, groups * size, groups * size, kernel, stride, dilation, pad, groups, batch=2)
            conv = apart.joined(isa.lanes)
            assert (conv.groups, conv.within, conv.macs) == (1, size, apart.macs)
            for tile in conv_tiles(conv, isa):
                check_conv(conv, tile, isa, chain(("add", conv.y), "relu", bias=True), lambda y: np.maximum(y, 0))


def test_numbers_that_are_not_finite_stay_in_their_group(isa):
    size, groups = 2, isa.lanes + 1
    conv = square(isa, "blocked", 3, groups * size, groups * size, 3, pad=1, groups=groups).joined(isa.lanes)
    tile, x = conv_tiles(conv, isa)[0], np.ones((1, groups * size, 3, 3), np.float32)
    x[:, size], x[:, 3 * size] = np.nan, np.inf
    w = np.ones((groups * size, size, 3, 3), np.float32)
    memory = np.full(conv.y.elements + 64, np.nan, np.float32)
    kernel, packed = emit_conv(conv, tile, Epilogue(bias=True), isa), pack_weights(conv, tile, isa, w)
    bias = pack_bias(conv, isa, np.zeros(groups * size, np.float32), tile.vectors)
    run_kernel(kernel, isa, x=place(conv.x, x), w=packed, b=bias, y=memory)
    finite = np.isfinite(conv.y.load(memory)).reshape(groups, -1)
    assert finite.all(axis=1).tolist() == [group not in {1, 3} for group in range(groups)]
    assert finite.any(axis=1).tolist() == finite.all(axis=1).tolist()


def test_groups_of_vectors_need_blocks_and_tiles_of_one_vector(isa):
    size = isa.lanes // 2
    conv = replace(square(isa, "nhwc", 6, 4 * size, 4 * size, 3, pad=1), within=size)
    with pytest.raises(EmitError, match=rf"groups of {size} of {4 * size} channels in rows, need blocks and tiles of one vector"):
        emit_conv(conv, make_tile(conv, isa, 4, 1), Epilogue(bias=True), isa)


def test_rows_of_a_chunk_need_not_divide_the_rows(isa):
    conv = square(isa, "blocked", 7, 4, 2 * isa.lanes, 3, pad=1, batch=2)
    for weights_inner in (True, False):
        for rows in (1, 2, 3, 7):
            tile = replace(make_tile(conv, isa, 4, 1), rows=rows, weights_inner=weights_inner)
            check_conv(conv, tile, isa)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_epilogue_adds_bias_and_residual_and_activates(isa, layout):
    conv = square(isa, layout, 6, 8, isa.lanes + 5, 3, pad=1)
    cases: dict[Any, Any] = {
        "relu": lambda v: np.maximum(v, 0),
        ("clip", 0.0, 0.5): lambda v: np.clip(v, 0, 0.5),
        "silu": lambda v: v / (1 + np.exp(-v)),
    }
    for activation, exact in cases.items():
        check_conv(conv, make_tile(conv, isa, 3, 2), isa, chain(("add", conv.y), activation, bias=True), exact)


def test_residual_may_be_the_output_itself(isa):
    conv = product(isa, "blocked", 9, 4, isa.lanes)
    rng = np.random.default_rng(1)
    x, added = rng.standard_normal((1, 4, 1, 9)), rng.standard_normal((1, isa.lanes, 1, 9)).astype(np.float32)
    from kernels.native.families.conv import pack_weights
    from tests.kernels.native.reference import assert_close, conv_reference

    w = rng.standard_normal((isa.lanes, 4, 1, 1)).astype(np.float32)
    tile, y = make_tile(conv, isa, 4, 1), place(conv.y, added)
    kernel = emit_conv(conv, tile, chain(("add", conv.y)), isa)
    run_kernel(kernel, isa, x=place(conv.x, x), w=pack_weights(conv, tile, isa, w), r0=y, y=y)
    assert_close(conv.y.load(y), conv_reference(conv, x.astype(np.float32), w) + added, 8)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_convolution_on_its_default_tiles(isa, data):
    layout = data.draw(st.sampled_from(LAYOUTS))
    kernel, stride, dilation, size, pad, out = data.draw(windows(4, 12))
    inputs, outputs = data.draw(st.integers(1, 20)), data.draw(st.integers(1, 40))
    x_layout = data.draw(st.sampled_from([*LAYOUTS, "nchw"]))
    conv = Conv(image(x_layout, isa, 1, inputs, *size), image(layout, isa, 1, outputs, *out), kernel, stride, dilation, *pad)
    tile = data.draw(st.sampled_from(conv_tiles(conv, isa)))
    check_conv(conv, tile, isa, Epilogue(bias=True))


def test_default_tiles_fill_the_registers_and_do_not_spill(tuned):
    for conv in (
        square(tuned, "blocked", 28, 128, 128, 3, pad=1),
        square(tuned, "blocked", 14, 256, 512, 1),
        square(tuned, "blocked", 64, 3, 4 * tuned.lanes, 7, stride=2, pad=3, x_layout="nchw"),
        product(tuned, "nhwc", 197, 768, 768),
    ):
        best = conv_tiles(conv, tuned)[0]
        assert best.pixels * best.vectors >= 8
        spills = generate(emit_conv(conv, best, Epilogue(bias=True), tuned).ir, tuned, count_spills=True).spills
        assert spills <= SPILL_LIMIT


def test_layouts_that_vectors_cannot_write_are_refused():
    isa = ISAS["avx512"]
    x = Image.nchw(1, 16, 4, 4)
    with pytest.raises(EmitError, match="y has blocks of 1 channels, a tile writes vectors of 16"):
        emit_conv(Conv(x, x), make_tile(Conv(x, x), isa, 4, 1), Epilogue(), isa)
    blocked = Image.blocked(1, 24, 4, 4, 16)
    with pytest.raises(EmitError, match="x has blocks of 16 channels, groups of 12 begin inside them"):
        emit_conv(Conv(blocked, blocked, groups=2), make_tile(Conv(blocked, blocked, groups=2), isa, 4, 1), Epilogue(), isa)
    plain = Image.nhwc(1, 24, 4, 4)
    last = Conv(plain, plain, groups=2)
    with pytest.raises(EmitError, match="operand 0 has blocks of 16 channels, groups of 12 begin inside them"):
        emit_conv(last, make_tile(last, isa, 4, 1), chain(("add", blocked)), isa)


def kernels_of(isa, layout, pairs, epilogue):
    """Convolutions of every size, window, padding and grouping of these channels, by one tile."""
    for (inputs, outputs), size, (kernel, _, dilation, pad), groups in itertools.product(pairs, (5, 12), DIRECT, (1, 2)):
        conv = square(isa, layout, size, groups * inputs, groups * outputs, kernel, 1, dilation, pad, groups, batch=groups)
        yield emit_conv(conv, make_tile(conv, isa, 3, 2), epilogue, isa)


@pytest.mark.parametrize("layout", ["blocked", "nhwc"])
def test_one_kernel_serves_all_sizes_windows_and_groups(isa, layout):
    lanes = isa.lanes
    kernels = list(kernels_of(isa, layout, [(2 * lanes, 4 * lanes), (3 * lanes, 2 * lanes)], Epilogue(bias=True)))
    assert len({kernel.name for kernel in kernels}) == len({kernel.ir for kernel in kernels}) == 1
    assert len({kernel.numbers for kernel in kernels}) > 50


@pytest.mark.parametrize(("pixels", "vectors"), [(14, 2), (6, 2), (3, 1)])
def test_code_is_small(isa, pixels, vectors):
    conv = square(isa, "blocked", 9, 2 * isa.lanes, 2 * isa.lanes, 3, pad=1)
    kernel = emit_conv(conv, make_tile(conv, isa, pixels, vectors), chain(("add", conv.y), "relu", bias=True), isa)
    assert kernel.ir.count("\n") < 480 + 16 * pixels * vectors
