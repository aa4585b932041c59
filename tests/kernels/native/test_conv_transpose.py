"""Transposed convolutions as the convolutions of their phases, against their definition in float64."""

import itertools

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from kernels.native.emit.epilogue import Epilogue
from kernels.native.families.conv import conv_tiles, emit_conv, make_tile, pack_bias, pack_weights
from kernels.native.families.conv_transpose import Transposed, as_convolution, phase_count, phase_taps, phases
from kernels.native.families.depthwise import depthwise_tiles, emit_depthwise, pack_depthwise, pack_depthwise_bias
from kernels.native.memory.image import Image
from tests.kernels.native.chains import chain
from tests.kernels.native.convolutions import LAYOUTS, image, pairs
from tests.kernels.native.reference import assert_close, epilogue_operands, place, run_kernel


def transposed(isa, layout, size, channels, form, groups=1, batch=1, x_layout=None):
    """Return a transposed convolution. channels: of input and output.

    form: kernel, stride, dilation, padding and output padding, alike on all sides.
    """
    (inputs, outputs), (kernel, stride, dilation, pad, extra) = channels, form
    out = (size - 1) * stride + (kernel - 1) * dilation + 1 - 2 * pad + extra
    x, y = image(x_layout or layout, isa, batch, inputs, size, size), image(layout, isa, batch, outputs, out, out)
    return Transposed(x, y, (kernel, kernel), (stride, stride), (dilation, dilation), pad, pad, groups)


def reference(t, x, w, b):
    """Compute a transposed convolution in float64: every input pixel adds its products to the outputs that they reach."""
    (rows, columns), (sy, sx), (dy, dx) = t.kernel, t.strides, t.dilations
    height = max((t.x.height - 1) * sy + (rows - 1) * dy + 1, t.top + t.y.height)
    width = max((t.x.width - 1) * sx + (columns - 1) * dx + 1, t.left + t.y.width)
    full = np.zeros((x.shape[0], t.y.channels, height, width))
    inputs, outputs = t.x.channels // t.groups, t.y.channels // t.groups
    for g, r, s in np.ndindex(t.groups, rows, columns):
        taken = x[:, g * inputs : (g + 1) * inputs].astype(np.float64)
        products = np.einsum("nchw,ck->nkhw", taken, w[g * inputs : (g + 1) * inputs, :, r, s].astype(np.float64))
        ys, xs = r * dy + sy * np.arange(t.x.height), s * dx + sx * np.arange(t.x.width)
        full[:, g * outputs : (g + 1) * outputs, ys[0] : ys[-1] + 1 : sy, xs[0] : xs[-1] + 1 : sx] += products
    exact = full[:, :, t.top : t.top + t.y.height, t.left : t.left + t.y.width]
    return exact + b.astype(np.float64)[None, :, None, None]


def check(t, isa, tile_of, epilogue=None, exact_activation=None, depthwise=False):
    epilogue, rng = epilogue or Epilogue(bias=True), np.random.default_rng(0)
    x = rng.standard_normal((t.x.batch, t.x.channels, t.x.height, t.x.width)).astype(np.float32)
    outputs = t.y.channels // t.groups
    w = rng.standard_normal((t.x.channels, outputs, *t.kernel)).astype(np.float32) / np.float32(np.sqrt(t.x.channels))
    b = rng.standard_normal(t.y.channels).astype(np.float32)
    operands, exact = epilogue_operands(epilogue, reference(t, x, w, b), rng)
    exact = exact_activation(exact) if exact_activation else exact
    memory, weights, x_memory = np.full(t.y.elements + 64, np.nan, np.float32), as_convolution(w, t.groups), place(t.x, x)
    for phase in phases(t):
        conv, mine = phase.conv, epilogue.laid(lambda image, first=phase.first: image.every(first, t.strides)[0])
        tile = tile_of(conv)
        if depthwise:
            kernel, packed = emit_depthwise(conv, tile, mine, isa), pack_depthwise(conv, tile, isa, phase.weights(weights))
            bias = pack_depthwise_bias(isa, b, tile.vectors)
        else:
            kernel, packed = emit_conv(conv, tile, mine, isa), pack_weights(conv, tile, isa, phase.weights(weights))
            bias = pack_bias(conv, isa, b, tile.vectors)
        at_x, at_y = t.x.every(phase.skipped, (1, 1))[1], t.y.every(phase.first, t.strides)[1]
        others = {
            name: array[image_of.every(phase.first, t.strides)[1] :]
            for (name, array), image_of in zip(operands.items(), epilogue.operands, strict=True)
        }
        run_kernel(kernel, isa, x=x_memory[at_x:], w=packed, b=bias, y=memory[at_y:], **others)
    taps = t.x.channels // t.groups * t.kernel[0] * t.kernel[1]
    assert_close(t.y.load(memory), exact, taps)
    t.y.view(memory)[...] = np.nan
    assert np.isnan(memory).all()  # what does not belong to the image was left alone


def tile(isa, pixels=3, vectors=2):
    return lambda conv: make_tile(conv, isa, min(pixels, conv.y.width), vectors)


# kernel, stride, dilation, pad, extra
FORMS = [
    (2, 2, 1, 0, 0),
    (4, 2, 1, 1, 0),
    (3, 2, 1, 1, 1),
    (3, 1, 1, 1, 0),
    (5, 3, 1, 2, 2),
    (3, 2, 2, 1, 1),
    (3, 4, 6, 3, 0),
    (1, 1, 1, 0, 0),
    (1, 3, 1, 0, 2),
    (2, 4, 1, 0, 0),
    (2, 1, 3, 2, 0),
]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_kernels_strides_dilations_and_padding(isa, layout, form):
    check(transposed(isa, layout, 5, (5, isa.lanes + 3), form, batch=2), isa, tile(isa))


