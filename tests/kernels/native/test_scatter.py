from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kernels.native.errors import EmitError
from kernels.native.families.scatter import Scatter, emit_scatter
from kernels.native.memory.view import View
from kernels.native.target.isa import ISAS
from kernels.registry import find
from tests.kernels.native.reference import run_kernel

REDUCTIONS = ["none", "add", "mul", "max", "min"]


def check(isa, table, count, reduction="none", dtype=np.float32, index=np.int64, seed=0, like=None):
    """Compare a scatter to a dense table with numpy's, bit by bit. table: its rows and elements. like: run that kernel's code."""
    rng, kind = np.random.default_rng(seed), np.dtype(dtype)
    make = rng.standard_normal if kind.kind == "f" else lambda size: rng.integers(-9, 9, size)
    x, updates = make(table).astype(kind), make((count, table[-1])).astype(kind)
    indices = np.stack([rng.integers(-size, size, count) for size in table[:-1]], 1).astype(index)
    what = Scatter(View.dense(table), count, reduction, kind, np.dtype(index))
    wanted = np.empty_like(x)
    find("ScatterND").kernels[0].run((wanted,), x, indices, updates, reduction=reduction)
    kernel = emit_scatter(what, isa)
    if like is not None:
        assert kernel.name == like.name
        kernel = replace(kernel, emit=like.emit)
    memory = np.full(x.nbytes + 64, 0xA5, np.uint8)
    memory[: x.nbytes] = x.view(np.uint8).ravel()
    faults = {f"fault{d}": np.zeros(1, np.int64) for d in range(len(what.rows))}
    run_kernel(kernel, isa, indices=indices, updates=updates, table=memory, **faults)
    np.testing.assert_array_equal(memory[: x.nbytes].view(kind).reshape(table), wanted)
    assert not any(fault[0] for fault in faults.values())
    assert (memory[x.nbytes :] == 0xA5).all()
    return kernel


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, np.uint8, np.int16])
def test_rows_of_every_type_in_order(isa, reduction, dtype):
    for table, count in (((3, 5), 7), ((2, 4, 37), 9), ((2, 3, 2, 1), 20), ((4, 128), 0)):
        check(isa, table, count, reduction, dtype, np.int32)


@pytest.mark.parametrize("reduction", ["none", "add"])
def test_long_rows_are_cut_and_tuples_are_not(isa, reduction):
    assert check(isa, (2, 9000), 5, reduction).chunks > 1
    assert check(isa, (3, 1), 9000, reduction).chunks == 1


def test_indices_outside_stay_inside_and_are_told(isa):
    what = Scatter(View.dense((4, 3, 2)), 1)
    for index, row in (([4, 0], (3, 0)), ([1, -4], (1, 0)), ([-(2**63), 2**63 - 1], (0, 2))):
        table, faults = np.zeros((4, 3, 2), np.float32), [np.zeros(1, np.int64) for _ in range(2)]
        updates = np.ones(2, np.float32)
        named = {f"fault{d}": fault for d, fault in enumerate(faults)}
        run_kernel(emit_scatter(what, isa), isa, indices=np.array([index]), updates=updates, table=table, **named)
        assert table[row].tolist() == [1, 1]
        assert table.sum() == 2
        assert [int(fault[0]) for fault in faults] == [
            i if not -size <= i < size else 0 for i, size in zip(index, (4, 3), strict=True)
        ]


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_code_of_one_size_serves_others(isa, data):
    reduction, depth, single = data.draw(st.sampled_from(REDUCTIONS)), data.draw(st.integers(1, 3)), data.draw(st.booleans())
    like = None
    for _ in range(3):
        rows = data.draw(st.lists(st.integers(1, 5), min_size=depth, max_size=depth))
        elements, count = 1 if single else data.draw(st.integers(2, 100)), data.draw(st.integers(0, 12))
        like = (
            check(isa, (*rows, elements), count, reduction, seed=data.draw(st.integers(0, 2**32)), like=like)
            if like
            else check(isa, (*rows, elements), count, reduction)
        )


def test_what_does_not_fit_is_refused():
    isa = ISAS["avx2"]
    with pytest.raises(EmitError, match=r"need \(rows > 0…, elements\)"):
        emit_scatter(Scatter(View.dense((0, 3)), 1), isa)
    with pytest.raises(EmitError, match="elements are 4 apart"):
        emit_scatter(Scatter(View.dense((3, 4)).transposed((1, 0)), 1), isa)
    with pytest.raises(EmitError, match="need int64 or int32"):
        emit_scatter(Scatter(View.dense((3, 4)), 1, index_dtype=np.dtype(np.int8)), isa)
    with pytest.raises(EmitError, match="bools are written by max"):
        emit_scatter(Scatter(View.dense((3, 4)), 1, "max", np.dtype(bool)), isa)
