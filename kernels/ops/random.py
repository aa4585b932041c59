"""Random numbers: normal, uniform, Bernoulli and multinomial. Without a seed they differ from run to run.

A seed gives equal numbers in every run. They are numpy's numbers, which differ from those of other engines with that seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from kernels.cost import Cost, per_element
from kernels.errors import AttributeValueError, DTypeError, ShapeError
from kernels.operands import INDICES, SCALARS, element_type
from kernels.registry import Case, Kernel, Op, require_dtype
from kernels.scratch import for_each
from kernels.spec import FLOATS, Array, DType, Spec


def _generator(seed: float | None) -> np.random.Generator:
    return np.random.default_rng(None if seed is None else int(np.float64(seed).view(np.uint64)))


def _float_type(name: str, dtype: int) -> DType:
    made = element_type(f"{name}: attribute dtype", dtype)
    if made not in FLOATS:
        raise DTypeError(f"{name}: attribute dtype is {made.name}, need a float type")
    return made


def _sizes(name: str, shape: Sequence[int]) -> tuple[int, ...]:
    if any(size < 0 for size in shape):
        raise ShapeError(f"{name}: attribute shape is {tuple(shape)}, need sizes ≥ 0")
    return tuple(shape)


def _check_normal(name: str, mean: float, scale: float) -> None:
    if not (math.isfinite(mean) and 0 <= scale < math.inf):
        raise AttributeValueError(f"{name}: mean is {mean} and scale {scale}, need finite numbers and a scale ≥ 0")


def _check_uniform(name: str, low: float, high: float) -> None:
    if not (math.isfinite(high - low) and low <= high):
        raise AttributeValueError(f"{name}: low is {low} and high {high}, need finite numbers in that order")


def infer_normal(
    *, shape: Sequence[int], dtype: int = 1, mean: float = 0.0, scale: float = 1.0, seed: float | None = None
) -> Spec:
    """That shape and float type."""
    _check_normal("RandomNormal", mean, scale)
    return Spec(_sizes("RandomNormal", shape), _float_type("RandomNormal", dtype))


def infer_uniform(
    *, shape: Sequence[int], dtype: int = 1, low: float = 0.0, high: float = 1.0, seed: float | None = None
) -> Spec:
    """That shape and float type."""
    _check_uniform("RandomUniform", low, high)
    return Spec(_sizes("RandomUniform", shape), _float_type("RandomUniform", dtype))


def infer_normal_like(
    x: Spec, *, dtype: int | None = None, mean: float = 0.0, scale: float = 1.0, seed: float | None = None
) -> Spec:
    """x's shape; its dtype unless one is given."""
    _check_normal("RandomNormalLike", mean, scale)
    return _like("RandomNormalLike", x, dtype)


def infer_uniform_like(
    x: Spec, *, dtype: int | None = None, low: float = 0.0, high: float = 1.0, seed: float | None = None
) -> Spec:
    """x's shape; its dtype unless one is given."""
    _check_uniform("RandomUniformLike", low, high)
    return _like("RandomUniformLike", x, dtype)


def _like(name: str, x: Spec, dtype: int | None) -> Spec:
    if dtype is not None:
        return Spec(x.shape, _float_type(name, dtype))
    require_dtype(f"{name}: x, whose dtype the output has,", x, FLOATS)
    return Spec(x.shape, x.dtype)


def run_normal(
    out: tuple[Array, ...], *_: Array, mean: float = 0.0, scale: float = 1.0, seed: float | None = None, **attrs: Any
) -> None:
    """Drawn in float64, then rounded."""
    np.copyto(out[0], _generator(seed).normal(mean, scale, out[0].shape), casting="unsafe")


def run_uniform(
    out: tuple[Array, ...], *_: Array, low: float = 0.0, high: float = 1.0, seed: float | None = None, **attrs: Any
) -> None:
    """Drawn in float64, then rounded."""
    np.copyto(out[0], _generator(seed).uniform(low, high, out[0].shape), casting="unsafe")


def infer_bernoulli(x: Spec, *, dtype: int | None = None, seed: float | None = None) -> Spec:
    """x's shape; its dtype unless one is given."""
    require_dtype("Bernoulli: x", x, FLOATS)
    made = x.dtype if dtype is None else element_type("Bernoulli: attribute dtype", dtype)
    require_dtype("Bernoulli: attribute dtype", Spec((), made), SCALARS)
    return Spec(x.shape, made)


def run_bernoulli(out: tuple[Array, ...], x: Array, *, dtype: int | None = None, seed: float | None = None) -> None:
    """1 with probability x."""
    np.copyto(out[0], _generator(seed).random(x.shape) < x.astype(np.float64), casting="unsafe")


