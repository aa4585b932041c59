"""Products and convolutions that the tests compute on a GPU, with float64 as the truth."""

from dataclasses import dataclass
from math import erf
from typing import Any

import ml_dtypes
import numpy as np

from kernels.cuda.families.problem import Problem, Window
from kernels.cuda.families.product import Form
from kernels.cuda.families.product_work import Precision, Tile
from kernels.expression import FLOAT, Apply, Expression

DTYPES = {
    "fp32": np.dtype(np.float32),
    "tf32": np.dtype(np.float32),
    "bf16": np.dtype(ml_dtypes.bfloat16),
    "fp16": np.dtype(np.float16),
}
EPSILONS = {"fp32": 2.0**-23, "tf32": 2.0**-10, "bf16": 2.0**-8, "fp16": 2.0**-11}
RELU = Expression((FLOAT,), (Apply("relu", (0,)),))
CLIP = Expression((FLOAT,), (Apply("clip", (0,), (0.0, 6.0)),))
SILU = Expression((FLOAT,), (Apply("silu", (0,)),))
GELU = Expression((FLOAT,), (Apply("gelu", (0,)),))
ADD = Expression((FLOAT, FLOAT), (Apply("add", (0, 1)),))
ADD_RELU = Expression((FLOAT, FLOAT), (Apply("add", (0, 1)), Apply("relu", (2,))))
GATED = Expression((FLOAT, FLOAT, FLOAT), (Apply("mul", (0, 1)), Apply("add", (3, 2))))

SMALL, WIDE = Tile(64, 64, 2, 2, 3), Tile(128, 128, 2, 4, 3)


@dataclass(frozen=True)
class Data:
    """Arrays of a problem as they lie in memory, and what y must be in float64."""

    x: np.ndarray
    w: np.ndarray
    bias: np.ndarray
    others: tuple[np.ndarray, ...]
    product: np.ndarray  # of the factors' magnitudes: what errors are relative to
    truth: np.ndarray


def patches(x: np.ndarray, window: Window) -> np.ndarray:
    """Return the left factor that a convolution of (batch, height, width, channels) is, written out."""
    top, left, bottom, right = window.padding
    padded = np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)))
    (height, width), (dy, dx), (sy, sx) = window.out, window.dilations, window.strides
    taps = [
        padded[:, r * dy : r * dy + (height - 1) * sy + 1 : sy, s * dx : s * dx + (width - 1) * sx + 1 : sx]
        for r in range(window.kernel[0])
        for s in range(window.kernel[1])
    ]
    return np.concatenate(taps, axis=3).reshape(-1, len(taps) * window.channels)


def apply(expression: Expression, *values: np.ndarray) -> np.ndarray:
    """Evaluate the expressions above in float64."""
    functions = {
        "relu": lambda a: np.maximum(a, 0),
        "clip": np.clip,
        "silu": lambda a: a / (1 + np.exp(-a)),
        "gelu": lambda a: a * 0.5 * (1 + np.vectorize(erf)(a / np.sqrt(2))),
        "add": np.add,
        "mul": np.multiply,
    }
    known = list(values)
    for step in expression.steps:
        known.append(functions[step.op](*(known[arg] for arg in step.args), *step.parameters))
    return known[-1]


def make_data(form: Form, problem: Problem, seed: int = 0) -> Data:
    """Draw arrays for a problem. What lies between rows that do not touch is NaN."""
    rng, dtype = np.random.default_rng(seed), DTYPES[form.precision]

    def matrix(rows: int, columns: int, stride: int) -> np.ndarray:
        whole = np.full((rows, stride), np.nan, np.float32)
        whole[:, :columns] = rng.standard_normal((rows, columns))
        return whole.astype(dtype)

    window = problem.window
    pixels = problem.m if window is None else window.batch * window.height * window.width
    channels = problem.k if window is None else window.channels
    x, w = matrix(pixels, channels, problem.strides[0]), matrix(problem.n, problem.k, problem.strides[1])
    others = tuple(matrix(problem.m, problem.n, stride) for stride in problem.others)
    bias = rng.standard_normal(problem.n).astype(np.float32)
    left, right = x[:, :channels].astype(np.float64), w[:, : problem.k].astype(np.float64)
    if window is not None:
        left = patches(left.reshape(window.batch, window.height, window.width, channels), window)
    result = left @ right.T + (bias if form.bias else 0)
    truth = apply(form.expression, result, *(other[:, : problem.n].astype(np.float64) for other in others))
    return Data(x, w, bias, others, np.abs(left) @ np.abs(right).T, truth)


def tolerance(form: Form, data: Data) -> np.ndarray:
    """Return how far a result may be off: factors rounded to tf32, sums in float32, and y rounded once.

    A tensor core adds products with a few bits less than float32, so sums get 2^-21 of the magnitudes that went in.
    """
    factors = 2 * (1.0 if form.groups else 0.7) * 2.0**-10 if form.precision == "tf32" else 0.0
    rounding = {"bf16": 2.0**-8, "fp16": 2.0**-10}.get(form.precision, 2.0**-22)
    widest = 1 + max(
        (np.abs(other.astype(np.float64)).max(initial=0, where=~np.isnan(other)) for other in data.others), default=0
    )
    return (factors + 2.0**-20) * data.product * widest * 1.2 + rounding * np.abs(data.truth) + 1e-6


def form_for(precision: Precision, tile: Tile, problem: Problem, **options: Any) -> Form:
    """Return the form whose kernel serves a problem."""
    windows, copy_bytes, whole = problem.window is not None, problem.copy_bytes(precision), problem.whole(precision)
    batched = problem.batch is not None
    return Form(precision, tile, windows=windows, copy_bytes=copy_bytes, whole=whole, batched=batched, **options)


def window(batch: int, size: int, channels: int, kernel: int, stride: int = 1, pad: int = 0, dilation: int = 1) -> Window:
    return Window(batch, size, size, channels, (kernel, kernel), (stride, stride), (pad,) * 4, (dilation, dilation))
