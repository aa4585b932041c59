from __future__ import annotations

import math

import numpy as np
import pytest

from kernels.special import erf, erf_float32, erf_float64


@pytest.mark.parametrize(
    "x",
    [
        np.linspace(-4.5, 4.5, 200_001),
        np.geomspace(1e-38, 1, 50_001),
        np.nextafter(np.float32(4.25), np.array([-10, 10], np.float32)),
    ],
    ids=["range", "tiny", "clip_border"],
)
def test_erf_float32_is_within_two_ulps(x):
    single = np.asarray(x, np.float32)
    true = erf_float64(single.astype(np.float64))
    ulps = np.abs(erf_float32(single) - true) / np.spacing(np.abs(true).astype(np.float32))
    assert ulps.max() < 2.5


def test_erf_float32_on_tails_is_exactly_one():
    np.testing.assert_array_equal(erf_float32(np.array([4.25, 5, 1e30, np.inf], np.float32)), 1)
    np.testing.assert_array_equal(erf_float32(np.array([-4.25, -5, -1e30, -np.inf], np.float32)), -1)


def test_erf_is_odd_and_keeps_signed_zero():
    x = np.linspace(0, 5, 1001, dtype=np.float32)
    np.testing.assert_array_equal(erf_float32(-x), -erf_float32(x))
    assert np.signbit(erf_float32(np.array([-0.0], np.float32)))[0]


def test_erf_of_nan_is_nan():
    assert np.isnan(erf(np.array([np.nan], np.float32))).all()
    assert np.isnan(erf(np.array([np.nan], np.float64))).all()


def test_erf_float64_is_the_library_function():
    x = np.linspace(-6, 6, 101).reshape(1, 101)
    assert erf(x).tolist() == [[math.erf(v) for v in x[0].tolist()]]


def test_erf_leaves_its_input():
    x = np.array([-5, 0.5, 5], np.float32)
    x.flags.writeable = False
    erf_float32(x)
