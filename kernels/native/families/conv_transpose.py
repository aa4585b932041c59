"""Transposed convolution as ordinary ones: every stride-th pixel of the output is a convolution of the input with stride 1.

With stride s, dilation d and p pixels cut off in front, output u takes input o through kernel tap t where u = o·s + t·d - p. So
the outputs u = f + s·j of a phase f < s meet the taps for which s divides f + p - t·d: every (s / g)-th one, g = gcd(s, d). Read
from the last to the first they are a kernel whose taps meet inputs d / g apart, and the phase is a convolution like any other but
for writing pixels s apart. Nothing is multiplied by zeros between pixels, and no output is added to twice.

A phase that meets no tap gets its bias alone: it is a convolution with one tap, which lies above the image for every output.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from kernels.native.emit.geometry import Conv
from kernels.native.memory.image import Image
from kernels.record import record
from kernels.size import least, most
from kernels.spec import Array


@record
class Transposed:
    """A transposed convolution. top, left: rows and columns cut off at the start; what is cut off at the end follows from y."""

    x: Image
    y: Image
    kernel: tuple[int, int] = (1, 1)
    strides: tuple[int, int] = (1, 1)
    dilations: tuple[int, int] = (1, 1)
    top: int = 0
    left: int = 0
    groups: int = 1


@record
class Phase:
    """One phase. conv: from x without its first rows and columns, `skipped`, to the pixels of y a stride apart from `first` on.

    rows, columns: the taps of the kernel that are its kernel, in that order; none where it meets none.
    """

    conv: Conv
    skipped: tuple[int, int]
    first: tuple[int, int]
    rows: tuple[int, ...]
    columns: tuple[int, ...]

    def weights(self, weights: Array) -> Array:
        """Return this phase's part of the weights (outputs, inputs of a group, kernel rows, columns)."""
        if not self.rows:
            return np.zeros((*weights.shape[:2], 1, 1), np.float32)
        return weights[:, :, list(self.rows)][:, :, :, list(self.columns)]


@record
class _Side:
    """The phase of one side: `taps` as in Phase, `before`: padding, `skipped`: inputs that no output meets."""

    first: int
    taps: tuple[int, ...]
    dilation: int
    before: int
    skipped: int


def phases(transposed: Transposed) -> list[Phase]:
    """Return the phases of a transposed convolution, row by row."""
    t = transposed
    rows = _sides(t.x.height, t.y.height, t.kernel[0], t.strides[0], t.dilations[0], t.top)
    columns = list(_sides(t.x.width, t.y.width, t.kernel[1], t.strides[1], t.dilations[1], t.left))
    return [_phase(t, row, column) for row, column in itertools.product(rows, columns)]


def phase_count(size: Sequence[int], strides: Sequence[int]) -> int:
    """Return how many phases an output of that size has."""
    return math.prod(map(least, size, strides))


def phase_taps(kernel: int, stride: int, dilation: int) -> int:
    """Return the most taps that a phase has along one side."""
    return -(-kernel // (stride // math.gcd(stride, dilation)))


def _sides(size_in: int, size_out: int, kernel: int, stride: int, dilation: int, cut: int) -> Iterator[_Side]:
    apart = dilation // math.gcd(stride, dilation)
    for first in range(least(stride, size_out)):
        taps = tuple(t for t in reversed(range(kernel)) if (first + cut - t * dilation) % stride == 0)
        start = (first + cut - taps[0] * dilation) // stride if taps else 0
        if start >= size_in:
            taps = ()
        yield _Side(first, taps, apart, most(-start, 0), most(start, 0))


def _phase(t: Transposed, row: _Side, column: _Side) -> Phase:
    first = (row.first, column.first)
    y, _ = t.y.every(first, t.strides)
    if not (row.taps and column.taps):
        wide = replace(t.x, height=1, width=y.width)
        return Phase(Conv(wide, y, top=y.height, groups=t.groups), (0, 0), first, (), ())
    skipped = (row.skipped, column.skipped)
    x, _ = t.x.every(skipped, (1, 1))
    kernel, dilations = (len(row.taps), len(column.taps)), (row.dilation, column.dilation)
    conv = Conv(x, y, kernel, (1, 1), dilations, row.before, column.before, t.groups)
    return Phase(conv, skipped, first, row.taps, column.taps)


def as_convolution(weights: Array, groups: int) -> Array:
    """Rearrange weights (inputs, outputs of a group, rows, columns) as a convolution's: (outputs, inputs of a group, …)."""
    apart = weights.reshape(groups, weights.shape[0] // groups, *weights.shape[1:])
    return apart.swapaxes(1, 2).reshape(groups * weights.shape[1], -1, *weights.shape[2:])
