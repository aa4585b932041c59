"""Half precision in numpy kernels: float16 and bfloat16 are computed in float32 and rounded once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from kernels.spec import Array, DType

_HALF_BYTES = 2


def is_half(dtype: DType) -> bool:
    """Whether the dtype is float16 or bfloat16."""
    return dtype.itemsize == _HALF_BYTES and dtype.kind not in "iub"


def in_single(run: Callable[..., None]) -> Callable[..., None]:
    """Wrap a kernel of float32 and float64: half-precision inputs are widened, and results are rounded once into `out`."""

    def widened(out: tuple[Array | None, ...], *inputs: Array | None, **attrs: Any) -> None:
        first = out[0]
        if first is None or not is_half(first.dtype):
            run(out, *inputs, **attrs)
            return
        wide = tuple(a.astype(np.float32) if a is not None and is_half(a.dtype) else a for a in inputs)
        results = tuple(np.empty(y.shape, np.float32) if y is not None and is_half(y.dtype) else y for y in out)
        run(results, *wide, **attrs)
        for y, result in zip(out, results, strict=True):
            if y is not None and result is not None and y is not result:
                np.copyto(y, result, casting="unsafe")

    widened.__doc__ = run.__doc__
    return widened
