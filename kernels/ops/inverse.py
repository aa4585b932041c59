"""com.microsoft.Inverse: the inverse of square matrices."""

from __future__ import annotations

import numpy as np

from kernels.cost import Cost
from kernels.errors import DTypeError, ShapeError
from kernels.half import in_single
from kernels.registry import Case, Kernel, Op, require_dtype
from kernels.scratch import times
from kernels.spec import FLOATS, Array, Spec


def infer(x: Spec) -> Spec:
    """Same shape and dtype as x (…, n, n)."""
    require_dtype("Inverse: x", x, FLOATS)
    if x.rank < 2 or x.shape[-1] != x.shape[-2]:
        raise ShapeError(f"Inverse: x is {x}, need square matrices (…, n, n)")
    return Spec(x.shape, x.dtype)


def cost(out: tuple[Spec, ...], x: Spec) -> Cost:
    """MACs: n³ for each matrix, as by elimination on a matrix beside the unit matrix."""
    return Cost(macs=x.elements * x.shape[-1])


@in_single
def run(out: tuple[Array, ...], x: Array) -> None:
    """By LAPACK; a matrix that has no inverse makes NaN."""
    try:
        out[0][...] = np.linalg.inv(x)
    except np.linalg.LinAlgError:
        for index in np.ndindex(x.shape[:-2]):
            try:
                out[0][index] = np.linalg.inv(x[index])
            except np.linalg.LinAlgError:
                out[0][index] = np.nan


_MATRICES = np.array([[[4, 1], [2, 3]], [[1, 0], [5, 2]]], np.float32)
INVERSE = Op(
    "com.microsoft.Inverse",
    infer,
    cost,
    (Kernel("lu", run, scratch_bytes=times(4)),),
    tolerance_eps=64,
    cases=(
        Case("two", inputs=(_MATRICES,), cost=Cost(macs=16)),
        Case("one", inputs=(_MATRICES[0].astype(np.float64),)),
        Case("half", inputs=(_MATRICES.astype(np.float16),)),
        Case("empty", inputs=((0, 3, 3),), cost=Cost()),
        Case("not_square", inputs=((2, 3),), raises=ShapeError),
        Case("ints", inputs=(np.ones((2, 2), np.int32),), raises=DTypeError),
    ),
)
