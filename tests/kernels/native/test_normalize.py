import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kernels.native.errors import EmitError
from kernels.native.families.normalize import Rows, emit_rows
from kernels.native.memory.view import View
from kernels.native.target.isa import ISAS
from kernels.size import Scope
from tests.kernels.native.chains import chain
from tests.kernels.native.reference import assert_only_written, lay, run_kernel, seen
from tests.machines import MACHINES

EPSILON = 1e-3
NORMS = ("softmax", "log_softmax", "layer_norm", "rms_norm")


def softmax(x, axes):
    e = np.exp(x - x.max(axes, keepdims=True))
    return e / e.sum(axes, keepdims=True)


def rms_norm(x, axes):
    return x / np.sqrt((x * x).mean(axes, keepdims=True) + EPSILON)


EXACT = {
    "softmax": softmax,
    "log_softmax": lambda x, axes: np.log(softmax(x, axes)),
    "layer_norm": lambda x, axes: (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + EPSILON),
    "rms_norm": rms_norm,
    "sum": lambda x, axes: x.sum(axes, keepdims=True),
    "mean": lambda x, axes: x.mean(axes, keepdims=True),
    "max": lambda x, axes: x.max(axes, keepdims=True),
    "min": lambda x, axes: x.min(axes, keepdims=True),
    "prod": lambda x, axes: x.prod(axes, keepdims=True),
    "l1": lambda x, axes: np.abs(x).sum(axes, keepdims=True),
    "l2": lambda x, axes: np.sqrt((x * x).sum(axes, keepdims=True)),
    "sum_square": lambda x, axes: (x * x).sum(axes, keepdims=True),
    "log_sum": lambda x, axes: np.log(x.sum(axes, keepdims=True)),
    "log_sum_exp": lambda x, axes: np.log(np.exp(x).sum(axes, keepdims=True)),
}


def random(shape, seed, kind="sum"):
    rng = np.random.default_rng(seed)
    x = rng.uniform(0.5, 1.5, shape) if kind in ("log_sum", "prod") else rng.standard_normal(shape) * 2 + 0.5
    return x.astype(np.float32)


def result_shape(kind, shape, axes):
    return shape if kind in NORMS else tuple(1 if n in axes else size for n, size in enumerate(shape))


def check(rows, isa, seed=0, kernel=None):
    """Run a kernel over random rows, compare it with float64, and assert that nothing else is written. Its steps are ignored.

    kernel: to run in place of their own.
    """
    kernel = kernel or emit_rows(rows, isa)
    x = random(rows.x.shape, seed, rows.kind)
    arrays = {"x": lay(rows.x, x)}
    exact = EXACT[rows.kind](x.astype(np.float64), rows.axes)
    for name, view in (("w", rows.scale), ("b", rows.bias)):
        if view:
            arrays[name] = lay(view, random(view.shape, seed + 1))
            exact = exact * seen(view, arrays[name]) if name == "w" else exact + seen(view, arrays[name])
    memory = np.full(rows.y.span + 64, np.nan, np.float32)
    run_kernel(kernel, isa, y=memory, **arrays)
    count = math.prod(rows.x.shape[axis] for axis in rows.axes)
    scale = np.abs(x).sum(rows.axes).max() if rows.kind in ("sum", "mean") else np.abs(exact).max()
    tolerance = np.finfo(np.float32).eps * (8 + math.sqrt(count)) * max(1.0, scale / (count if rows.kind == "mean" else 1))
    np.testing.assert_allclose(seen(rows.y, memory), exact, rtol=2e-5, atol=tolerance)
    assert_only_written(rows.y, memory)


def dense(kind, shape, axes, **more):
    return Rows(kind, View.dense(shape), View.dense(result_shape(kind, shape, axes)), axes, EPSILON, **more)


