"""Conversions between float16 or bfloat16 and other types, of every half there is."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from kernels.expression import Apply
from kernels.native.code.compile import assembly
from kernels.native.errors import EmitError
from kernels.native.families.elementwise import Map, Strided, emit_map
from kernels.native.memory.view import View
from tests.kernels.native.reference import CALL
from tests.kernels.native.test_elementwise import run_map
from tests.machines import MACHINES

F16, BF16, F32 = np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16), np.dtype(np.float32)
HALVES = pytest.mark.parametrize("half", [F16, BF16], ids=["f16", "bf16"])


def cast(x: np.ndarray, dtype, isa, *between) -> np.ndarray:
    """Convert an array in a kernel, by way of other types."""
    types = [np.dtype(each) for each in (*between, dtype)]
    steps = tuple(Apply("cast", (n,), dtype=each) for n, each in enumerate(types))
    view = View.dense(x.shape)
    return run_map(Map(Strided(view, types[-1]), (Strided(view, x.dtype),), steps), isa, x)


def every(half: np.dtype) -> np.ndarray:
    return np.arange(1 << 16, dtype=np.uint16).view(half)


def around(half: np.dtype) -> np.ndarray:
    """Return every half as float32, the middle between it and the next one, and the float32 on each side of all these."""
    exact = every(half).astype(np.float32)
    with np.errstate(all="ignore"):
        middle = ((exact[:-1].astype(np.float64) + exact[1:]) / 2).astype(np.float32)
        values = np.concatenate([exact, middle, np.array([65519.996, 65520, 3e38, 3.4e38, 1e-30, -1e-45], np.float32)])
        return np.concatenate([values, np.nextafter(values, np.float32(np.inf)), np.nextafter(values, np.float32(-np.inf))])


def assert_same_numbers(found: np.ndarray, wanted: np.ndarray) -> None:
    """Assert equal bits, but for NaN, which may have any."""
    bits = np.dtype(f"u{wanted.itemsize}")
    nan = np.isnan(wanted)
    np.testing.assert_array_equal(np.isnan(found), nan)
    np.testing.assert_array_equal(found.view(bits)[~nan], wanted.view(bits)[~nan])


@HALVES
def test_every_half_widens_exactly(isa, half):
    assert_same_numbers(cast(every(half), F32, isa), every(half).astype(np.float32))


@HALVES
def test_floats_are_rounded_once_with_ties_to_even(isa, half):
    x = around(half)
    with np.errstate(all="ignore"):
        assert_same_numbers(cast(x, half, isa), x.astype(half))
        assert_same_numbers(cast(x, F32, isa, half), x.astype(half).astype(np.float32))


@HALVES
def test_halves_and_integers_and_bools(isa, half):
    whole = np.array([0, 1, -1, 255, -256, 2049, 65519, 70000, -(2**40)], np.int64)
    with np.errstate(all="ignore"):
        assert_same_numbers(cast(whole, half, isa), whole.astype(half))
    small = np.array([0, 0.5, -0.0, -2.75, 100], half)
    np.testing.assert_array_equal(cast(small, np.int32, isa), small.astype(np.float32).astype(np.int32))
    np.testing.assert_array_equal(cast(small, bool, isa), small.astype(np.float32) != 0)
    assert_same_numbers(cast(small, np.float64, isa), small.astype(np.float64))
    assert_same_numbers(cast(np.array([True, False]), half, isa), np.array([1, 0], half))


@HALVES
def test_doubles_are_not_rounded_twice(isa, half):
    with pytest.raises(EmitError, match="no cast of"):
        cast(np.zeros(2), half, isa)


@HALVES
def test_arithmetic_on_halves_does_not_exist(isa, half):
    view = Strided(View.dense((4,)), half)
    with pytest.raises(EmitError, match="no add of"):
        emit_map(Map(view, (view, view), (Apply("add", (0, 1)),)), isa)


@HALVES
@pytest.mark.parametrize("machine", MACHINES, ids=lambda isa: isa.name)
def test_conversions_call_nothing_on_any_machine(machine, half):
    view = View.dense((100,))
    steps = (Apply("cast", (0,), dtype=half), Apply("cast", (1,), dtype=F32))
    kernel = emit_map(Map(Strided(view), (Strided(view),), steps), machine)
    assert not CALL.search(assembly(kernel.ir, machine))
