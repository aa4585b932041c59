from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kernels.native.errors import EmitError
from kernels.native.families.gather import Gather, emit_gather
from kernels.native.memory.view import View
from kernels.native.target.isa import ISAS
from tests.kernels.native.reference import run_kernel


def gather(what, isa, x, indices, like=None):
    """Run a gather and assert that it wrote nothing behind y. Return y and the index that is out of range, or 0.

    like: run the code of that kernel.
    """
    y = np.full((what.y.span + 32) * x.itemsize, 0xA5, np.uint8)
    faults = {f"fault{d}": np.zeros(1, np.int64) for d in range(len(what.rows))}
    kernel = emit_gather(what, isa)
    if like is not None:
        assert kernel.name == like.name
        kernel = replace(kernel, emit=like.emit)
    run_kernel(kernel, isa, x=x, indices=indices, y=y, **faults)
    assert (y[what.y.span * x.itemsize :] == 0xA5).all()
    return y[: what.y.span * x.itemsize].view(x.dtype), next((int(f[0]) for f in faults.values() if f[0]), 0)


@pytest.mark.parametrize("dtype", [np.float32, np.int64, np.uint8])
@pytest.mark.parametrize("kind", [np.int64, np.int32])
def test_rows_are_picked_from_either_end(isa, dtype, kind):
    for outer, rows, elements, count in ((1, 50, 768, 9), (3, 7, 1, 40), (2, 5, 37, 1), (1, 3, 30_000, 4)):
        x = np.random.default_rng(0).integers(0, 200, (outer, rows, elements)).astype(dtype)
        indices = np.random.default_rng(1).integers(-rows, rows, count).astype(kind)
        what = Gather.along(View.dense(x.shape), View.dense((outer, count, elements)), x.dtype, indices.dtype)
        y, fault = gather(what, isa, x, indices)
        np.testing.assert_array_equal(y.reshape(outer, count, elements), np.take(x, indices, 1))
        assert not fault


def test_indices_outside_stay_inside_and_are_told(isa):
    x = np.arange(12, dtype=np.float32).reshape(1, 4, 3)
    for index, row in ((4, 3), (-5, 0), (2**63 - 1, 3), (-(2**63), 0)):
        what = Gather.along(View.dense(x.shape), View.dense((1, 2, 3)))
        y, fault = gather(what, isa, x, np.array([1, index], np.int64))
        np.testing.assert_array_equal(y.reshape(2, 3), x[0, [1, row]])
        assert fault == index


def test_rows_with_gaps_between_are_read_and_written(isa):
    memory = np.arange(200, dtype=np.float32)
    what = Gather.along(View((2, 4, 5), (100, 10, 1), 3), View((2, 3, 5), (21, 7, 1), 0))
    y, _ = gather(what, isa, memory, np.array([3, 0, -2], np.int64))
    x = np.lib.stride_tricks.as_strided(memory[3:], (2, 4, 5), (400, 40, 4))
    np.testing.assert_array_equal(np.lib.stride_tricks.as_strided(y, (2, 3, 5), (84, 28, 4)), x[:, [3, 0, 2]])


def test_shapes_that_do_not_fit_are_refused():
    isa = ISAS["avx2"]
    with pytest.raises(EmitError, match="need \\(outer, rows > 0, elements\\)"):
        emit_gather(Gather.along(View.dense((1, 4, 3)), View.dense((1, 2, 5))), isa)
    with pytest.raises(EmitError, match="need \\(outer, rows > 0, elements\\)"):
        emit_gather(Gather.along(View.dense((1, 0, 3)), View.dense((1, 2, 3))), isa)
    with pytest.raises(EmitError, match="indices are float32, need int64 or int32"):
        emit_gather(Gather.along(View.dense((1, 4, 3)), View.dense((1, 2, 3)), index_dtype=np.dtype(np.float32)), isa)
    with pytest.raises(EmitError, match="those of a row side by side"):
        emit_gather(Gather(View.dense((1, 4, 5, 3)), View.dense((1, 2, 1)), View.dense((1, 2, 3))), isa)
    with pytest.raises(EmitError, match="elements are 4 and 1 apart"):
        emit_gather(Gather.along(View.dense((1, 3, 4)).transposed((0, 2, 1)), View.dense((1, 2, 3))), isa)


def draw_gather(data, depth, elements):
    """Draw the sizes of a gather by tuples of indices, and return it with its arrays and its result."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    outer, count = data.draw(st.integers(1, 3)), data.draw(st.integers(0, 9))
    rows = data.draw(st.lists(st.integers(1, 6), min_size=depth, max_size=depth))
    x = rng.integers(0, 200, (outer, *rows, elements)).astype(np.float32)
    indices = np.stack([rng.integers(-size, size, (outer, count)) for size in rows], 2)
    what = Gather(View.dense(x.shape), View.dense(indices.shape), View.dense((outer, count, elements)))
    return what, x, indices, x[(np.arange(outer)[:, None], *np.moveaxis(indices, 2, 0))]


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_code_of_one_size_picks_rows_of_others(isa, data):
    depth, single = data.draw(st.integers(1, 3)), data.draw(st.booleans())
    like = None
    for _ in range(3):
        what, x, indices, wanted = draw_gather(data, depth, 1 if single else data.draw(st.integers(2, 150)))
        like = like or emit_gather(what, isa)
        y, fault = gather(what, isa, x, indices, like)
        np.testing.assert_array_equal(y.reshape(wanted.shape), wanted)
        assert not fault


def test_indices_of_tuples_outside_are_told_one_by_one(isa):
    x = np.arange(24, dtype=np.float32).reshape(1, 4, 3, 2)
    what = Gather(View.dense(x.shape), View.dense((1, 2, 2)), View.dense((1, 2, 2)))
    for index, row in (([0, 3], [0, 2]), ([-5, 0], [0, 0])):
        y, fault = gather(what, isa, x, np.array([[[1, 1], index]], np.int64))
        np.testing.assert_array_equal(y.reshape(2, 2), [x[0, 1, 1], x[0, row[0], row[1]]])
        assert fault in index