@pytest.mark.parametrize("kind", EXACT)
def test_last_axis_with_tails(isa, kind):
    for size in sorted({1, 2, isa.lanes - 1, isa.lanes, isa.lanes + 1, 4 * isa.lanes, 7 * isa.lanes + 3, 197}):
        check(dense(kind, (3, size), (1,)), isa, size)


@pytest.mark.parametrize("kind", EXACT)
def test_axis_that_is_not_the_last(isa, kind):
    for inner in sorted({2, isa.lanes, isa.lanes + 1, 7 * isa.lanes - 2}):
        for size in (1, 2, 3, 9):
            check(dense(kind, (2, size, inner), (1,)), isa, size)


@pytest.mark.parametrize("kind", EXACT)
@pytest.mark.parametrize("axes", [(0,), (0, 1, 2, 3), (2, 3), (1, 3), (0, 2), (3, 1)])
def test_several_axes(isa, kind, axes):
    check(dense(kind, (2, 3, 4, 5), axes), isa)


@pytest.mark.parametrize("kind", EXACT)
def test_views_that_are_transposed_and_sliced(isa, kind):
    x = View.dense((3, 7, 2, 40)).transposed((0, 2, 1, 3)).sliced(3, 2, 37).sliced(2, 6, 4, -2)
    for axes in ((3,), (2,), (1, 3)):
        y = View.dense((2, *result_shape(kind, x.shape, axes))).picked(0, 1)
        check(Rows(kind, x, y, axes, EPSILON), isa)


def test_transposed_x_and_y_run_along_the_dimension_that_has_no_gaps(isa):
    x = View.dense((5, 3, 33)).transposed((0, 2, 1))
    check(Rows("softmax", x, x, (2,)), isa)
    check(Rows("softmax", x, x, (1,)), isa)


def test_layer_norm_has_scale_and_bias(isa):
    for size in (5, 64, 197):
        scale, bias = View.dense((size,)).broadcast((2, 6, size)), View.dense((1, 1, size))
        check(dense("layer_norm", (2, 6, size), (2,), scale=scale, bias=bias), isa)
        check(dense("layer_norm", (2, 6, size), (2,), bias=bias), isa)
        check(dense("rms_norm", (2, 6, size), (2,), scale=scale), isa)


def test_layer_norm_over_two_axes(isa):
    weights = View.dense((1, 3, 10))
    check(dense("layer_norm", (4, 3, 10), (1, 2), scale=weights, bias=weights), isa)


def test_group_and_instance_norm_are_rows_of_channels(isa):
    groups = View.dense((2, 3, 1)).broadcast((4, 2, 3, 1))
    check(dense("layer_norm", (4, 2, 3, 49), (2, 3), scale=groups, bias=groups), isa)
    channels = View.dense((6, 1)).broadcast((4, 6, 1))
    check(dense("layer_norm", (4, 6, 49), (2,), scale=channels, bias=channels), isa)


def test_channels_of_blocked_images_are_averaged_in_place(isa):
    check(dense("mean", (2, 3, 49, isa.lanes), (2,)), isa)


def test_many_rows_make_many_chunks(isa):
    rows = dense("sum", (300, 7, 31), (2,))
    assert all(1 < emit_rows(rows, machine).chunks < 300 for machine in MACHINES)
    check(rows, isa)
    check(dense("softmax", (40, 1000), (1,)), isa)
    check(dense("softmax", (3, 11, 500), (1,)), isa)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_rows(isa, data):
    kind = data.draw(st.sampled_from(sorted(EXACT)))
    shape = (*data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=3)), data.draw(st.integers(1, 70)))
    axes = tuple(sorted(data.draw(st.sets(st.integers(0, len(shape) - 1), min_size=1))))
    check(dense(kind, shape, axes), isa, data.draw(st.integers(0, 99)))


