import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kernels.native.code.compile import SPILL_LIMIT, generate
from kernels.native.emit.epilogue import Epilogue
from kernels.native.errors import EmitError
from kernels.native.families.resize import (
    MOST_TAPS,
    Resizing,
    Side,
    emit_resize,
    make_resize_tile,
    resize_tiles,
)
from kernels.native.memory.image import Image
from kernels.native.target.isa import ISAS
from kernels.resampling import Pass
from tests.kernels.native.chains import chain
from tests.kernels.native.convolutions import LAYOUTS, image, pairs
from tests.kernels.native.reference import PLAIN, assert_close, epilogue_operands, place, run_kernel

FORMS = pytest.mark.parametrize("separable", [True, False], ids=["separable", "direct"])


def random_taps(size_in, size_out, count, weighted, begin, end, seed):
    """Return random taps. The weights of an output sum up to 1. Outputs before `begin` and from `end` on lie outside."""
    rng = np.random.default_rng(seed)
    index, weights = rng.integers(0, size_in, (size_out, count)), rng.uniform(0.1, 1, (size_out, count))
    places = np.arange(size_out)
    return Pass(0, index, weights / weights.sum(1, keepdims=True) if weighted else None, (places < begin) | (places >= end))


def side(size_in, size_out, count, inside=None, seed=1):
    """Return a side of so many random taps; a single one has no weight. inside: the range of outputs that are computed."""
    return Side(count, count > 1, random_taps, (size_in, size_out, count, count > 1, *(inside or (0, size_out)), seed))


def reference(resizing, x):
    """Compute a resize in float64: a weighted sum along the rows, then one along the columns."""
    exact = x.astype(np.float64)
    found = [each.make(*each.sizes) for each in (resizing.rows, resizing.columns)]
    for axis, step in enumerate(found, 2):
        ones = np.ones(step.index.shape) if step.weights is None else step.weights.astype(np.float32)
        exact = np.einsum("nchtw,ht->nchw" if axis == 2 else "nchwt,wt->nchw", np.take(exact, step.index, axis), ones)
    exact[:, :, found[0].outside] = resizing.fill
    exact[..., found[1].outside] = resizing.fill
    return exact


def check(resizing, tile, isa, epilogue=PLAIN, exact_activation=None, like=None):
    """Run a resize on random data and compare it with the reference. like: run the code of that kernel."""
    rng, x_image, y = np.random.default_rng(0), resizing.x, resizing.y
    x = rng.standard_normal((x_image.batch, x_image.channels, x_image.height, x_image.width)).astype(np.float32)
    operands, exact = epilogue_operands(epilogue, reference(resizing, x), rng)
    exact = exact_activation(exact) if exact_activation else exact
    memory = np.full(y.elements + 64, np.nan, np.float32)
    kernel = emit_resize(resizing, tile, epilogue, isa)
    if like is not None:
        assert kernel.name == like.name
        kernel = replace(kernel, emit=like.emit)
    run_kernel(kernel, isa, x=place(x_image, x), y=memory, **operands)
    assert_close(y.load(memory), exact, resizing.rows.taps + resizing.columns.taps)
    y.view(memory)[...] = np.nan
    assert np.isnan(memory).all()  # what does not belong to the image was left alone


def case(isa, size, out, taps, channels, layout="blocked", batch=1, x_layout=None, insides=(None, None), fill=None):
    """Return a resize of random taps. insides: (begin, end) of the rows and of the columns that are computed."""
    x, y = image(x_layout or layout, isa, batch, channels, *size), image(layout, isa, batch, channels, *out)
    rows, columns = (side(*each, seed) for seed, each in enumerate(zip(size, out, taps, insides, strict=True)))
    return Resizing(x, y, rows, columns, fill)


@FORMS
@pytest.mark.parametrize("taps", [(1, 1), (2, 2), (1, 2), (2, 1), (4, 4), (3, 7), (8, 11), (2, 20)])
def test_taps(isa, taps, separable):
    resizing = case(isa, (5, 6), (7, 11), taps, 2 * isa.lanes + 1, batch=2)
    for vectors in (1, 2, 3):
        check(resizing, make_resize_tile(resizing, isa, 4, vectors, separable=separable), isa)


def test_more_taps_than_are_unrolled(isa):
    resizing = case(isa, (40, 35), (3, 4), (19, 24), isa.lanes + 3)
    check(resizing, make_resize_tile(resizing, isa, 4, 2, separable=True), isa)


