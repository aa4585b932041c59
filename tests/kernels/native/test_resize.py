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
    pack_columns,
    pack_rows,
    resize_tiles,
)
from kernels.native.memory.image import Image
from kernels.native.target.isa import ISAS
from tests.kernels.native.chains import chain
from tests.kernels.native.convolutions import LAYOUTS, image
from tests.kernels.native.reference import PLAIN, assert_close, epilogue_operands, place, run_kernel

FORMS = pytest.mark.parametrize("separable", [True, False], ids=["separable", "direct"])


def table(rng, size_in, size_out, taps, weighted=True):
    """Return random taps as (indices, weights). The weights of an output sum up to 1, or are None if not `weighted`."""
    index = rng.integers(0, size_in, (size_out, taps))
    weights = rng.uniform(0.1, 1, (size_out, taps))
    return index, weights / weights.sum(1, keepdims=True) if weighted else None


def resizing_of(x, y, rows, columns, insides=None, fill=0.0):
    """Return a resize. insides: (begin, end) of the rows and of the columns that are computed; the others are filled."""
    insides = insides or ((0, y.height), (0, y.width))
    sides = [
        Side(index.shape[1], weights is not None, *inside)
        for (index, weights), inside in zip((rows, columns), insides, strict=True)
    ]
    return Resizing(x, y, *sides, fill)  # type: ignore[call-arg, arg-type]


def reference(resizing, x, rows, columns):
    """Compute a resize in float64: a weighted sum along the rows, then one along the columns."""
    exact = x.astype(np.float64)
    for axis, (index, weights) in ((2, rows), (3, columns)):
        taken = np.take(exact, index, axis)
        ones = np.ones(index.shape) if weights is None else weights.astype(np.float32)
        exact = np.einsum("nchtw,ht->nchw" if axis == 2 else "nchwt,wt->nchw", taken, ones)
    side = resizing.rows
    exact[:, :, : side.begin] = exact[:, :, side.end :] = resizing.fill
    side = resizing.columns
    exact[..., : side.begin] = exact[..., side.end :] = resizing.fill
    return exact


def check(resizing, rows, columns, tile, isa, epilogue=PLAIN, exact_activation=None):
    rng, x_image, y = np.random.default_rng(0), resizing.x, resizing.y
    x = rng.standard_normal((x_image.batch, x_image.channels, x_image.height, x_image.width)).astype(np.float32)
    operands, exact = epilogue_operands(epilogue, reference(resizing, x, rows, columns), rng)
    exact = exact_activation(exact) if exact_activation else exact
    memory = np.full(y.elements + 64, np.nan, np.float32)
    tables = {"rows": pack_rows(resizing, *rows), "columns": pack_columns(resizing, tile, isa, *columns)}
    run_kernel(emit_resize(resizing, tile, epilogue, isa), isa, x=place(x_image, x), y=memory, **tables, **operands)
    assert_close(y.load(memory), exact, rows[0].shape[1] + columns[0].shape[1])
    y.view(memory)[...] = np.nan
    assert np.isnan(memory).all()  # what does not belong to the image was left alone


def case(isa, size, out, taps, channels, layout="blocked", batch=1, x_layout=None, **more):
    rng = np.random.default_rng(1)
    x, y = image(x_layout or layout, isa, batch, channels, *size), image(layout, isa, batch, channels, *out)
    rows, columns = (table(rng, *sides, count, count > 1) for *sides, count in zip(size, out, taps, strict=True))  # type: ignore[call-arg]
    return resizing_of(x, y, rows, columns, **more), rows, columns


@FORMS
@pytest.mark.parametrize("taps", [(1, 1), (2, 2), (1, 2), (2, 1), (4, 4), (3, 7), (8, 11), (2, 20)])
def test_taps(isa, taps, separable):
    resizing, rows, columns = case(isa, (5, 6), (7, 11), taps, 2 * isa.lanes + 1, batch=2)
    for vectors in (1, 2, 3):
        check(resizing, rows, columns, make_resize_tile(resizing, isa, 4, vectors, separable=separable), isa)


def test_more_taps_than_are_unrolled(isa):
    resizing, rows, columns = case(isa, (40, 35), (3, 4), (19, 24), isa.lanes + 3)
    check(resizing, rows, columns, make_resize_tile(resizing, isa, 4, 2, separable=True), isa)


@FORMS
@pytest.mark.parametrize("layout", LAYOUTS)
def test_channel_tails(isa, layout, separable):
    lanes = isa.lanes
    for channels in sorted({1, 3, lanes - 1, lanes, lanes + 1, 3 * lanes - 1, 4 * lanes + 2}):
        resizing, rows, columns = case(isa, (4, 3), (5, 7), (2, 2), channels, layout)
        for vectors in (1, 2, 4):
            check(resizing, rows, columns, make_resize_tile(resizing, isa, 4, vectors, separable=separable), isa)


def test_pixels_need_not_divide_the_row(isa):
    for width in range(1, 10):
        resizing, rows, columns = case(isa, (3, 4), (3, width), (2, 2), isa.lanes)
        check(resizing, rows, columns, make_resize_tile(resizing, isa, 4, 1, separable=False), isa)


@FORMS
@pytest.mark.parametrize("insides", [((0, 6), (2, 5)), ((1, 4), (0, 7)), ((2, 6), (0, 1)), ((3, 3), (0, 7)), ((0, 6), (4, 4))])
def test_what_lies_outside_is_filled_and_finished(isa, insides, separable):
    resizing, rows, columns = case(isa, (4, 5), (6, 7), (2, 2), isa.lanes + 2, insides=insides, fill=2.5)
    epilogue = chain(("mul", resizing.y), ("clip", -1.0, 3.0))
    tile = make_resize_tile(resizing, isa, 4, 2, separable=separable)
    check(resizing, rows, columns, tile, isa, epilogue, lambda v: np.clip(v, -1, 3))


