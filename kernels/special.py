"""Functions numpy lacks."""

from __future__ import annotations

import math

import numpy as np

from kernels.spec import Array

# erf(x) = x + x·P(x²) near zero, 1 - exp(-|x| + |x|·Q(|x|)) beyond; both fitted to float32's last bit, highest power first.
# Coefficients: N. Juffa, "efficient faithfully-rounded implementation of error function erff()", 2018, public domain.
_NEAR = np.array([-5.96761703e-4, 4.99119423e-3, -2.67681349e-2, 1.12819925e-1, -3.76125336e-1, 1.28379166e-1], np.float32)
_FAR = np.array(
    [-1.72853470e-5, 3.83197126e-4, -3.88396438e-3, 2.42546219e-2, -1.06777877e-1, -6.34846687e-1, -1.28717512e-1], np.float32
)
_BORDER = np.float32(0.927734375)


def erf_float32(x: Array) -> Array:
    """Error function of a float32 array, within 2 ULP of the true value. Returns a new array."""
    magnitude = np.abs(x)
    np.minimum(magnitude, np.float32(4), out=magnitude)  # erf(4) rounds to 1; larger powers would overflow. NaN stays
    square = x * x
    near = _polynomial(_NEAR, square)
    near *= x
    near += x
    far = _polynomial(_FAR, magnitude)
    far *= magnitude
    far -= magnitude
    np.exp(far, out=far)
    np.subtract(np.float32(1), far, out=far)
    np.copysign(far, x, out=far)
    np.copyto(far, near, where=magnitude <= _BORDER)
    return far


def erf_float64(x: Array) -> Array:
    """Error function of a float64 array, as exact as the C library's: scalar by scalar, so not fast. Returns a new array."""
    return np.fromiter(map(math.erf, x.ravel().tolist()), np.float64, x.size).reshape(x.shape)


def erf(x: Array) -> Array:
    """Error function of a float32 or float64 array. Returns a new array."""
    return erf_float64(x) if x.dtype == np.float64 else erf_float32(x)


def _polynomial(coefficients: Array, x: Array) -> Array:
    result: Array = coefficients[0] * x
    for coefficient in coefficients[1:-1]:
        result += coefficient
        result *= x
    result += coefficients[-1]
    return result