def test_first_layers_read_nchw_as_it_is(isa):
    check(transposed(isa, "blocked", 4, (3, 2 * isa.lanes), (4, 2, 1, 1, 0), x_layout="nchw", batch=2), isa, tile(isa))


@pytest.mark.parametrize("groups", [2, 3])
def test_groups(isa, groups):
    lanes = isa.lanes
    blocks, odd = (groups * lanes, groups * 2 * lanes), (groups * 3, groups * 5)
    check(transposed(isa, "blocked", 4, blocks, (4, 2, 1, 1, 0), groups), isa, tile(isa, 3, 1))
    check(transposed(isa, "nhwc", 4, odd, (3, 2, 1, 1, 0), groups), isa, tile(isa, 3, 1))


def test_each_channel_by_itself(isa):
    channels = 2 * isa.lanes + 1
    for form in FORMS:
        t = transposed(isa, "blocked", 5, (channels, channels), form, groups=channels)
        check(t, isa, lambda conv: depthwise_tiles(conv, isa)[0], depthwise=True)


def test_epilogue_reads_the_pixels_of_its_phase(isa):
    t = transposed(isa, "blocked", 4, (5, isa.lanes + 5), (3, 2, 1, 1, 1))
    last = Image.nhwc(1, t.y.channels, t.y.height, t.y.width)
    epilogue = chain(("add", t.y), ("mul", last), "relu", bias=True)
    check(t, isa, tile(isa), epilogue, lambda v: np.maximum(v, 0))


def test_outputs_that_meet_nothing_get_the_bias_even_beside_infinity(isa):
    t = transposed(isa, "blocked", 2, (isa.lanes, isa.lanes), (1, 2, 1, 0, 1))
    weights = as_convolution(np.ones((isa.lanes, isa.lanes, 1, 1), np.float32), 1)
    x, y = place(t.x, np.full((1, isa.lanes, 2, 2), np.inf)), np.full(t.y.elements, np.nan, np.float32)
    for phase in phases(t):
        make = tile(isa)(phase.conv)
        packed, at = pack_weights(phase.conv, make, isa, phase.weights(weights)), t.y.every(phase.first, t.strides)[1]
        bias = pack_bias(phase.conv, isa, np.full(isa.lanes, 2, np.float32))
        run_kernel(emit_conv(phase.conv, make, Epilogue(bias=True), isa), isa, x=x, w=packed, b=bias, y=y[at:])
    row, nothing = [np.inf, 2, np.inf, 2], [2, 2, 2, 2]
    np.testing.assert_array_equal(t.y.load(y)[0, 0], [row, nothing, row, nothing])


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_transposed_convolution_on_its_default_tiles(isa, data):
    size, kernel, strides, dilations = (data.draw(pairs(1, high)) for high in (6, 5, 4, 3))
    cut, extra = data.draw(pairs(0, 4)), data.draw(pairs(-2, 5))
    out = [(size[i] - 1) * strides[i] + (kernel[i] - 1) * dilations[i] + 1 - cut[i] + extra[i] for i in (0, 1)]
    assume(min(out) >= 1)
    inputs, outputs = data.draw(st.integers(1, 20)), data.draw(st.integers(1, 40))
    layout, x_layout = data.draw(st.sampled_from(LAYOUTS)), data.draw(st.sampled_from([*LAYOUTS, "nchw"]))
    x, y = image(x_layout, isa, 1, inputs, *size), image(layout, isa, 1, outputs, *out)
    t = Transposed(x, y, kernel, strides, dilations, *cut)
    found = phases(t)
    assert len(found) == phase_count(out, strides)
    assert max(len(phase.columns) for phase in found) <= phase_taps(kernel[1], strides[1], dilations[1])
    number = data.draw(st.integers(0, 5))
    check(t, isa, lambda conv: conv_tiles(conv, isa)[number % len(conv_tiles(conv, isa))])


@pytest.mark.parametrize("layout", ["blocked", "nhwc"])
def test_one_kernel_serves_all_phases_windows_and_sizes(isa, layout):
    """Only the stride, the distance of the pixels that a phase writes, decides code in blocks of channels."""
    found = []
    for size, channels, form in itertools.product(
        (3, 6, 11), (2 * isa.lanes, 3 * isa.lanes), [form for form in FORMS if form[1] == 2]
    ):
        t = transposed(isa, layout, size, (channels, 2 * channels), form, batch=2)
        for phase in phases(t):
            epilogue = chain(("add", t.y), bias=True).laid(lambda image, first=phase.first, t=t: image.every(first, t.strides)[0])
            found.append(emit_conv(phase.conv, make_tile(phase.conv, isa, 3, 2), epilogue, isa))
    assert len({kernel.name for kernel in found}) == len({kernel.ir for kernel in found}) == 1
    assert len({(kernel.numbers, *kernel.tables.items()) for kernel in found}) > 50


def test_phases_share_out_the_taps_of_the_kernel():
    t = Transposed(Image.nhwc(1, 8, 7, 7), Image.nhwc(1, 8, 14, 14), (4, 4), (2, 2), top=1, left=1)
    found, odd, even = phases(t), (2, 0), (3, 1)
    assert [(phase.rows, phase.columns) for phase in found] == [(even, even), (even, odd), (odd, even), (odd, odd)]
    assert sum(phase.conv.macs for phase in found) == 7 * 7 * 16 * 64
    assert [(phase.conv.top, phase.conv.left) for phase in found] == [(1, 1), (1, 0), (0, 1), (0, 0)]