@pytest.mark.parametrize("kind", EXACT)
def test_one_kernel_serves_all_sizes(isa, kind):
    short = [dense(kind, (rows, size), (1,)) for rows, size in itertools.product((4, 5, 90), (3, isa.lanes, 77))]
    long = [dense(kind, (2, rows, size), (2,)) for rows, size in itertools.product((1, 2, 50), (70 * isa.lanes, 5003))]
    columns = [dense(kind, (2, size, inner), (1,)) for size, inner in itertools.product((3, 8), (5, isa.lanes, 40))]
    for each in (short, long, columns):
        kernels = [emit_rows(rows, isa) for rows in each]
        assert len({kernel.name for kernel in kernels}) == len({kernel.ir for kernel in kernels}) == 1
        assert len({kernel.numbers for kernel in kernels}) == len(kernels)


def inside(kind, shape, axes):
    """Return rows that lie inside of a larger tensor, in x and in y."""
    x, y = (View.dense((*each[:-1], each[-1] + 5)).sliced(len(each) - 1, 2, each[-1]) for each in (shape, shape))
    return Rows(kind, x, y if kind in NORMS else View.dense(result_shape(kind, shape, axes)), axes, EPSILON)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_code_made_for_some_rows_computes_others(isa, data):
    kind = data.draw(st.sampled_from(sorted(EXACT)))
    if data.draw(st.booleans()):  # along rows
        one, other = (
            inside(kind, (data.draw(st.integers(1, 9)), data.draw(st.integers(2, 40 * isa.lanes))), (1,)) for _ in range(2)
        )
    else:
        one, other = (
            inside(kind, (*(data.draw(st.integers(1, 9)) for _ in range(2)), data.draw(st.integers(2, 9 * isa.lanes))), (1,))
            for _ in range(2)
        )
    kernel, made = emit_rows(one, isa), emit_rows(other, isa)
    assert len(kernel.numbers) == len(made.numbers)
    check(one, isa, data.draw(st.integers(0, 99)), replace(kernel, name=made.name, emit=made.emit))


@pytest.mark.parametrize("kind", EXACT)
def test_numbers_are_expressions_of_sizes_that_hold_for_all(isa, kind):
    scope = Scope()
    count, size = scope.symbol("count", 40), scope.symbol("size", 3 * isa.lanes)
    for axis in (1, 2):
        symbolic = emit_rows(dense(kind, (2, count, size), (axis,)), isa)
        evaluate = scope.compile([symbolic.chunks, *symbolic.numbers])
        for values in ((2, 2), (9, 5), (45, 7 * isa.lanes + 1)):
            chunks, *numbers = evaluate(values)
            check(dense(kind, (2, *values), (axis,)), isa, 3, replace(symbolic, chunks=chunks, numbers=tuple(numbers)))


def test_a_row_has_the_same_bits_whichever_rows_are_beside_it(isa):
    x = random((9, 3 * isa.lanes + 1), 5)
    for kind in ("softmax", "layer_norm", "sum"):
        whole = run_on(dense(kind, x.shape, (1,)), isa, x)
        for first in (1, 2, 3):
            part = run_on(dense(kind, (9 - first, x.shape[1]), (1,)), isa, x[first:].copy())
            np.testing.assert_array_equal(part, whole[first:])


def run_on(rows, isa, x, **operands):
    y = np.full(rows.y.size, np.nan, np.float32)
    run_kernel(emit_rows(rows, isa), isa, x=x, y=y, **operands)
    return y.reshape(rows.y.shape)


