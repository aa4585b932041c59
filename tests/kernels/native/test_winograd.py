import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kernels.native.code.compile import SPILL_LIMIT, generate
from kernels.native.emit.geometry import Conv
from kernels.native.errors import EmitError
from kernels.native.families.conv import pack_bias
from kernels.native.families.winograd import (
    Winograd,
    WinogradTile,
    choose_winograd,
    error_estimate,
    make_winograd_tile,
    transforms,
    winograd_cost,
    winograd_tiles,
)
from kernels.native.families.winograd_kernels import emit_winograd, pack_winograd
from kernels.native.memory.image import Image
from kernels.native.target.isa import ISAS
from kernels.size import Scope
from tests.kernels.native.chains import chain
from tests.kernels.native.reference import PLAIN, SharedCode, conv_reference, epilogue_operands, place, run_kernel


def square(isa, size, inputs, outputs, pad=1, batch=1, unit=4):
    height, width = size if isinstance(size, tuple) else (size, size)
    x = Image.blocked(batch, inputs, height, width, isa.lanes)
    y = Image.blocked(batch, outputs, height + 2 * pad - 2, width + 2 * pad - 2, isa.lanes)
    return Winograd(Conv(x, y, (3, 3), top=pad, left=pad), unit)


NAN_BYTES = 4096  # before and behind an input


