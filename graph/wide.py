"""Float32 copies of constants in half precision, which know what they were made of.

Passes and rules read the copy. Native code holds packed weights, so the copy is dropped once these are made, and the half, which
often is mapped from a file and takes no memory, stands for it: packed weights of other shapes are found by it.
"""

from __future__ import annotations

import numpy as np

from graph.mapped import release
from kernels.spec import Array


class _Wide(np.ndarray):
    """A float32 copy. half: what it was made of; views and results of arithmetic have none."""

    half: Array | None = None


def widened(half: Array) -> Array:
    """Return a float32 copy of a constant in half precision. Memory of a mapped one is released again."""
    copy = half.astype(np.float32)
    release(half)
    return standing_for(copy, half)


def standing_for(copy: Array, half: Array) -> Array:
    """Return the float32 copy, known to be made of another array of the same halves."""
    made = copy.view(_Wide)
    made.half = half
    return made


def half_of(array: Array) -> Array | None:
    """Return the half that a constant is the float32 copy of; None for any other array."""
    return array.half if isinstance(array, _Wide) else None
