"""Sliding windows: the geometry that convolutions and pools share, in any number of spatial dimensions."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from kernels.errors import AttributeValueError, ShapeError
from kernels.operands import one_of

Ints = Sequence[int] | None


MAX_TAPS = 2**20  # kernels loop over them in Python; a larger one is an attack or a mistake


@dataclass(frozen=True, slots=True)
class Window:
    """How a kernel slides over an input; one entry per spatial axis, `out` is how many places it takes."""

    size: tuple[int, ...]
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begin: tuple[int, ...]
    end: tuple[int, ...]
    out: tuple[int, ...]

    @property
    def taps(self) -> int:
        """Elements of the kernel."""
        return math.prod(self.kernel)

    @property
    def pixels(self) -> int:
        """Places the kernel takes."""
        return math.prod(self.out)

    @property
    def plane(self) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int], int, int]:
        """Kernel, strides, dilations, top and left padding over an image; a window of one dimension has but one row."""
        kernel, strides, dilations, (top, left) = (
            (missing, sizes[0]) if len(sizes) == 1 else (sizes[0], sizes[1])
            for sizes, missing in ((self.kernel, 1), (self.strides, 1), (self.dilations, 1), (self.begin, 0))
        )
        return kernel, strides, dilations, top, left

    def slices(self) -> Iterator[tuple[Any, Any, Any]]:
        """For each tap: its index, the outputs whose tap falls inside the input, and the input elements it meets there.

        All three index an array whose last axes are the spatial ones: (tap…), (..., slice…), (..., slice…).
        """
        axes = [[self._slice(axis, i) for i in range(n)] for axis, n in enumerate(self.kernel)]
        for tap in itertools.product(*map(range, self.kernel)):
            pairs = [axes[axis][i] for axis, i in enumerate(tap)]
            yield tap, (..., *(pair[0] for pair in pairs)), (..., *(pair[1] for pair in pairs))

    def _slice(self, axis: int, i: int) -> tuple[slice, slice]:
        stride, offset = self.strides[axis], i * self.dilations[axis] - self.begin[axis]
        low = max(0, -(offset // stride))
        high = max(low, min(self.out[axis], (self.size[axis] - 1 - offset) // stride + 1))
        start = low * stride + offset
        return slice(low, high), slice(start, start + (high - low - 1) * stride + 1 if high > low else start, stride)


def window(
    subject: str,
    size: tuple[int, ...],
    kernel: tuple[int, ...],
    *,
    strides: Ints = None,
    dilations: Ints = None,
    pads: Ints = None,
    auto_pad: str = "NOTSET",
    ceil_mode: bool = False,
) -> Window:
    """Resolve ONNX's attributes to a Window. Raises AttributeValueError or ShapeError with the values that do not fit."""
    rank = len(size)
    one_of(f"{subject}: auto_pad", auto_pad, ("NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"))
    strides, dilations = _positive(subject, "strides", strides, rank), _positive(subject, "dilations", dilations, rank)
    if len(kernel) != rank or any(k < 1 for k in kernel):
        raise AttributeValueError(f"{subject}: kernel_shape is {list(kernel)}, need {rank} sizes ≥ 1")
    if math.prod(kernel) > MAX_TAPS:
        raise AttributeValueError(f"{subject}: kernel_shape is {list(kernel)}, the limit is {MAX_TAPS} elements")
    extent = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    begin, end = _pads(subject, size, extent, strides, pads, auto_pad)
    out = []
    for n, e, s, b, a in zip(size, extent, strides, begin, end, strict=True):
        room = n + b + a - e
        if room < 0:
            raise ShapeError(f"{subject}: a window of {e} is wider than the input {n} padded by {b} and {a}")
        places = (-(-room // s) if ceil_mode else room // s) + 1
        if ceil_mode and (places - 1) * s >= n + b:
            places -= 1  # a window that starts in the end padding sees nothing
        out.append(places)
    return Window(size, tuple(kernel), strides, dilations, begin, end, tuple(out))


def _positive(subject: str, name: str, values: Ints, rank: int) -> tuple[int, ...]:
    found = tuple(values) if values else (1,) * rank
    if len(found) != rank or any(value < 1 for value in found):
        raise AttributeValueError(f"{subject}: {name} is {list(found)}, need {rank} sizes ≥ 1")
    return found


def _pads(
    subject: str, size: Sequence[int], extent: Sequence[int], strides: Sequence[int], pads: Ints, auto_pad: str
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    rank = len(size)
    if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        totals = [max(0, (-(-n // s) - 1) * s + e - n) for n, e, s in zip(size, extent, strides, strict=True)]
        less, more = tuple(t // 2 for t in totals), tuple(t - t // 2 for t in totals)
        return (less, more) if auto_pad == "SAME_UPPER" else (more, less)
    found = tuple(pads) if pads and auto_pad == "NOTSET" else (0,) * (2 * rank)
    if len(found) != 2 * rank or any(pad < 0 for pad in found):
        raise AttributeValueError(f"{subject}: pads is {list(found)}, need {2 * rank} sizes ≥ 0")
    return found[:rank], found[rank:]
