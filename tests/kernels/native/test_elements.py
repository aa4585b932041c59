from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kernels.native.errors import EmitError
from kernels.native.families.elements import Elements, emit_elements
from kernels.native.memory.view import View
from kernels.native.target.isa import ISAS
from kernels.registry import find
from kernels.spec import Array
from tests.kernels.native.reference import run_kernel

REDUCTIONS = [None, "none", "add", "mul", "max", "min"]
INT64 = np.dtype(np.int64)


def numpys(what: Elements, table: Array, indices: Array, other: Array) -> Array:
    """Return what the numpy kernel of the operator makes of the arrays."""
    picks = what.reduction is None
    made = np.empty_like(other if picks else table)
    inputs = (table, indices) if picks else (table, indices, other)
    attrs: dict[str, Any] = {"axis": what.axis} if picks else {"axis": what.axis, "reduction": what.reduction}
    with np.errstate(invalid="ignore"):
        find("GatherElements" if picks else "ScatterElements").kernels[0].run((made,), *inputs, **attrs)
    return made


def check(what: Elements, isa, table: Array, indices: Array, other: Array, like=None) -> None:
    """Compare a kernel with numpy bit by bit, and assert that it wrote nothing else. like: run the code of that kernel."""
    wanted = numpys(what, table, indices, other)
    kernel = emit_elements(what, isa)
    if like is not None:
        assert kernel.name == like.name
        kernel = replace(kernel, emit=like.emit)
    memory = np.full(max(table.size, other.size) * table.itemsize + 64, 0xA5, np.uint8)
    written = memory[: wanted.nbytes].view(table.dtype)
    fault, name = np.zeros(1, np.int64), "other" if what.reduction is None else "table"
    if what.reduction is not None:
        written[:] = table.ravel()
    run_kernel(kernel, isa, **{"table": table, "other": other, "indices": indices, "fault": fault, name: memory})
    np.testing.assert_array_equal(written.reshape(wanted.shape), wanted)
    assert not fault[0]
    assert (memory[wanted.nbytes :] == 0xA5).all()


def case(table, shape, axis, reduction=None, dtype=np.float32, index=np.int64, seed=0):
    """Return elements of a dense table, and random arrays for it: a table, indices that repeat, and others."""
    rng = np.random.default_rng(seed)
    views = View.dense(table), View.dense(shape), View.dense(shape)
    what = Elements(*views, axis, reduction, np.dtype(dtype), np.dtype(index))
    numbers = [rng.integers(-9, 9, size).astype(dtype) for size in (table, shape)]
    if np.dtype(dtype).kind == "f":
        numbers = [rng.standard_normal(size).astype(dtype) for size in (table, shape)]
    return what, numbers[0], rng.integers(-table[axis], table[axis], shape).astype(index), numbers[1]


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, np.uint8, np.int16])
def test_elements_of_every_type_along_every_axis(isa, reduction, dtype):
    for axis, (table, shape) in enumerate((((5, 3, 4), (9, 3, 2)), ((5, 3, 4), (4, 7, 4)), ((2, 3, 30), (2, 2, 50)))):
        check(*_with(case(table, shape, axis, reduction, dtype), isa))


def _with(made, isa):
    what, table, indices, other = made
    return what, isa, table, indices, other


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_short_indices_and_one_axis(isa, reduction):
    check(*_with(case((7,), (40,), 0, reduction, index=np.int32), isa))
    check(*_with(case((1, 1), (3, 1), 0, reduction, index=np.int32), isa))


def test_nan_wins_a_maximum(isa):
    what = Elements(View.dense((3,)), View.dense((4,)), View.dense((4,)), 0, "max")
    table, other = np.array([1, np.nan, 3], np.float32), np.array([np.nan, 5, 5, 2], np.float32)
    check(what, isa, table, np.array([0, 0, 1, -1]), other)


def test_many_updates_of_one_element_are_made_in_order_by_one_thread(isa):
    what, table, _, other = case((1, 3), (20_000, 3), 0, "add")
    check(what, isa, table, np.zeros(other.shape, np.int64), other)
    assert emit_elements(replace(what, reduction=None), isa).chunks > emit_elements(what, isa).chunks


def test_a_table_with_gaps_is_read(isa):
    memory = np.arange(400, dtype=np.float32)
    table = View((5, 4), (40, 3), 7)
    seen = np.lib.stride_tricks.as_strided(memory[7:], (5, 4), (160, 12))
    indices, y = np.random.default_rng(0).integers(-5, 5, (8, 4)), np.zeros((8, 4), np.float32)
    what = Elements(table, View.dense((8, 4)), View.dense((8, 4)), 0)
    run_kernel(emit_elements(what, isa), isa, table=memory, indices=indices, other=y, fault=np.zeros(1, np.int64))
    np.testing.assert_array_equal(y, np.take_along_axis(seen, indices, 0))


def test_indices_outside_stay_inside_and_are_told(isa):
    what, table, _, _ = case((4, 3), (2, 3), 0)
    for index, row in ((4, 3), (-5, 0), (2**63 - 1, 3), (-(2**63), 0)):
        y, fault = np.zeros((2, 3), np.float32), np.zeros(1, np.int64)
        indices = np.array([[0, 1, 2], [3, index, 3]])
        run_kernel(emit_elements(what, isa), isa, table=table, indices=indices, other=y, fault=fault)
        np.testing.assert_array_equal(y, [table[[0, 1, 2], [0, 1, 2]], table[[3, row, 3], [0, 1, 2]]])
        assert fault[0] == index


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_code_of_one_size_serves_others(isa, data):
    reduction, index = data.draw(st.sampled_from(REDUCTIONS)), data.draw(st.sampled_from([np.int64, np.int32]))
    axis, like = data.draw(st.integers(0, 2)), None
    for _ in range(3):
        shape = data.draw(st.tuples(*(st.integers(2, 7) for _ in range(3))))
        table = [size + data.draw(st.integers(0, 2)) for size in shape]
        table[axis] = data.draw(st.integers(1, 9))
        made = case(tuple(table), shape, axis, reduction, index=index, seed=data.draw(st.integers(0, 2**32)))
        like = like or emit_elements(made[0], isa)
        check(*_with(made, isa), like=like)


def test_what_does_not_fit_is_refused():
    isa = ISAS["avx2"]
    what, *_ = case((4, 3), (2, 3), 0)
    for wrong in (View.dense((2, 4)), View.dense((2, 3)).transposed((1, 0)), View.dense((2,))):
        with pytest.raises(EmitError, match="need dense indices"):
            emit_elements(replace(what, other=wrong), isa)
    with pytest.raises(EmitError, match="which must not be empty"):
        emit_elements(replace(what, table=View.dense((0, 3))), isa)
    with pytest.raises(EmitError, match="need int64 or int32"):
        emit_elements(replace(what, index_dtype=np.dtype(np.int8)), isa)
    with pytest.raises(EmitError, match="bools are written by add"):
        emit_elements(replace(what, dtype=np.dtype(bool), reduction="add"), isa)
