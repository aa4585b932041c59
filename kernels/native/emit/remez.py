"""Minimax polynomials with fp32 coefficients: the tables of `kernels.native.emit.math` are computed here.

Lawson's iteratively reweighted least squares (1961) converges to the equal-ripple polynomial that Remez's exchange algorithm
finds. Coefficients are
rounded to fp32 one after the other, lowest power first, and the ones not yet rounded are fitted again to make up for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from kernels.native.emit.math import ERF_ONE, ERF_SPLIT
from kernels.record import record

Points = npt.NDArray[np.float64]


@record
class Target:
    """A function to approximate by a polynomial in x on [low, high].

    weight: error is measured as weight(x) · (polynomial - function). fixed: leading coefficients given beforehand.
    double: whether coefficients are fp64.
    """

    function: Callable[[Points], Points]
    low: float
    high: float
    degree: int
    weight: Callable[[Points], Points] = np.ones_like
    fixed: tuple[float, ...] = ()
    double: bool = False


def fit(target: Target, points: int = 2000, rounds: int = 60) -> tuple[float, ...]:
    """Coefficients of x^0, x^1, …, each exactly an fp32 number, or fp64 where the target says so."""
    middle, half = (target.low + target.high) / 2, (target.high - target.low) / 2
    x = middle + half * np.cos(np.pi * (np.arange(points) + 0.5) / points)
    y, weight = target.function(x), target.weight(x)
    done = list(target.fixed)
    while len(done) <= target.degree:
        rest = y - sum(c * x**n for n, c in enumerate(done))
        powers = np.stack([x**n for n in range(len(done), target.degree + 1)], axis=1)
        found = _minimax(powers * weight[:, None], rest * weight, rounds)
        if target.double:
            return (*done, *(float(c) for c in found))
        done.append(float(np.float32(found[0])))
    return tuple(done)


def _minimax(basis: Points, wanted: Points, rounds: int) -> Points:
    scale = np.abs(basis).max(axis=0)
    lawson = np.full(len(wanted), 1.0)
    best, best_error = np.zeros(basis.shape[1]), math.inf
    for _ in range(rounds):
        root = np.sqrt(lawson)
        found = np.linalg.lstsq(basis / scale * root[:, None], wanted * root, rcond=None)[0] / scale
        error = np.abs(basis @ found - wanted)
        if error.max() < best_error:
            best, best_error = found, error.max()
        lawson *= error + 1e-3 * error.max()
        lawson /= lawson.mean()
    return best


_erf, _erfc = np.frompyfunc(math.erf, 1, 1), np.frompyfunc(math.erfc, 1, 1)


def _by_series(series: Callable[[Points], Points], closed: Callable[[Points], Points]) -> Callable[[Points], Points]:
    """The closed form, but the series where its subtraction cancels."""
    return lambda x: np.where(np.abs(x) < 1e-3, series(x), closed(np.where(np.abs(x) < 1e-3, 0.01, x)))


LOG2_HALF = math.log(2) / 2

# name: what the polynomial approximates and where. Read with the formulas in `kernels.native.emit.math`.
TARGETS = {
    # exp(r) = 1 + r + r²·P(r)
    "exp": Target(_by_series(lambda r: 0.5 + r / 6 + r * r / 24, lambda r: (np.expm1(r) - r) / (r * r)),
                  -LOG2_HALF, LOG2_HALF, 4, lambda r: r * r),
    # the same where exponents are sixteenths
    "exp_sixteenth": Target(_by_series(lambda r: 0.5 + r / 6 + r * r / 24, lambda r: (np.expm1(r) - r) / (r * r)),
                            -LOG2_HALF / 16, LOG2_HALF / 16, 1, lambda r: r * r),
    # expm1(r) = r + r²·P(r), to one more bit since nothing is added to it
    "expm1": Target(_by_series(lambda r: 0.5 + r / 6 + r * r / 24, lambda r: (np.expm1(r) - r) / (r * r)),
                    -LOG2_HALF, LOG2_HALF, 5, np.abs, fixed=(0.5,)),
    # erf(x) = x + x·P(x²)
    "erf_small": Target(lambda s: np.asarray(_erf(np.sqrt(s)), float) / np.sqrt(s) - 1, 1e-6, ERF_SPLIT**2, 6),
    # erf(x) = 1 - exp(-P(x))
    "erf_large": Target(lambda x: -np.log(np.asarray(_erfc(x), float)), ERF_SPLIT, ERF_ONE, 7,
                        lambda x: np.asarray(_erfc(x), float)),
    # log(1 + m) = m - m²/2 + m³·P(m)
    "log": Target(_by_series(lambda m: 1 / 3 - m / 4 + m * m / 5, lambda m: (np.log1p(m) - m + m * m / 2) / m**3),
                  math.sqrt(0.5) - 1, math.sqrt(2) - 1, 8, lambda m: m**2),
    # log1p(u) = 2s + s³·P(s²), s = u / (2 + u)
    "log1p": Target(_by_series(lambda q: 2 / 3 + q * 2 / 5, lambda q: (2 * np.arctanh(np.sqrt(q)) / np.sqrt(q) - 2) / q),
                    0.0, 1 / 9, 4, lambda q: q),
    # log2(m) = s·P(s²), s = (m - 1) / (m + 1)
    "log2": Target(_by_series(lambda q: 2 / math.log(2) * (1 + q * (1 / 3 + q * (1 / 5 + q * (1 / 7 + q / 9)))),
                              lambda q: 2 / math.log(2) * np.arctanh(np.sqrt(np.abs(q))) / np.sqrt(np.abs(q))),
                   0.0, ((math.sqrt(2) - 1) / (math.sqrt(2) + 1)) ** 2, 4, double=True),
    # sin(r) = r + r³·P(r²)
    "sin": Target(_by_series(lambda q: -1 / 6 + q / 120 - q * q / 5040,
                             lambda q: (np.sin(np.sqrt(np.abs(q))) / np.sqrt(np.abs(q)) - 1) / q),
                  0.0, (math.pi / 4) ** 2, 2, lambda q: q),
    # cos(r) = 1 - r²/2 + r⁴·P(r²)
    "cos": Target(_by_series(lambda q: 1 / 24 - q / 720 + q * q / 40320,
                             lambda q: (np.cos(np.sqrt(np.abs(q))) - 1 + q / 2) / (q * q)),
                  0.0, (math.pi / 4) ** 2, 2, lambda q: q * q),
}  # fmt: skip