def poisoned(size_bytes):
    return np.full(size_bytes // 4 + 64, np.nan, np.float32)


def run_winograd(winograd, tile, isa, x, w, b=None, epilogue=PLAIN, operands=None, run=run_kernel):
    """Run a Winograd convolution and return the output's memory, which is NaN where nothing was written, also behind it."""
    conv = winograd.conv
    memory, buffers = poisoned(4 * conv.y.elements), {}
    for name, size in winograd_cost(winograd, tile, isa).buffer_bytes.items():
        buffers[name] = poisoned(size)
    around = poisoned(4 * conv.x.elements + 2 * NAN_BYTES)  # an input in the middle of NaN
    middle = around[NAN_BYTES // 4 :][: conv.x.elements]
    middle[:] = place(conv.x, x)
    given = {"x": middle, "w": pack_winograd(winograd, tile, isa, w), "y": memory, **buffers, **(operands or {})}
    if b is not None:
        given["b"] = pack_bias(conv, isa, b)
    conv.x.view(given["x"])[:, -1, :, :, (conv.x.channels - 1) % conv.x.block + 1 :] = np.nan
    for kernel in emit_winograd(winograd, tile, epilogue, isa):
        run(kernel, isa, **{name: array for name, array in given.items() if name in kernel.arguments})
    for name, size in winograd_cost(winograd, tile, isa).buffer_bytes.items():
        assert np.isnan(buffers[name][size // 4 :]).all()
    return memory


def check_winograd(winograd, tile, isa, epilogue=PLAIN, exact_activation=None, run=run_kernel):
    conv, rng = winograd.conv, np.random.default_rng(0)
    x = rng.standard_normal((conv.x.batch, conv.x.channels, conv.x.height, conv.x.width)).astype(np.float32)
    w = rng.standard_normal((conv.y.channels, conv.x.channels, 3, 3)).astype(np.float32) / np.float32(
        3 * np.sqrt(conv.x.channels)
    )
    b = rng.standard_normal(conv.y.channels).astype(np.float32) if epilogue.bias else None
    exact = conv_reference(conv, x, w, b)
    operands, exact = epilogue_operands(epilogue, exact, rng)
    if exact_activation:
        exact = exact_activation(exact)
    memory = run_winograd(winograd, tile, isa, x, w, b, epilogue, operands, run)
    got = conv.y.load(memory)
    assert not np.isnan(got).any()
    largest = max(1.0, float(np.abs(exact).max()), float(np.abs(conv_reference(conv, x, w)).max(initial=0)))
    np.testing.assert_allclose(got, exact, rtol=0, atol=error_estimate(winograd.unit, conv.x.channels) * largest)
    conv.y.view(memory)[...] = np.nan
    assert np.isnan(memory).all()  # what does not belong to the image was left alone


FORMS = pytest.mark.parametrize("fused", [True, False], ids=["fused", "split"])


@FORMS
@pytest.mark.parametrize("unit", [2, 4, 6])
@pytest.mark.parametrize("pad", [0, 1, 2])
def test_units_paddings_and_sizes(isa, unit, pad, fused):
    for size in ((7, 12), (5, 3)):
        winograd = square(isa, size, isa.lanes + 3, 2 * isa.lanes + 1, pad, unit=unit)
        check_winograd(winograd, make_winograd_tile(winograd, isa, 6, 2, 8, fused=fused), isa)


@FORMS
def test_epilogue_adds_bias_and_residual_and_activates(isa, fused):
    winograd = square(isa, 10, 5, isa.lanes + 5, batch=2)
    cases = {
        "relu": lambda v: np.maximum(v, 0),
        "silu": lambda v: v / (1 + np.exp(-v)),
    }
    for activation, exact in cases.items():
        epilogue = chain(("add", winograd.conv.y), activation, bias=True)
        check_winograd(winograd, make_winograd_tile(winograd, isa, 4, 2, 9, fused=fused), isa, epilogue, exact)


def test_default_tiles_compute_the_layer(isa):
    for size, inputs, outputs in ((14, 3 * isa.lanes, 4 * isa.lanes), (30, isa.lanes, isa.lanes), (1, 4, 4)):
        winograd = square(isa, size, inputs, outputs)
        check_winograd(winograd, winograd_tiles(winograd, isa)[0], isa)


def test_default_products_do_not_spill(tuned):
    winograd = square(tuned, 28, 128, 128)
    if not tuned.fma:
        pytest.skip("products without FMA need registers of their own, and spill a little")
    tiles = [tile for tile in winograd_tiles(winograd, tuned) if not tile.fused]
    assert tiles
    for tile in tiles:
        _, multiply, _ = emit_winograd(winograd, tile, PLAIN, tuned)
        assert generate(multiply.ir, tuned, count_spills=True).spills <= SPILL_LIMIT


def test_layers_it_cannot_compute_are_refused(isa):
    plain = square(isa, 8, 4, 4)
    tile = make_winograd_tile(plain, isa, 4, 1, 4, fused=True)
    for conv, message in (
        (replace(plain.conv, strides=(2, 2)), r"strides \(2, 2\)"),
        (replace(plain.conv, x=Image.nchw(1, 4, 8, 8)), "x has blocks of 1 channels"),
    ):
        with pytest.raises(EmitError, match=message):
            emit_winograd(replace(plain, conv=conv), tile, PLAIN, isa)
    with pytest.raises(EmitError, match=r"unit is 3, need one of \[2, 4, 6\]"):
        emit_winograd(replace(plain, unit=3), tile, PLAIN, isa)


@pytest.mark.parametrize("unit", [2, 4, 6])
def test_transforms_are_the_convolution(unit):
    b, g, a = transforms(unit)
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal(unit + 2), rng.standard_normal(3)
    exact = [x[i : i + 3] @ w for i in range(unit)]
    np.testing.assert_allclose(a @ ((g @ w) * (b @ x)), exact, rtol=0, atol=1e-13)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_error_stays_below_its_estimate(isa, data):
    unit, pad = data.draw(st.sampled_from([2, 4, 6])), data.draw(st.integers(0, 2))
    size = data.draw(st.tuples(st.integers(3, 20), st.integers(3, 20)))
    inputs, outputs = data.draw(st.integers(1, 80)), data.draw(st.integers(1, 40))
    winograd = square(isa, size, inputs, outputs, pad, unit=unit)
    tile = data.draw(st.sampled_from(winograd_tiles(winograd, isa, data.draw(st.integers(1, 3)))))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    x, w = rng.standard_normal((1, inputs, *size)).astype(np.float32), rng.standard_normal((outputs, inputs, 3, 3))
    if data.draw(st.booleans()):
        x = np.maximum(x, 0)
    exact = conv_reference(winograd.conv, x, w.astype(np.float32))
    got = winograd.conv.y.load(run_winograd(winograd, tile, isa, x, w.astype(np.float32)))
    # few pixels may all be small, and are as wrong as the larger ones that the same inputs make elsewhere
    largest = max(float(np.abs(exact).max()), 3 * np.sqrt(inputs))
    assert float(np.abs(got - exact).max()) <= error_estimate(unit, inputs) * largest


@FORMS
def test_operands_may_be_broadcast_and_lie_otherwise(isa, fused):
    winograd, lanes = square(isa, 9, 6, 2 * isa.lanes + 3), isa.lanes
    y, rng = winograd.conv.y, np.random.default_rng(0)
    tile = make_winograd_tile(winograd, isa, 4, 2, 5, fused=fused)
    x, w = rng.standard_normal((1, 6, 9, 9)).astype(np.float32), rng.standard_normal((y.channels, 6, 3, 3)).astype(np.float32)
    exact = conv_reference(winograd.conv, x, w)
    channel, pixel = rng.uniform(0.5, 1.5, y.channels), rng.uniform(0.5, 1.5, (9, 9))
    per_channel = replace(y, y_stride=0, x_stride=0, block_stride=lanes, n_stride=0)
    per_pixel = Image(1, y.channels, 9, 9, 1, 0, 0, 9, 1)
    last = Image.nhwc(1, y.channels, 9, 9)
    other = rng.standard_normal(exact.shape)
    scales = np.full(per_channel.blocks * lanes, np.nan, np.float32)
    scales[: y.channels] = channel
    operands = {"r0": scales, "r1": pixel.astype(np.float32).ravel(), "r2": place(last, other)}
    epilogue = chain(("mul", per_channel), ("mul", per_pixel), (last, "sub"))
    got = y.load(run_winograd(winograd, tile, isa, x, w, None, epilogue, operands))
    wanted = other - exact * channel[None, :, None, None] * pixel
    np.testing.assert_allclose(got, wanted, rtol=0, atol=2.25 * error_estimate(4, 6) * float(np.abs(exact).max()))


SIZES = [(1, 1), (2, 7), (7, 2), (9, 12), (14, 14), (21, 5)]


@FORMS
@pytest.mark.parametrize("unit", [2, 4, 6])
def test_one_kernel_serves_all_sizes(isa, unit, fused):
    lanes, made = isa.lanes, []
    for size, (inputs, outputs), pad, batch in itertools.product(SIZES, ((lanes, 2 * lanes), (lanes + 3, 5)), (1, 2), (1, 3)):
        winograd = square(isa, size, inputs, outputs, pad, batch, unit)
        tile = WinogradTile(3, 2, min(4, winograd.tiles), fused)
        made.append(emit_winograd(winograd, tile, chain(("add", winograd.conv.y), "relu", bias=True), isa))
    for phase in zip(*made, strict=True):
        assert len({kernel.name for kernel in phase}) == len({kernel.ir for kernel in phase}) == 1
        assert len({kernel.numbers for kernel in phase}) > 20


def test_one_kernel_multiplies_for_all_units(isa):
    found = [emit_winograd(square(isa, 9, 8, 8, unit=unit), WinogradTile(3, 2, 4, False), PLAIN, isa)[1] for unit in (2, 4, 6)]
    assert len({kernel.name for kernel in found}) == len({kernel.ir for kernel in found}) == 1
    assert len({kernel.numbers for kernel in found}) == 3


@pytest.mark.parametrize("pixels", [1, 2, 5])
@FORMS
def test_code_compiled_once_computes_all_sizes(host, pixels, fused):
    run, lanes = SharedCode(), host.lanes
    for batch, (size, (inputs, outputs)) in enumerate(
        itertools.product(SIZES, ((1, 1), (lanes, 2 * lanes), (2 * lanes + 3, 5 * lanes - 1))), 1
    ):
        winograd = square(host, size, inputs, outputs, batch=1 + batch % 3)
        tile = WinogradTile(pixels, 2, min(7, winograd.tiles), fused)
        check_winograd(winograd, tile, host, chain(("add", winograd.conv.y), bias=True), run=run)
    assert len(run.code) == (1 if fused else 3)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_code_compiled_once_computes_any_size(host, data):
    unit, fused, run = data.draw(st.sampled_from([2, 4, 6])), data.draw(st.booleans()), SharedCode()
    pixels, vectors = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 3))
    for _ in range(3):
        size, pad = data.draw(st.tuples(st.integers(3, 20), st.integers(3, 20))), data.draw(st.integers(0, 2))
        inputs, outputs, batch = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 60)), data.draw(st.integers(1, 3))
        winograd = square(host, size, inputs, outputs, pad, batch, unit)
        tile = WinogradTile(pixels, vectors, data.draw(st.integers(1, winograd.tiles)), fused)
        check_winograd(winograd, tile, host, chain(("add", winograd.conv.y), bias=True), run=run)
    assert len(run.code) == (1 if fused else 3)


