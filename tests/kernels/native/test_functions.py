import math
from typing import Any

import numpy as np
import pytest

from kernels.native.code.compile import assembly
from kernels.native.emit.builder import Module
from kernels.native.emit.functions import BINARY_FUNCTIONS, FUNCTIONS, pow, power
from kernels.native.emit.types import PTR
from kernels.native.target.isa import ISAS
from tests.kernels.native.reference import CALL, everything, ulp_error


def vectorised(function):
    return lambda x: np.array([function(v) if np.isfinite(v) else np.nan for v in x.tolist()])


BOUNDS = {  # exact function in float64 and ULP; what one instruction does is correctly rounded
    "neg": (np.negative, 0.5),
    "abs": (np.abs, 0.5),
    "square": (np.square, 0.5),
    "sqrt": (np.sqrt, 0.5),
    "reciprocal": (np.reciprocal, 0.5),
    "rsqrt": (lambda x: 1 / np.sqrt(x), 1.5),
    "floor": (np.floor, 0),
    "ceil": (np.ceil, 0),
    "round": (np.rint, 0),
    "sign": (np.sign, 0),
    "sin": (vectorised(math.sin), 1.5),
    "cos": (vectorised(math.cos), 1.5),
}


@pytest.mark.parametrize("name", sorted(BOUNDS))
def test_error_over_the_whole_range(apply, name):
    exact, bound = BOUNDS[name]
    x = np.concatenate([everything(), np.arange(-9.5, 10, 0.5), [np.inf, -np.inf, np.nan]]).astype(np.float32)
    with np.errstate(all="ignore"):
        error = ulp_error(apply(FUNCTIONS[name], x), exact(x.astype(np.float64)))
    worst = error.argmax()
    assert error[worst] <= bound, f"{error[worst]} ULP at {x[worst]}"


def test_rounding_keeps_the_sign_of_zero(apply):
    for name, x in (("floor", -0.0), ("ceil", -0.5), ("round", -0.5), ("sqrt", -0.0), ("reciprocal", -np.inf)):
        assert np.signbit(apply(FUNCTIONS[name], np.array([x]))).all(), name


def test_every_function_is_tested():
    assert set(FUNCTIONS) == set(BOUNDS) | {"pow"}


def test_angles_next_to_multiples_of_a_quarter_turn(apply):
    worst = np.array(
        [16367173.0 * 2.0**72, 2.0**28, -(2.0**28), np.pi, 1e9, 3.4e38, 2.5e8, 2.7e8]
    )  # the first is the hardest there is
    turns = np.outer(np.arange(1, 5000), np.pi / 2).ravel() * np.resize([1, 101, 1e4, 1e6, 1e12, 1e30], 4999)
    x = np.concatenate([worst, turns, -turns]).astype(np.float32)
    for name, exact in (("sin", math.sin), ("cos", math.cos)):
        assert ulp_error(apply(FUNCTIONS[name], x), vectorised(exact)(x.astype(np.float64))).max() <= 1.5


def test_sine_keeps_the_sign_of_zero(apply):
    assert np.signbit(apply(FUNCTIONS["sin"], np.array([-0.0, 0.0, -1e-45]))).tolist() == [True, False, True]


def exact_pow(x, y):
    with np.errstate(all="ignore"):
        return np.power(x.astype(np.float64), y.astype(np.float64))


def test_power_over_the_whole_range(apply):
    rng = np.random.default_rng(0)
    x = np.abs(everything())
    some = np.concatenate([rng.uniform(-4, 4, len(x) // 2), rng.uniform(-150, 150, len(x) - len(x) // 2)])
    near_one = rng.uniform(0.9, 1.1, 20_000)
    x, y = (
        np.concatenate([x, near_one]).astype(np.float32),
        np.concatenate([some, rng.uniform(-900, 900, 20_000)]).astype(np.float32),
    )
    error = ulp_error(apply(pow, x, y), exact_pow(x, y))
    assert error.max() <= 1.2, (x[error.argmax()], y[error.argmax()], error.max())


def test_power_of_negative_bases_and_of_everything_special(apply):
    special = np.array(
        [0.0, -0.0, 1, -1, 2, -2, 0.5, -0.5, 3, -3, np.inf, -np.inf, np.nan, 1e-40, -1e-40, 16777217, 1e30, -7, 2.5, -2.5]
    )
    x, y = (v.ravel().astype(np.float32) for v in np.meshgrid(special, special))
    found, exact = apply(pow, x, y), exact_pow(x, y)
    assert ulp_error(found, exact).max() <= 1.2
    np.testing.assert_array_equal(np.signbit(found)[~np.isnan(exact)], np.signbit(exact)[~np.isnan(exact)])


@pytest.mark.parametrize("exponent", [-4, -2, -1, -0.5, 0, 0.5, 1, 1.5, 2, 3, 4, 5, -7, 2.2])
def test_power_by_a_constant(apply, exponent):
    x = np.concatenate([everything(), [np.inf, -np.inf, np.nan]]).astype(np.float32)
    exact = exact_pow(x, np.full_like(x, exponent))
    error = ulp_error(apply(lambda k, v: power(k, v, exponent), x), exact)
    assert error.max() <= 2.5, x[error.argmax()]


@pytest.mark.parametrize("name", sorted(ISAS))
def test_functions_call_nothing_on_any_isa(name):
    module = Module(ISAS[name])
    with module.function("f", {"x": PTR}) as (k, x):
        functions: tuple[Any, ...] = (*FUNCTIONS.values(), *BINARY_FUNCTIONS.values())
        for function in functions:
            value = k.load(k.f32, x)
            k.store(
                function(k, value, value)
                if function is pow
                else function(k, value, 2.5)
                if function is power
                else function(k, value),
                x,
            )
    assert not CALL.search(assembly(module.text, ISAS[name]))
