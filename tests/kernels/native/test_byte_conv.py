"""Convolutions and products of bytes, to the bit."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from kernels.expression import INT32, Expression
from kernels.native.emit.epilogue import Epilogue
from kernels.native.emit.geometry import Conv
from kernels.native.emit.words import INT8, UINT8, Words, byte_words
from kernels.native.families.conv import conv_tiles, emit_conv, pack_weights, pack_zeros
from kernels.native.families.depthwise import depthwise_tiles, emit_depthwise, pack_depthwise, pack_depthwise_bias
from kernels.native.memory.image import Image
from kernels.native.target.isa import ISAS, host_isas
from tests.kernels.native.conftest import needs_emulator
from tests.kernels.native.convolutions import DIRECT, depthwise, image, square, windows
from tests.kernels.native.reference import conv_reference, run_kernel

PLAIN_ISAS = [isa for isa in host_isas() if isa.name in {"sse", "avx2", "avx512", "neon"}]
DOT_ISAS = [isa for isa in host_isas() if isa.name in {"avx2_vnni", "avx512_bf16", "neon_dotprod"}]
EMULATED = [isa for isa in (ISAS["neon"], ISAS["neon_dotprod"]) if all(isa.arch != host.arch for host in host_isas())]
SUMS: Epilogue[Image] = Epilogue(bias=True, expression=Expression((INT32,)))
POISON = 77


@pytest.fixture(
    params=[*PLAIN_ISAS, *DOT_ISAS, *(pytest.param(isa, marks=needs_emulator) for isa in EMULATED)], ids=lambda isa: isa.name
)
def isa(request):
    """Return each instruction set that this machine runs, with the instruction for four bytes and without, and AArch64's."""
    return request.param


def in_words(conv: Conv, dtype=UINT8, zero=0) -> Conv:
    words = Words(dtype)
    return replace(conv, x=conv.x.words(words.depth), words=words, zero=zero)