@FORMS
def test_sizes_may_be_symbols(isa, fused):
    scope, values = Scope(), (3, 9, 50)  # as many tiles as at the hints, about: the same chunks
    symbols = [scope.symbol(name, hint) for name, hint in (("n", 2), ("h", 28), ("w", 30))]

    def layer(batch, height, width):
        return square(isa, (height, width), 2 * isa.lanes, 3 * isa.lanes, batch=batch)

    winograd = layer(*symbols)
    assert choose_winograd(winograd.conv, isa) is not None
    tile = next(tile for tile in winograd_tiles(winograd, isa) if tile.fused == fused)
    epilogue = chain(("add", winograd.conv.y), bias=True)
    made = emit_winograd(winograd, tile, epilogue, isa)
    sizes = [(kernel.chunks, kernel.scratch_bytes, *kernel.numbers) for kernel in made]
    sizes.append(tuple(winograd_cost(winograd, tile, isa).buffer_bytes.values()))
    assert scope.guards == []
    evaluate = scope.compile([size for each in sizes for size in each])
    other = layer(*values)
    plain = emit_winograd(other, tile, chain(("add", other.conv.y), bias=True), isa)
    wanted = [number for kernel in plain for number in (kernel.chunks, kernel.scratch_bytes, *kernel.numbers)]
    wanted += winograd_cost(other, tile, isa).buffer_bytes.values()
    assert evaluate(values) == wanted