@FORMS
@pytest.mark.parametrize("layout", LAYOUTS)
def test_channel_tails(isa, layout, separable):
    lanes = isa.lanes
    for channels in sorted({1, 3, lanes - 1, lanes, lanes + 1, 3 * lanes - 1, 4 * lanes + 2}):
        resizing = case(isa, (4, 3), (5, 7), (2, 2), channels, layout)
        for vectors in (1, 2, 4):
            check(resizing, make_resize_tile(resizing, isa, 4, vectors, separable=separable), isa)


def test_pixels_need_not_divide_the_row(isa):
    for width in range(1, 10):
        resizing = case(isa, (3, 4), (3, width), (2, 2), isa.lanes)
        check(resizing, make_resize_tile(resizing, isa, 4, 1, separable=False), isa)


@FORMS
@pytest.mark.parametrize("insides", [((0, 6), (2, 5)), ((1, 4), (0, 7)), ((2, 6), (0, 1)), ((3, 3), (0, 7)), ((0, 6), (4, 4))])
def test_what_lies_outside_is_filled_and_finished(isa, insides, separable):
    resizing = case(isa, (4, 5), (6, 7), (2, 2), isa.lanes + 2, insides=insides, fill=2.5)
    epilogue = chain(("mul", resizing.y), ("clip", -1.0, 3.0))
    tile = make_resize_tile(resizing, isa, 4, 2, separable=separable)
    check(resizing, tile, isa, epilogue, lambda v: np.clip(v, -1, 3))


@FORMS
@pytest.mark.parametrize("layout", LAYOUTS)
def test_epilogue(isa, layout, separable):
    resizing = case(isa, (4, 4), (8, 8), (2, 2), isa.lanes + 2, layout)
    epilogue = chain(("add", resizing.y), "relu")
    tile = make_resize_tile(resizing, isa, 4, 1, separable=separable)
    check(resizing, tile, isa, epilogue, lambda v: np.maximum(v, 0))


def test_blocks_of_several_vectors_are_refused(isa):
    several, one = (Image.blocked(2, 5 * isa.lanes, 3, 4, count * isa.lanes) for count in (2, 1))
    for x, y in ((several, one), (one, several)):
        resizing = Resizing(x, y, side(3, 3, 1), side(4, 4, 1))
        with pytest.raises(EmitError, match=f"blocks of {2 * isa.lanes} channels"):
            emit_resize(resizing, make_resize_tile(resizing, isa, 4, 2, separable=False), PLAIN, isa)


@FORMS
@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_kernel_serves_all_sizes(isa, layout, separable):
    kernels = []
    for size, out, channels, batch in itertools.product(((1, 9), (5, 4)), ((3, 1), (7, 30)), (3, 2 * isa.lanes + 1), (1, 3)):
        resizing = case(isa, size, out, (2, 2), channels, layout, batch)
        kernels.append(emit_resize(resizing, make_resize_tile(resizing, isa, 4, 2, separable=separable), PLAIN, isa))
    assert len({kernel.name for kernel in kernels}) == len({kernel.ir for kernel in kernels}) == 1
    assert len({(kernel.numbers, kernel.chunks) for kernel in kernels}) == len(kernels)


def test_one_dimension_is_an_image_one_high(isa):
    resizing = case(isa, (1, 9), (1, 25), (1, 4), isa.lanes + 1, batch=3)
    check(resizing, resize_tiles(resizing, isa)[0], isa)


def first_twice(size_out):
    """Return one tap for each output: the first input twice, then the others."""
    return Pass(0, np.maximum(np.arange(size_out) - 1, 0)[:, None], None, np.zeros(size_out, bool))


def test_infinity_and_nan_reach_the_pixels_that_read_them_only(isa):
    x_image, y = Image.blocked(1, isa.lanes, 1, 3, isa.lanes), Image.blocked(1, isa.lanes, 1, 4, isa.lanes)
    x = np.ones((1, isa.lanes, 1, 3), np.float32)
    x[..., 1], x[..., 2] = np.inf, np.nan
    resizing, memory = Resizing(x_image, y, side(1, 1, 1), Side(1, False, first_twice, (4,))), np.zeros(y.elements, np.float32)
    run_kernel(emit_resize(resizing, resize_tiles(resizing, isa)[0], PLAIN, isa), isa, x=place(x_image, x), y=memory)
    np.testing.assert_array_equal(y.load(memory)[0, 0, 0], np.array([1, 1, np.inf, np.nan], np.float32))


