import math
import re

import numpy as np
import pytest

from kernels.native.code.compile import assembly
from kernels.native.emit.builder import Module
from kernels.native.emit.math import ACTIVATIONS, POLYNOMIALS, expm1, log1p_unit
from kernels.native.emit.remez import TARGETS, fit
from kernels.native.emit.types import PTR
from kernels.native.target.isa import ISAS
from tests.kernels.native.reference import everything, ulp_error


def vectorised(function):
    return lambda x: np.array([function(v) for v in x.tolist()])


def exact_sigmoid(x):
    return np.where(x < 0, np.exp(np.minimum(x, 0)), 1) / (1 + np.exp(-np.abs(x)))


LEAST = np.finfo(np.float32).smallest_normal
FLUSHED = {"sigmoid", "softplus"}  # may be 0 where they lie below every normal number
BOUNDS = {  # exact function in float64, ULP
    "exp": (np.exp, 1.2),
    "log": (np.log, 0.9),
    "tanh": (np.tanh, 2.4),
    "erf": (vectorised(math.erf), 1.2),
    "sigmoid": (exact_sigmoid, 2.4),
    "softplus": (lambda x: np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x))), 2.8),
}


@pytest.mark.parametrize("name", sorted(BOUNDS))
def test_error_over_the_whole_range(apply, name):
    exact, bound = BOUNDS[name]
    x = everything()
    with np.errstate(all="ignore"):
        got, wanted = apply(ACTIVATIONS[name], x), exact(x.astype(np.float64))
        error = ulp_error(got, wanted)
    if name in FLUSHED:
        error[(got == 0) & (np.abs(wanted) <= LEAST)] = 0
    worst = error.argmax()
    assert error[worst] <= bound, f"{error[worst]} ULP at {x[worst]}"


def test_expm1_is_accurate_near_zero_and_at_both_ends(apply):
    x = everything()
    x = x[x <= 87]
    error = ulp_error(apply(expm1, x), np.expm1(x.astype(np.float64)))
    assert error.max() <= 1.5


def test_log1p_is_accurate_on_the_unit_interval(apply):
    x = everything()
    x = x[(x >= 0) & (x <= 1)]
    assert ulp_error(apply(log1p_unit, x), np.log1p(x.astype(np.float64))).max() <= 2.0


@pytest.mark.parametrize(("name", "low", "high"), [("tanh", -1, 1), ("erf", -1, 1), ("sigmoid", 0, 1), ("hard_sigmoid", 0, 1)])
def test_range_is_never_left_even_in_the_tails(apply, name, low, high):
    y = apply(ACTIVATIONS[name], np.concatenate([everything(), np.linspace(-30, 30, 100_000), [np.inf, -np.inf]]))
    assert y.min() >= low
    assert y.max() <= high


def test_nan_is_above_no_threshold(apply):
    assert (apply(ACTIVATIONS["thresholded_relu"], np.full(3, np.nan)) == 0).all()


@pytest.mark.parametrize("name", sorted(set(ACTIVATIONS) - {"thresholded_relu"}))
def test_nan_stays_nan(apply, name):
    assert np.isnan(apply(ACTIVATIONS[name], np.full(3, np.nan))).all()


@pytest.mark.parametrize(
    ("name", "at_minus", "at_plus"),
    [("exp", 0, np.inf), ("log", np.nan, np.inf), ("tanh", -1, 1), ("erf", -1, 1), ("sigmoid", 0, 1), ("softplus", 0, np.inf),
     ("elu", -1, np.inf), ("relu", 0, np.inf)],
)  # fmt: skip
def test_infinities(apply, name, at_minus, at_plus):
    np.testing.assert_array_equal(
        apply(ACTIVATIONS[name], np.array([-np.inf, np.inf])), np.array([at_minus, at_plus], np.float32)
    )


def test_log_at_zero_and_below(apply):
    y = apply(ACTIVATIONS["log"], np.array([0.0, -0.0, -1.0, 1.0]))
    np.testing.assert_array_equal(y, np.array([-np.inf, -np.inf, np.nan, 0], np.float32))


def test_odd_functions_keep_the_sign_of_zero(apply):
    for name in ("tanh", "erf"):
        assert np.signbit(apply(ACTIVATIONS[name], np.array([-0.0, 0.0]))).tolist() == [True, False]


SIGMOID = exact_sigmoid
DEFINITIONS = {  # ONNX's own, in float64
    "relu": ((), lambda x: np.maximum(x, 0)),
    "clip": ((0.0, 6.0), lambda x: np.clip(x, 0, 6)),
    "leaky_relu": ((0.1,), lambda x: np.where(x < 0, np.float32(0.1) * x, x)),
    "thresholded_relu": ((1.5,), lambda x: np.where(x > 1.5, x, 0)),
    "elu": ((1.3,), lambda x: np.where(x < 0, np.float32(1.3) * np.expm1(x), x)),
    "selu": ((), lambda x: 1.0507009873554805 * np.where(x < 0, 1.6732632423543772 * np.expm1(x), x)),
    "celu": ((2.0,), lambda x: np.where(x < 0, 2 * np.expm1(x / 2), x)),
    "silu": ((), lambda x: x * SIGMOID(x)),
    "mish": ((), lambda x: x * np.tanh(np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x))))),
    "hard_sigmoid": ((0.2, 0.5), lambda x: np.clip(0.2 * x + 0.5, 0, 1)),
    "hard_swish": ((), lambda x: x * np.clip(x / 6 + 0.5, 0, 1)),
    "gelu": ((), lambda x: x / 2 * (1 + vectorised(math.erf)(x / math.sqrt(2)))),
    "gelu_tanh": ((), lambda x: x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))),
    "softsign": ((), lambda x: x / (1 + np.abs(x))),
}


@pytest.mark.parametrize("name", sorted(DEFINITIONS))
def test_activation_meets_its_definition(apply, name):
    parameters, exact = DEFINITIONS[name]
    x = np.linspace(-20, 20, 30_001, dtype=np.float32)
    y = apply(lambda k, value: ACTIVATIONS[name](k, value, *parameters), x)
    expected = exact(x.astype(np.float64))
    tolerance = 4 * np.finfo(np.float32).eps * np.maximum(np.abs(expected), np.abs(x) * 0.5)
    np.testing.assert_array_less(np.abs(y - expected), tolerance + 1e-12)


def test_every_activation_is_tested():
    assert set(ACTIVATIONS) == set(DEFINITIONS) | set(BOUNDS)


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_coefficients_are_what_the_fit_gives(name):
    refitted, kept = np.array(fit(TARGETS[name])), np.array(POLYNOMIALS[name])
    x = np.linspace(TARGETS[name].low, TARGETS[name].high, 1000)
    difference = np.polyval((refitted - kept)[::-1], x) * TARGETS[name].weight(x)
    assert np.abs(difference).max() < (
        1e-12 if TARGETS[name].double else 2e-9
    )  # the last bit may differ with the linear algebra library


@pytest.mark.parametrize("name", sorted(ISAS))
def test_activations_call_nothing_on_any_isa(name):
    module = Module(ISAS[name])
    with module.function("f", {"x": PTR}) as (k, x):
        for emitter in ACTIVATIONS.values():
            k.store(emitter(k, k.load(k.f32, x)), x)
    assert not re.search(r"\b(call|bl|jmp|b)[lq]?\s", assembly(module.text, ISAS[name]))
