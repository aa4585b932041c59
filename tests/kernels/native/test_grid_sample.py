"""GridSample's kernel against the numpy kernel, which computes positions in the same precision, over poisoned memory."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kernels.native.errors import EmitError
from kernels.native.families.grid_sample import GridSample, emit_grid_sample
from kernels.native.memory.image import Image
from kernels.native.memory.view import View
from kernels.native.target.isa import ISAS
from kernels.registry import evaluate, find
from tests.kernels.native.reference import lay, place, run_kernel

MODES, OUTSIDE = ("nearest", "linear", "cubic"), ("zeros", "border", "reflection")
FORMS = list(itertools.product(MODES, OUTSIDE, (False, True)))
EPS = float(np.finfo(np.float32).eps)


def check(isa, form, x, grid):
    """Compare the kernel with numpy. Images lie in blocks, whose lanes behind the last channel hold NaN; the grid has gaps."""
    mode, outside, aligned = form
    attrs = {"mode": mode, "padding_mode": outside, "align_corners": int(aligned)}
    (exact,) = evaluate(find("GridSample"), [x, grid], attrs)
    images = [Image.blocked(n, c, h, w, isa.lanes) for n, c, h, w in (x.shape, exact.shape)]
    view = View(grid.shape, View.dense((*grid.shape[:3], 5)).strides)
    what = GridSample(images[0], images[1], view, *form)
    memory = np.full(images[1].elements + 64, np.nan, np.float32)
    run_kernel(emit_grid_sample(what, isa), isa, x=place(images[0], x), grid=lay(view, grid), y=memory)
    finite = np.abs(x[np.isfinite(x)]).max(initial=1)
    np.testing.assert_allclose(images[1].load(memory), exact, rtol=0, atol=64 * EPS * float(finite))
    assert np.isnan(memory[images[1].elements :]).all()


def sample(size, out, channels, reach, seed=0, batch=2):
    rng = np.random.default_rng(seed)
    grid = rng.uniform(-reach, reach, (batch, *out, 2)).astype(np.float32)
    return rng.standard_normal((batch, channels, *size)).astype(np.float32), grid


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_modes_within_and_beyond_the_image(isa, form):
    for reach, channels in ((1, isa.lanes + 1), (3.5, 3)):
        check(isa, form, *sample((5, 7), (4, 6), channels, reach))


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_positions_that_are_no_numbers_or_far_away_read_no_other_memory(isa, form):
    x, _ = sample((3, 4), (1, 1), isa.lanes, 1, batch=1)
    far = np.array([np.nan, np.inf, -np.inf, 3e38, -3e38, 1e9, 0], np.float32)
    grid = np.array(list(itertools.product(far, far)), np.float32).reshape(1, 7, 7, 2)
    mode, outside, aligned = form
    images = [Image.blocked(1, isa.lanes, *size, isa.lanes) for size in ((3, 4), (7, 7))]
    what = GridSample(images[0], images[1], View.dense(grid.shape), mode, outside, aligned)
    y = np.full(images[1].elements, np.nan, np.float32)
    run_kernel(emit_grid_sample(what, isa), isa, x=place(images[0], x), grid=grid, y=y)
    assert np.isfinite(y).all()
    if outside == "zeros":
        assert not images[1].load(y)[..., :6].any()


def test_a_pixel_without_weight_adds_nothing(isa):
    x = np.full((1, isa.lanes, 2, 2), np.inf, np.float32)
    x[:, :, 0, 0] = 3
    grid = np.full((1, 1, 1, 2), -1, np.float32)
    check(isa, ("linear", "border", True), x, grid)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_grid(isa, data):
    size = lambda high: data.draw(st.integers(1, high))  # noqa: E731
    form, reach = data.draw(st.sampled_from(FORMS)), data.draw(st.sampled_from([0.5, 1.0, 1.3, 6.0]))
    x, grid = sample((size(6), size(6)), (size(5), size(5)), size(2 * isa.lanes + 1), reach, size(1000), size(3))
    check(isa, form, x, grid)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_one_kernel_serves_all_sizes(isa, form):
    kernels = []
    for size, out, channels in (((5, 7), (4, 6), 3), ((90, 1), (1, 200), 70)):
        x, y = (Image.blocked(2, channels, *each, isa.lanes) for each in (size, out))
        kernels.append(emit_grid_sample(GridSample(x, y, View.dense((2, *out, 2)), *form), isa))
    assert len({kernel.name for kernel in kernels}) == len({kernel.ir for kernel in kernels}) == 1
    assert len({kernel.numbers for kernel in kernels}) == 2


def test_images_in_rows_are_refused():
    image = Image.nhwc(1, 9, 3, 3)
    with pytest.raises(EmitError, match="images have blocks of 9 and 9 channels, need 8"):
        emit_grid_sample(GridSample(image, image, View.dense((1, 3, 3, 2))), ISAS["avx2"])