def draw_resizing(data, isa, layouts, taps, crops):
    """Draw the sizes of a resize."""
    size, out, batch = data.draw(pairs(1, 12)), data.draw(pairs(1, 20)), data.draw(st.integers(1, 2))
    channels = data.draw(st.integers(1, 40).filter(lambda count: count != isa.lanes))  # pixels of one vector lie in blocks
    x, y = (image(layout, isa, batch, channels, *shape) for layout, shape in zip(layouts, (size, out), strict=True))
    sides = []
    for old, new, count in zip(size, out, taps, strict=True):
        begin = data.draw(st.integers(0, new)) if crops else 0
        inside = (begin, data.draw(st.integers(begin, new)) if crops else new)
        sides.append(side(old, new, count, inside, data.draw(st.integers(0, 2**32))))
    rows, columns = sides
    return Resizing(x, y, rows, columns, 1.5 if crops else None)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_resizing_on_its_default_tiles(isa, data):
    layouts = [data.draw(st.sampled_from(LAYOUTS)) for _ in range(2)]
    taps = data.draw(st.integers(1, 10)), data.draw(st.integers(1, 10))
    resizing = draw_resizing(data, isa, layouts, taps, data.draw(st.booleans()))
    check(resizing, data.draw(st.sampled_from(resize_tiles(resizing, isa))), isa)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_code_of_one_size_computes_others(isa, data):
    layouts = [data.draw(st.sampled_from(LAYOUTS)) for _ in range(2)]
    taps, crops = data.draw(st.sampled_from([(1, 1), (2, 2), (2, 9), (4, 4)])), data.draw(st.booleans())
    vectors, separable = data.draw(st.sampled_from([1, 2, 4])), data.draw(st.booleans())
    made = []
    for _ in range(4):
        resizing = draw_resizing(data, isa, layouts, taps, crops)
        made.append((resizing, make_resize_tile(resizing, isa, 4, vectors, separable=separable)))
    first = emit_resize(*made[0], PLAIN, isa)
    for resizing, tile in made[1:]:
        check(resizing, tile, isa, like=first)


@pytest.mark.parametrize(("size", "out", "taps"), [(28, 56, 1), (28, 56, 2), (32, 128, 4), (56, 28, 2)])
def test_default_tiles_do_not_spill(tuned, size, out, taps):
    resizing = case(tuned, (size, size), (out, out), (taps, taps), 8 * tuned.lanes)
    code = generate(emit_resize(resizing, resize_tiles(resizing, tuned)[0], PLAIN, tuned).ir, tuned, count_spills=True)
    assert code.spills <= SPILL_LIMIT


def test_wider_outputs_are_separable_and_narrower_direct():
    isa = ISAS["avx512"]
    forms = {}
    for size, out, taps in ((28, 56, 1), (28, 56, 2), (32, 128, 4), (56, 28, 2), (224, 7, 2), (224, 7, 64)):
        resizing = case(isa, (size, size), (out, out), (taps, taps), 64)
        forms[size, out, taps] = resize_tiles(resizing, isa)[0].separable
    assert forms == {
        (28, 56, 1): False,
        (28, 56, 2): True,
        (32, 128, 4): True,
        (56, 28, 2): False,
        (224, 7, 2): False,
        (224, 7, 64): True,
    }


def test_what_it_cannot_resize_is_refused():
    isa = ISAS["avx2"]
    resizing = case(isa, (4, 4), (8, 8), (2, 2), 8, x_layout="nchw")
    tile = make_resize_tile(resizing, isa, 4, 1, separable=False)
    with pytest.raises(EmitError, match="x has blocks of 1 channels, a tile takes vectors of 8"):
        emit_resize(resizing, tile, PLAIN, isa)
    blocked = case(isa, (4, 4), (8, 8), (2, 2), 8)
    with pytest.raises(EmitError, match="resizing takes none"):
        emit_resize(blocked, tile, Epilogue(bias=True), isa)
    many = case(isa, (40, 40), (8, 8), (MOST_TAPS + 1, 2), 8)
    with pytest.raises(EmitError, match="a row has 9 taps, 8 at most go without a line"):
        emit_resize(many, tile, PLAIN, isa)
    with pytest.raises(EmitError, match="rows have 2 taps, need one, or weights"):
        emit_resize(
            Resizing(blocked.x, blocked.y, Side(2, False, random_taps, (4, 8, 2, False, 0, 8, 1)), blocked.columns),
            tile,
            PLAIN,
            isa,
        )