def check(conv: Conv, isa, dtype=UINT8, zero=0, tile=None, seed=0):
    """Run a convolution of random bytes and compare it with the definition. conv: in elements of x."""
    rng, info = np.random.default_rng(seed), np.iinfo(dtype)
    x = rng.integers(info.min, info.max + 1, (conv.x.batch, conv.x.channels, conv.x.height, conv.x.width)).astype(dtype)
    w = rng.integers(-128, 128, (conv.y.channels, conv.group_inputs, *conv.kernel)).astype(np.int8)
    exact = conv_reference(conv, x.astype(np.int64) - zero, w)
    by_channel = conv.groups == conv.x.channels > 1
    words = replace(conv, words=Words(dtype), zero=zero) if by_channel else in_words(conv, dtype, zero).joined(isa.lanes)
    tile = tile or (depthwise_tiles if by_channel else conv_tiles)(words, isa)[0]
    memory = rng.integers(info.min, info.max + 1, -(-conv.x.elements // 4) * 4).astype(dtype)  # padding lanes hold anything
    conv.x.view(memory)[...] = conv.x.view(stored(conv.x, x))
    y = np.full(conv.y.elements + 64, POISON, np.int32)
    if by_channel:
        kernel, packed = emit_depthwise(words, tile, SUMS, isa), pack_depthwise(words, tile, isa, w.astype(np.float32))
        zeros = pack_depthwise_bias(isa, np.zeros(conv.y.channels), tile.vectors)
    else:
        kernel, packed = emit_conv(words, tile, SUMS, isa), pack_weights(words, tile, isa, byte_words(w))
        zeros = pack_zeros(words, isa, w, tile.vectors)
    run_kernel(kernel, isa, x=memory, w=packed, b=zeros, y=y)
    np.testing.assert_array_equal(conv.y.load(y), exact)
    conv.y.view(y)[...] = POISON
    assert (y == POISON).all()  # memory outside of the image was not written


def stored(layout: Image, array: np.ndarray) -> np.ndarray:
    memory = np.zeros(layout.elements, array.dtype)
    layout.store(array, memory)
    return memory


@pytest.mark.parametrize("dtype", [UINT8, INT8], ids=str)
@pytest.mark.parametrize(("kernel", "stride", "dilation", "pad"), DIRECT)
def test_kernels_strides_dilations_and_padding(isa, dtype, kernel, stride, dilation, pad):
    for zero in (0, 3, -7 if dtype == INT8 else 200):
        conv = square(isa, "blocked", 9, 2 * isa.lanes + 3, isa.lanes + 3, kernel, stride, dilation, pad)
        check(conv, isa, dtype, zero)


def test_padding_that_hides_the_whole_image_from_some_outputs(isa):
    check(square(isa, "blocked", 2, 3, isa.lanes, 2, pad=4), isa, zero=9)


def test_only_row_lies_in_the_padding(isa):
    conv = Conv(Image.nhwc(1, 8, 1, 11), Image.nhwc(1, 7, 1, 8), (1, 3), (3, 2), top=1, left=3)
    check(conv, isa, zero=5)


@pytest.mark.parametrize("pixels", [1, 2, 7, 9, 29])
def test_products(isa, pixels):
    for inputs in (4, 12, 64, 68):
        conv = Conv(Image.nhwc(1, inputs, 1, pixels), Image.nhwc(1, 2 * isa.lanes + 1, 1, pixels))
        check(conv, isa, zero=11)


@pytest.mark.parametrize("channels", [1, 3, 4, 5])
def test_first_layers(isa, channels):
    check(square(isa, "blocked", 15, channels, 2 * isa.lanes, 7, stride=2, pad=3, batch=2), isa, zero=100)


@pytest.mark.parametrize("groups", [2, 3])
def test_groups(isa, groups):
    check(square(isa, "blocked", 6, groups * isa.lanes, groups * isa.lanes, 3, pad=1, groups=groups), isa, zero=1)
    check(square(isa, "nhwc", 6, groups * 8, groups * 5, 3, pad=1, groups=groups), isa, zero=1)


@pytest.mark.parametrize("dtype", [UINT8, INT8], ids=str)
@pytest.mark.parametrize(("kernel", "stride", "dilation", "pad"), DIRECT)
def test_groups_that_share_vectors(isa, dtype, kernel, stride, dilation, pad):
    for size in [size for size in (4, 8) if size < isa.lanes]:
        for groups in (isa.lanes // size, 2 * isa.lanes // size + 1):  # the last vector is filled, or is not
            apart = square(isa, "blocked", 9, groups * size, groups * size, kernel, stride, dilation, pad, groups)
            conv = in_words(apart, dtype, 5).joined(isa.lanes)
            assert (conv.groups, conv.within, conv.macs) == (1, size, apart.macs // 4)
            for tile in conv_tiles(conv, isa):
                check(apart, isa, dtype, 5, tile)


@pytest.mark.parametrize("dtype", [UINT8, INT8], ids=str)
@pytest.mark.parametrize("layout", ["blocked", "nhwc"])
@pytest.mark.parametrize(("kernel", "stride", "dilation", "pad"), DIRECT)
def test_depthwise(isa, layout, dtype, kernel, stride, dilation, pad):
    check(
        depthwise(isa, layout, 9, 2 * isa.lanes + 3, kernel, stride, dilation, pad), isa, dtype, zero=-5 if dtype == INT8 else 130
    )


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_any_convolution_on_any_of_its_tiles(isa, data):
    kernel, stride, dilation, size, pad, out = data.draw(windows(5, 12))
    inputs, outputs = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40))
    x = image(data.draw(st.sampled_from(["blocked", "nhwc"])), isa, 2, inputs, *size)
    assume(x.block < inputs or inputs % 4 == 0 or x.block == isa.lanes)
    y = image(data.draw(st.sampled_from(["blocked", "nhwc", "slice"])), isa, 2, outputs, *out)
    conv = Conv(x, y, kernel, stride, dilation, *pad)
    dtype = data.draw(st.sampled_from([UINT8, INT8]))
    info = np.iinfo(dtype)
    zero = data.draw(st.integers(int(info.min), int(info.max)))
    tiles = conv_tiles(in_words(conv, dtype, zero), isa)
    check(conv, isa, dtype, zero, data.draw(st.sampled_from(tiles)))
