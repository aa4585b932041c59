"""Convolutions, products and pools of bfloat16, beside float64 of the same rounded numbers."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from kernels.expression import FLOAT, Apply, Expression
from kernels.native.emit.epilogue import Epilogue
from kernels.native.emit.geometry import Conv
from kernels.native.emit.words import BF16_WORDS, half_words
from kernels.native.families.conv import conv_tiles, emit_conv, pack_bias, pack_weights
from kernels.native.families.depthwise import depthwise_tiles, emit_depthwise, pack_depthwise, pack_depthwise_bias
from kernels.native.families.pool import emit_pooling
from kernels.native.families.winograd import Winograd, winograd_tiles
from kernels.native.families.winograd_kernels import emit_winograd, pack_winograd
from kernels.native.memory.image import Image
from kernels.native.target.isa import ISAS, host_isas
from kernels.spec import BFLOAT16
from tests.kernels.native.conftest import needs_emulator
from tests.kernels.native.convolutions import DIRECT, depthwise, image, square
from tests.kernels.native.poolings import pool, reference
from tests.kernels.native.reference import conv_reference, run_kernel

EMULATED = [isa for isa in (ISAS["neon"], ISAS["neon_i8mm"]) if all(isa.arch != host.arch for host in host_isas())]
RUN = [isa for isa in host_isas() if isa.name in {"sse", "avx2", "avx512", "avx512_bf16", "neon", "neon_i8mm"}]
HELD = Expression((FLOAT, BFLOAT16), (Apply("cast", (1,), (), FLOAT), Apply("add", (0, 2)), Apply("hold", (3,), (), BFLOAT16)))


@pytest.fixture(params=[*RUN, *(pytest.param(isa, marks=needs_emulator) for isa in EMULATED)], ids=lambda isa: isa.name)
def isa(request):
    """Return each instruction set that this machine runs, with and without products of bfloat16, and AArch64's."""
    return request.param


def rounded(rng, *shape) -> np.ndarray:
    return rng.standard_normal(shape).astype(BFLOAT16)


def placed(layout: Image, array: np.ndarray, behind: float = np.nan) -> np.ndarray:
    """Return memory of that layout. behind: what lies behind the last channel, and everywhere else."""
    memory = np.full(layout.elements + 64, behind, BFLOAT16)
    layout.view(memory)[...] = behind
    block = (layout.channels - 1) % layout.block + 1
    stored = np.zeros(layout.elements, BFLOAT16)
    layout.store(array, stored)
    layout.view(memory)[:, :-1] = layout.view(stored)[:, :-1]
    layout.view(memory)[:, -1, ..., :block] = layout.view(stored)[:, -1, ..., :block]
    return memory