def test_no_output_depends_on_how_tiles_are_grouped(host):
    winograd, rng = square(host, (11, 13), 20, 24, batch=2), np.random.default_rng(0)
    x, w = rng.standard_normal((2, 20, 11, 13)).astype(np.float32), rng.standard_normal((24, 20, 3, 3)).astype(np.float32)
    forms = [(group, fused) for group in (1, 2, 5, 24) for fused in (True, False)]
    results = [run_winograd(winograd, WinogradTile(4, 2, group, fused), host, x, w) for group, fused in forms]
    for result in results:
        np.testing.assert_array_equal(result, results[0])


@pytest.mark.parametrize("unit", [2, 4])
def test_code_is_small(isa, unit):
    winograd = square(isa, 9, 2 * isa.lanes, 2 * isa.lanes, unit=unit)
    epilogue = chain(("add", winograd.conv.y), "relu", bias=True)
    (fused,) = emit_winograd(winograd, WinogradTile(6, 2, 4, True), epilogue, isa)
    split = [kernel.ir.count("\n") for kernel in emit_winograd(winograd, WinogradTile(6, 2, 4, False), epilogue, isa)]
    assert max(split) < 450
    assert fused.ir.count("\n") < sum(split)


def test_choice_weighs_products_against_weights():
    isa = ISAS["avx512"]
    units = {}
    for size, inputs, outputs in ((56, 64, 64), (7, 512, 512), (14, 512, 512), (4, 512, 512)):
        chosen = choose_winograd(square(isa, size, inputs, outputs).conv, isa)
        units[size, inputs] = chosen.unit if chosen else None
    assert units == {(56, 64): 4, (7, 512): 2, (14, 512): 4, (4, 512): None}
    assert choose_winograd(replace(square(isa, 56, 64, 64).conv, strides=(2, 2)), isa) is None


def test_cost_counts_overhanging_tiles_and_padded_outputs():
    isa = ISAS["avx512"]
    winograd = square(isa, 14, 20, 40)
    for vectors, outputs in ((2, 64), (3, 48)):
        cost = winograd_cost(winograd, make_winograd_tile(winograd, isa, 6, vectors, 16, fused=True), isa)
        assert cost.macs == 16 * 36 * 20 * outputs
        assert (cost.weight_bytes, cost.buffer_bytes) == (4 * 36 * 20 * outputs, {})
