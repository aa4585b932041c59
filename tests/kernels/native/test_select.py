from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kernels.native.errors import EmitError
from kernels.native.families.select import Select, emit_select
from kernels.native.memory.view import View
from kernels.native.target.isa import ISAS
from kernels.registry import find
from tests.kernels.native.reference import run_kernel, seen

LARGEST = pytest.mark.parametrize("largest", [True, False], ids=["largest", "smallest"])
SPECIAL = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, -1e-45, 1.5, -1.5, np.float32(-np.nan)], np.float32)


def check(isa, x, count, *, largest=True, view=None, like=None):
    """Compare a kernel with numpy's bit by bit along axis 1 of an (outer, size, inner) tensor, or of a view of `x` as memory."""
    view = view or View.dense(x.shape)
    tensor = seen(view, x.ravel())
    shape = (view.shape[0], count, view.shape[2])
    wanted = np.empty(shape, x.dtype), np.empty(shape, np.int64)
    find("TopK").kernels[0].run(wanted, tensor, np.array(count), axis=1, largest=int(largest))
    kernel = emit_select(Select(view, count, largest, x.dtype), isa)
    if like is not None:
        assert kernel.name == like.name
        kernel = replace(kernel, emit=like.emit)
    values, indices = (np.full(each.nbytes + 64, 0xA5, np.uint8) for each in wanted)
    run_kernel(kernel, isa, x=x, values=values, indices=indices)
    for got, each in zip((values, indices), wanted, strict=True):
        assert got[: each.nbytes].tobytes() == each.tobytes()
        assert (got[each.nbytes :] == 0xA5).all()
    return kernel


@LARGEST
@pytest.mark.parametrize("dtype", [np.float32, np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32])
def test_every_type_with_ties_and_extremes(isa, dtype, largest):
    rng, kind = np.random.default_rng(0), np.dtype(dtype)
    for shape, count in (((3, 7, 1), 3), ((1, 1, 1), 1), ((2, 40, 5), 40), ((2, 9, 3), 1), ((1, 5, 2), 0)):
        x = rng.integers(0, 6, shape).astype(kind)
        if kind.kind != "f":
            x.ravel()[:1], x.ravel()[-1:] = np.iinfo(kind).min, np.iinfo(kind).max
        check(isa, x, count, largest=largest)


@LARGEST
def test_special_values_lie_as_numpy_sorts_them(isa, largest):
    rng = np.random.default_rng(0)
    x = rng.choice(SPECIAL, (20, 30, 1))
    for count in (1, 4, 30):
        check(isa, x, count, largest=largest)


@LARGEST
def test_sorted_rows_either_way(isa, largest):
    rising = np.arange(300, dtype=np.float32)
    check(isa, np.stack([rising, rising[::-1], rising % 7])[..., None].copy(), 37, largest=largest)


def test_many_rows_are_shared_by_chunks(isa):
    assert check(isa, np.random.default_rng(0).standard_normal((40, 1000, 1)).astype(np.float32), 5).chunks == 10


def test_views_that_are_not_dense_are_read(isa):
    memory = np.random.default_rng(0).standard_normal(400).astype(np.float32)
    check(isa, memory, 4, view=View((3, 9, 4), (100, 2, 20), 5))


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_code_of_one_size_serves_others(isa, data):
    largest, like = data.draw(st.booleans()), None
    for _ in range(3):
        shape = data.draw(st.tuples(st.integers(1, 4), st.integers(1, 70), st.integers(1, 4)))
        x = np.random.default_rng(data.draw(st.integers(0, 2**32))).choice(np.arange(-9, 9).astype(np.float32), shape)
        made = check(isa, x, data.draw(st.integers(1, shape[1])), largest=largest, like=like)
        like = like or made


def test_what_it_cannot_select_is_refused():
    isa = ISAS["avx2"]
    with pytest.raises(EmitError, match="5 of 4 are wanted"):
        emit_select(Select(View.dense((1, 4, 1)), 5), isa)
    with pytest.raises(EmitError, match="an axis of at most 2147483647"):
        emit_select(Select(View.dense((1, 2**31, 1)), 5), isa)
    with pytest.raises(EmitError, match="need float32 or integers of up to 32 bits"):
        emit_select(Select(View.dense((1, 4, 1)), 2, dtype=np.dtype(np.int64)), isa)
