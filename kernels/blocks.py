"""Evaluation of elementwise formulas of several passes, in blocks that stay in cache."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from kernels.half import is_half
from kernels.spec import Array

BLOCK_ELEMENTS = 16384  # 64 KiB of float32: input, output and two temporaries fit in a 256 KiB L2 cache

Formula = Callable[[Array, Array], None]


def blockwise(formula: Formula, y: Array, x: Array) -> None:
    """Call formula(y_block, x_block) over flat blocks of two arrays of one shape; they may be the same memory.

    y is C-contiguous, x may be strided. float16 and bfloat16 blocks are computed in float32 and rounded once at the end.
    A formula may write y before it has read all of x only where it never reads that x again, as the two may alias.
    """
    flat_y, flat_x = y.reshape(-1), x.reshape(-1)
    half = is_half(y.dtype)
    for start in range(0, y.size, BLOCK_ELEMENTS):
        stop = start + BLOCK_ELEMENTS
        if half:
            single = flat_x[start:stop].astype(np.float32)
            formula(single, single)
            flat_y[start:stop] = single
        else:
            formula(flat_y[start:stop], flat_x[start:stop])