def infer_multinomial(x: Spec, *, dtype: int = 6, sample_size: int = 1, seed: float | None = None) -> Spec:
    """(batch, sample_size) class numbers, int32 or int64, from log-probabilities (batch, classes)."""
    require_dtype("Multinomial: x", x, FLOATS)
    made = element_type("Multinomial: attribute dtype", dtype)
    require_dtype("Multinomial: attribute dtype", Spec((), made), INDICES)
    if x.rank != 2 or x.shape[1] < 1:
        raise ShapeError(f"Multinomial: x is {x}, need (batch, classes) with a class")
    if sample_size < 0:
        raise AttributeValueError(f"Multinomial: attribute sample_size is {sample_size}, need 0 or more")
    return Spec((x.shape[0], sample_size), made)


def run_multinomial(out: tuple[Array, ...], x: Array, *, dtype: int = 6, sample_size: int = 1, seed: float | None = None) -> None:
    """Where a uniform number falls in the cumulated probabilities, row by row."""
    generator = _generator(seed)
    logits = x.astype(np.float64)
    levels = np.cumsum(np.exp(logits - logits.max(1, keepdims=True, initial=-np.inf)), 1)
    for row, level in zip(out[0], levels, strict=True):
        row[:] = np.searchsorted(level[:-1], generator.random(sample_size) * level[-1], side="right")


def cost_multinomial(out: tuple[Spec, ...], x: Spec, **attrs: Any) -> Cost:
    """4 per input element (compare, subtract, exp, add) and one draw per sample."""
    return Cost(other_flops=4 * x.elements + out[0].elements)


_GIVEN = {"shape": (2, 3), "seed": 1.0}
_SHAPED = (
    Case("seeded", inputs=(), attrs=_GIVEN, cost=Cost(other_flops=6)),
    Case("half_unseeded", inputs=(), attrs={"shape": (64,), "dtype": 10}),
    Case("negative_size", inputs=(), attrs={"shape": (-1,)}, raises=ShapeError),
    Case("int_type", inputs=(), attrs={"shape": (2,), "dtype": 7}, raises=DTypeError),
)
_NEGATIVE = Case("negative_scale", inputs=(), attrs={"shape": (2,), "scale": -1.0}, raises=AttributeValueError)
_REVERSED = Case("reversed", inputs=(), attrs={"shape": (2,), "low": 2.0, "high": 1.0}, raises=AttributeValueError)
_LIKE = (
    Case("seeded", inputs=((2, 3),), attrs={"seed": 1.0}, cost=Cost(other_flops=6)),
    Case("of_ints", inputs=(np.ones((2, 3), np.int32),), attrs={"dtype": 11}),
    Case("of_ints_untyped", inputs=(np.ones((2, 3), np.int32),), raises=DTypeError),
)
_BERNOULLI = (
    Case("seeded", inputs=((2, 30),), domain=(0, 1), attrs={"seed": 3.0}, cost=Cost(other_flops=60)),
    Case("to_bool", inputs=((2, 3),), domain=(0, 1), attrs={"dtype": 9}),
    Case("ints", inputs=(np.ones(2, np.int32),), raises=DTypeError),
)
_MULTINOMIAL = (
    Case("seeded", inputs=((2, 5),), attrs={"sample_size": 7, "seed": 2.0}, cost=Cost(other_flops=54)),
    Case("int64", inputs=((1, 3),), attrs={"sample_size": 4, "dtype": 7}),
    Case("vector", inputs=((3,),), raises=ShapeError),
    Case("negative_size", inputs=((1, 3),), attrs={"sample_size": -1}, raises=AttributeValueError),
)


def _op(name: str, infer: Callable[..., Spec], run: Callable[..., None], cases: tuple[Case, ...]) -> Op:
    return Op(
        name,
        infer,
        per_element(1, "one draw"),
        (Kernel("draw", run, scratch_bytes=for_each(24)),),
        deterministic=False,
        cases=cases,
    )


OPS = (
    _op("RandomNormal", infer_normal, run_normal, (*_SHAPED, _NEGATIVE)),
    _op("RandomUniform", infer_uniform, run_uniform, (*_SHAPED, _REVERSED)),
    _op("RandomNormalLike", infer_normal_like, run_normal, _LIKE),
    _op("RandomUniformLike", infer_uniform_like, run_uniform, _LIKE),
    _op("Bernoulli", infer_bernoulli, run_bernoulli, _BERNOULLI),
    Op(
        "Multinomial",
        infer_multinomial,
        cost_multinomial,
        (Kernel("draw", run_multinomial, scratch_bytes=for_each(24)),),
        deterministic=False,
        cases=_MULTINOMIAL,
    ),
)