def test_the_epilogue_follows_the_result(isa):
    shape = (6, 37)
    x, r = random(shape, 1), random((6, 1), 2)
    epilogue = chain(("add", View.dense(shape)), "relu", (View.dense((6, 1)), "sub"))
    got = run_on(dense("softmax", shape, (1,), epilogue=epilogue), isa, x, r0=x, r1=r)
    np.testing.assert_allclose(got, r - np.maximum(softmax(x, (1,)) + x, 0), atol=1e-5)
    epilogue = chain(("mul", View.dense((6, 1))), "tanh")
    got = run_on(dense("mean", shape, (1,), epilogue=epilogue), isa, x, r0=r)
    np.testing.assert_allclose(got, np.tanh(x.mean(1, keepdims=True) * r), atol=1e-5)
    epilogue = chain(("mul", View.dense((1, 37))))
    got = run_on(dense("sum", shape, (0,), epilogue=epilogue), isa, x, r0=x[0].copy())
    np.testing.assert_allclose(got, x.sum(0, keepdims=True) * x[0], atol=1e-4)


def test_y_may_be_x(isa):
    for kind in NORMS:
        for axis in (0, 1):
            x = random((9, 50), 3)
            exact = EXACT[kind](x.astype(np.float64), (axis,))
            run_kernel(emit_rows(dense(kind, (9, 50), (axis,)), isa), isa, x=x, y=x)
            np.testing.assert_allclose(x, exact, atol=1e-5)


def test_variance_of_values_far_from_zero_does_not_cancel(isa):
    x = random((4, 300), 4) + np.float32(10_000)
    np.testing.assert_allclose(
        run_on(dense("layer_norm", x.shape, (1,)), isa, x), EXACT["layer_norm"](x.astype(np.float64), (1,)), atol=2e-3
    )


def test_softmax_of_large_values_does_not_overflow(isa):
    x = np.array([[1e4, 1e4 + 1, -1e4], [-3e38, 3e38, 0]], np.float32)
    np.testing.assert_allclose(run_on(dense("softmax", x.shape, (1,)), isa, x), softmax(x.astype(np.float64), (1,)), atol=1e-6)


def test_softmax_of_nan_and_of_infinity_and_of_nothing_but_minus_infinity_is_nan(isa):
    for size in (5, isa.lanes, 40):
        x = random((4, size), size)
        x[0, 3], x[1, 2], x[2] = np.nan, np.inf, -np.inf
        for kind in ("softmax", "log_softmax"):
            got = run_on(dense(kind, x.shape, (1,)), isa, x)
            assert np.isnan(got[0]).all()
            assert np.isnan(got[1, 2])
            assert np.isnan(got[2]).all()
            np.testing.assert_allclose(got[3], EXACT[kind](x[3:].astype(np.float64), (1,))[0], atol=1e-5)


def test_reductions_keep_nan_and_infinities(isa):
    for size in (5, 40):
        x = random((4, size), size)
        x[0, 3], x[1, 2], x[2, 1], x[3] = np.nan, np.inf, -np.inf, -np.inf
        with np.errstate(divide="ignore"):
            exact = [np.nan, np.inf, np.log(np.exp(x[2].astype(np.float64)).sum()), -np.inf]
        np.testing.assert_allclose(run_on(dense("log_sum_exp", x.shape, (1,)), isa, x)[:, 0], exact, rtol=1e-5)
        for kind in ("max", "min"):
            got = run_on(dense(kind, x.shape, (1,)), isa, x)
            np.testing.assert_array_equal(got, EXACT[kind](x, (1,)))


def test_views_without_a_common_contiguous_dimension_are_refused():
    x = View.dense((8, 9))
    with pytest.raises(EmitError, match="need one dimension along which all are contiguous"):
        emit_rows(Rows("softmax", x, View.dense((9, 8)).transposed((1, 0)), (1,)), ISAS["avx2"])


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(EmitError, match=r"y is \(8, 9\), axes are \(1,\), need y \(8, 1\)"):
        emit_rows(Rows("sum", View.dense((8, 9)), View.dense((8, 9)), (1,)), ISAS["avx2"])
    with pytest.raises(EmitError, match=r"a view has shape \(4,\), need \(8, 9\)"):
        emit_rows(Rows("rms_norm", View.dense((8, 9)), View.dense((8, 9)), (1,), scale=View.dense((4,))), ISAS["avx2"])