class Case:
    """A convolution of random bfloat16 with an operand of the same type that is added, and a result that is held as that type."""

    def __init__(self, conv: Conv, weights: tuple[int, ...], seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.conv = conv
        self.x = rounded(rng, conv.x.batch, conv.x.channels, conv.x.height, conv.x.width)
        self.w = (rng.standard_normal(weights) / np.sqrt(np.prod(weights[1:]))).astype(BFLOAT16).astype(np.float32)
        self.b = rng.standard_normal(weights[0]).astype(np.float32)
        self.r = rounded(rng, conv.y.batch, conv.y.channels, conv.y.height, conv.y.width)
        self.y = np.full(conv.y.elements + 64, np.nan, BFLOAT16)
        self.epilogue = Epilogue(bias=True, expression=HELD, operands=(conv.y,))

    def run(self, kernel, isa, behind=np.nan, **packed) -> None:
        given = {"x": placed(self.conv.x, self.x, behind), "r0": placed(self.conv.y, self.r, 0), "y": self.y, **packed}
        run_kernel(kernel, isa, **{name: array for name, array in given.items() if name in kernel.arguments})

    def check(self, tolerance: float = 0.0) -> None:
        """Compare the result with float64, and check that nothing else was written. tolerance: of sums, relative to 1."""
        conv = self.conv
        exact = conv_reference(conv, self.x.astype(np.float64), self.w, self.b) + self.r.astype(np.float64)
        terms = self.w[0].size
        error = np.abs(conv.y.load(self.y).astype(np.float64) - exact)
        assert (error <= 2.0**-8 * np.abs(exact) + 2.0**-22 * terms + tolerance + 1e-30).all()
        conv.y.view(self.y)[...] = np.nan
        assert np.isnan(self.y.astype(np.float32)).all()


def check(conv: Conv, isa, tile=None, seed=0) -> None:
    """Check a direct convolution. conv: in elements of x."""
    case = Case(conv, (conv.y.channels, conv.group_inputs, *conv.kernel), seed)
    words = conv.joined(isa.lanes).counted(BF16_WORDS)
    tile = tile or conv_tiles(words, isa)[0]
    packed = {"w": pack_weights(words, tile, isa, half_words(case.w)), "b": pack_bias(words, isa, case.b, tile.vectors)}
    behind = 0 if conv.x.channels % 2 else np.nan
    case.run(emit_conv(words, tile, case.epilogue, isa), isa, behind, **packed)
    case.check()


@pytest.mark.parametrize("layout", ["blocked", "nhwc"])
@pytest.mark.parametrize(("kernel", "stride", "dilation", "pad"), DIRECT)
def test_kernels_strides_dilations_and_padding(isa, layout, kernel, stride, dilation, pad):
    check(square(isa, layout, 9, 2 * isa.lanes + 6, isa.lanes + 3, kernel, stride, dilation, pad), isa)


@pytest.mark.parametrize("pixels", [1, 2, 7, 9, 29])
def test_products(isa, pixels):
    for inputs in (2, 12, 66):
        check(Conv(Image.nhwc(1, inputs, 1, pixels), Image.nhwc(1, 2 * isa.lanes + 1, 1, pixels)), isa)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_first_layers(isa, channels):
    conv = square(isa, "blocked", 15, channels, 2 * isa.lanes, 7, stride=2, pad=3, batch=2)
    check(replace(conv, x=Image.blocked(2, channels, 15, 15, -(-channels // 2) * 2)), isa)


def test_odd_channels_with_zeros_behind(isa):
    check(square(isa, "blocked", 6, isa.lanes + 3, isa.lanes, 3, pad=1), isa)


@pytest.mark.parametrize("groups", [2, 3])
def test_groups(isa, groups):
    check(square(isa, "blocked", 6, groups * isa.lanes, groups * isa.lanes, 3, pad=1, groups=groups), isa)
    check(square(isa, "nhwc", 6, groups * 6, groups * 5, 3, pad=1, groups=groups), isa)


@pytest.mark.parametrize(("kernel", "stride", "dilation", "pad"), DIRECT)
def test_groups_that_share_vectors(isa, kernel, stride, dilation, pad):
    for size in [size for size in (2, 4, 8) if size < isa.lanes]:
        groups = isa.lanes // size
        check(square(isa, "blocked", 9, groups * size, groups * size, kernel, stride, dilation, pad, groups), isa)


@pytest.mark.parametrize("layout", ["blocked", "nhwc"])
@pytest.mark.parametrize(("kernel", "stride", "dilation", "pad"), DIRECT)
def test_depthwise(isa, layout, kernel, stride, dilation, pad):
    conv = depthwise(isa, layout, 9, 2 * isa.lanes + 3, kernel, stride, dilation, pad)
    case, held = Case(conv, (conv.y.channels, 1, *conv.kernel)), replace(conv, words=BF16_WORDS)
    tile = depthwise_tiles(held, isa)[0]
    packed = {"w": pack_depthwise(held, tile, isa, case.w), "b": pack_depthwise_bias(isa, case.b, tile.vectors)}
    case.run(emit_depthwise(held, tile, case.epilogue, isa), isa, **packed)
    case.check()


@pytest.mark.parametrize("unit", [2, 4])
@pytest.mark.parametrize("pad", [0, 1, 2])
def test_winograd_reads_and_writes_bfloat16(isa, unit, pad):
    conv = replace(square(isa, "blocked", 11, isa.lanes + 3, 2 * isa.lanes + 1, 3, pad=pad), words=BF16_WORDS)
    winograd = Winograd(conv, unit)
    for fused in (True, False):
        tile = next(tile for tile in winograd_tiles(winograd, isa, limit=100) if tile.fused == fused)
        case = Case(conv, (conv.y.channels, conv.x.channels, 3, 3))
        packed = {"w": pack_winograd(winograd, tile, isa, case.w), "b": pack_bias(conv, isa, case.b)}
        buffers = winograd_buffers(winograd, tile, isa)
        for kernel in emit_winograd(winograd, tile, case.epilogue, isa):
            given = {**packed, **buffers}
            case.run(kernel, isa, **{name: array for name, array in given.items() if name in kernel.arguments})
        case.check(tolerance=1e-4)


def winograd_buffers(winograd, tile, isa) -> dict[str, np.ndarray]:
    from kernels.native.families.winograd import winograd_cost

    sizes = winograd_cost(winograd, tile, isa).buffer_bytes
    return {name: np.full(size // 4 + 64, np.nan, np.float32) for name, size in sizes.items()}


@pytest.mark.parametrize("kind", ["max", "average"])
@pytest.mark.parametrize("layout", ["blocked", "nhwc"])
def test_pools(isa, kind, layout):
    for kernel, stride, pad in ((3, 2, 1), (2, 2, 0), (3, 1, 1), (9, 9, 0)):
        pooling = pool(isa, kind, 9, isa.lanes + 3, kernel, stride, pad=pad, layout=layout)
        pooling = replace(pooling, window=replace(pooling.window, words=BF16_WORDS))
        conv = pooling.window
        x = rounded(np.random.default_rng(0), conv.x.batch, conv.x.channels, conv.x.height, conv.x.width)
        y = np.full(conv.y.elements + 64, np.nan, BFLOAT16)
        epilogue: Epilogue[Image] = Epilogue(expression=Expression((FLOAT,), (Apply("hold", (0,), (), BFLOAT16),)))
        run_kernel(emit_pooling(pooling, epilogue, isa), isa, x=placed(conv.x, x), y=y)
        exact = reference(pooling, x.astype(np.float64))
        np.testing.assert_allclose(conv.y.load(y).astype(np.float64), exact, rtol=2.0**-8, atol=1e-6)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_any_convolution_on_any_of_its_tiles(isa, data):
    pair = lambda low, high: data.draw(st.tuples(st.integers(low, high), st.integers(low, high)))  # noqa: E731
    kernel, stride, dilation, size, pad = pair(1, 5), pair(1, 3), pair(1, 2), pair(1, 12), pair(0, 3)
    out = [(size[i] + 2 * pad[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1 for i in (0, 1)]
    assume(min(out) >= 1)
    inputs, outputs = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40))
    x = image(data.draw(st.sampled_from(["blocked", "nhwc"])), isa, 2, inputs, *size)
    assume(x.block == isa.lanes or inputs % 2 == 0)
    y = image(data.draw(st.sampled_from(["blocked", "nhwc", "slice"])), isa, 2, outputs, *out)
    conv = Conv(x, y, kernel, stride, dilation, *pad)
    check(conv, isa, data.draw(st.sampled_from(conv_tiles(conv.counted(BF16_WORDS), isa))), data.draw(st.integers(0, 99)))