@FORMS
@pytest.mark.parametrize("layout", LAYOUTS)
def test_epilogue(isa, layout, separable):
    resizing, rows, columns = case(isa, (4, 4), (8, 8), (2, 2), isa.lanes + 2, layout)
    epilogue = chain(("add", resizing.y), "relu")
    tile = make_resize_tile(resizing, isa, 4, 1, separable=separable)
    check(resizing, rows, columns, tile, isa, epilogue, lambda v: np.maximum(v, 0))


def test_blocks_of_several_vectors(isa):
    x, y = Image.blocked(2, 5 * isa.lanes, 3, 4, 4 * isa.lanes), Image.blocked(2, 5 * isa.lanes, 6, 8, 2 * isa.lanes)
    rng = np.random.default_rng(0)
    rows, columns = table(rng, 3, 6, 2), table(rng, 4, 8, 1, weighted=False)
    resizing = resizing_of(x, y, rows, columns)
    check(resizing, rows, columns, make_resize_tile(resizing, isa, 4, 4, separable=True), isa)


def test_one_dimension_is_an_image_one_high(isa):
    resizing, rows, columns = case(isa, (1, 9), (1, 25), (1, 4), isa.lanes + 1, batch=3)
    check(resizing, rows, columns, resize_tiles(resizing, isa)[0], isa)


def test_infinity_and_nan_reach_the_pixels_that_read_them_only(isa):
    x_image, y = Image.blocked(1, isa.lanes, 1, 3, isa.lanes), Image.blocked(1, isa.lanes, 1, 4, isa.lanes)
    x = np.ones((1, isa.lanes, 1, 3), np.float32)
    x[..., 1], x[..., 2] = np.inf, np.nan
    rows, columns = (np.zeros((1, 1), int), None), (np.array([[0], [0], [1], [2]]), None)
    resizing, memory = resizing_of(x_image, y, rows, columns), np.zeros(y.elements, np.float32)
    tile = resize_tiles(resizing, isa)[0]
    tables = {"rows": pack_rows(resizing, *rows), "columns": pack_columns(resizing, tile, isa, *columns)}
    run_kernel(emit_resize(resizing, tile, PLAIN, isa), isa, x=place(x_image, x), y=memory, **tables)
    np.testing.assert_array_equal(y.load(memory)[0, 0, 0], np.array([1, 1, np.inf, np.nan], np.float32))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_resizing_on_its_default_tiles(isa, data):
    pair = lambda low, high: data.draw(st.tuples(st.integers(low, high), st.integers(low, high)))  # noqa: E731
    size, out, taps = pair(1, 12), pair(1, 20), pair(1, 10)
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    channels, layouts = data.draw(st.integers(1, 40)), st.sampled_from(LAYOUTS)
    x, y = (image(data.draw(layouts), isa, 2, channels, *shape) for shape in (size, out))
    rows, columns = (table(rng, *sides, count, count > 1) for *sides, count in zip(size, out, taps, strict=True))  # type: ignore[call-arg]
    insides = []
    for side in out:
        begin = data.draw(st.integers(0, side))
        insides.append((begin, data.draw(st.integers(begin, side))))
    resizing = resizing_of(x, y, rows, columns, insides if data.draw(st.booleans()) else None, 1.5)
    check(resizing, rows, columns, data.draw(st.sampled_from(resize_tiles(resizing, isa))), isa)


@pytest.mark.parametrize(("size", "out", "taps"), [(28, 56, 1), (28, 56, 2), (32, 128, 4), (56, 28, 2)])
def test_default_tiles_do_not_spill(tuned, size, out, taps):
    resizing, _, _ = case(tuned, (size, size), (out, out), (taps, taps), 8 * tuned.lanes)
    code = generate(emit_resize(resizing, resize_tiles(resizing, tuned)[0], PLAIN, tuned).ir, tuned, count_spills=True)
    assert code.spills <= SPILL_LIMIT


def test_wider_outputs_are_separable_and_narrower_direct():
    isa = ISAS["avx512"]
    forms = {}
    for size, out, taps in ((28, 56, 1), (28, 56, 2), (32, 128, 4), (56, 28, 2), (224, 7, 2), (224, 7, 64)):
        resizing, _, _ = case(isa, (size, size), (out, out), (taps, taps), 64)
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
    resizing, _, _ = case(isa, (4, 4), (8, 8), (2, 2), 8, x_layout="nchw")
    tile = make_resize_tile(resizing, isa, 4, 1, separable=False)
    with pytest.raises(EmitError, match="x has blocks of 1 channels, a tile takes 1 of 8"):
        emit_resize(resizing, tile, PLAIN, isa)
    blocked, _, _ = case(isa, (4, 4), (8, 8), (2, 2), 8)
    with pytest.raises(EmitError, match="resizing takes none"):
        emit_resize(blocked, tile, Epilogue(bias=True), isa)
    many, _, _ = case(isa, (40, 40), (8, 8), (MOST_TAPS + 1, 2), 8)
    with pytest.raises(EmitError, match="a row has 9 taps, 8 at most go without a line"):
        emit_resize(many, tile, PLAIN, isa)
    with pytest.raises(EmitError, match="rows have 2 taps, need one, or weights"):
        emit_resize(Resizing(blocked.x, blocked.y, Side(2, False, 0, 8), blocked.columns), tile, PLAIN, isa)
