"""What tests of the families share: arrays in the types that kernels store, and how far results may be off."""

from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
from numpy.lib.stride_tricks import as_strided

DTYPES = {"fp32": np.dtype(np.float32), "fp16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}
STORAGES: Any = tuple(DTYPES)
ROUNDING = {"fp32": 2.0**-22, "fp16": 2.0**-11, "bf16": 2.0**-8}  # of a result, relative; fp32 with a few steps before it


def draw(shape: Sequence[int], storage: str, seed: int = 0) -> np.ndarray:
    """Return normally distributed numbers."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32).astype(DTYPES[storage])


def poison(shape: Sequence[int], storage: str = "fp32") -> np.ndarray:
    """Return an array that holds NaN alone."""
    return np.full(shape, np.nan, np.float32).astype(DTYPES[storage])


def padded(x: np.ndarray, columns: int) -> np.ndarray:
    """Return an array with NaN behind every row of its last axis, up to that many columns."""
    whole = np.full((*x.shape[:-1], columns), np.nan, np.float32).astype(x.dtype)
    whole[..., : x.shape[-1]] = x
    return whole


def strided(buffer: np.ndarray, shape: Sequence[int], strides: Sequence[int]) -> np.ndarray:
    """Return a view of a buffer. strides: in elements."""
    return as_strided(buffer, shape, [stride * buffer.itemsize for stride in strides])


def assert_close(found: np.ndarray, truth: np.ndarray, storage: str, sizes: Any = 0.0, factor: float = 2.0**-20) -> None:
    """Compare results with float64. sizes: magnitudes that were added up, whose error in float32 is `factor` of them."""
    allowed = ROUNDING[storage] * np.abs(truth) + factor * sizes + 1e-6
    error = np.abs(found.astype(np.float64) - truth)
    worst = np.unravel_index(np.argmax(np.where(np.isnan(error), np.inf, error - allowed)), error.shape)
    assert (error <= allowed).all(), (worst, found[worst], truth[worst], error[worst])
