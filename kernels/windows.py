"""Sliding windows: the geometry that convolutions and pools share, in any number of spatial dimensions."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from kernels.errors import AttributeValueError, ShapeError
from kernels.operands import one_of
from kernels.record import record

Ints = Sequence[int] | None

AUTO_PADS = ("NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID")
MAX_TAPS = 2**20  # kernels loop over them in Python; a larger one is an attack or a mistake


@record
class Window:
    """The geometry of a window that slides over an input. One entry per spatial axis.

    size: of the input. begin, end: padding before and behind it. out: how many places the window takes.
    """

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
        """Kernel, strides, dilations, top and left padding over an image; a window of one dimension counts as one row.

        Of more dimensions, these are the last two.
        """
        kernel, strides, dilations, (top, left) = (
            (missing, sizes[0]) if len(sizes) == 1 else (sizes[-2], sizes[-1])
            for sizes, missing in ((self.kernel, 1), (self.strides, 1), (self.dilations, 1), (self.begin, 0))
        )
        return kernel, strides, dilations, top, left

    def slices(self) -> Iterator[tuple[Any, Any, Any]]:
        """For each tap: its index, the outputs whose tap falls inside the input, and the input elements it meets there.

        All three index an array whose last axes are the spatial ones: (tap…), (..., slice…), (..., slice…).
        """
        for tap in itertools.product(*map(range, self.kernel)):
            pairs = [self._slice(axis, i) for axis, i in enumerate(tap)]
            yield tap, (..., *(pair[0] for pair in pairs)), (..., *(pair[1] for pair in pairs))

    def _slice(self, axis: int, i: int) -> tuple[slice, slice]:
        stride, offset = self.strides[axis], i * self.dilations[axis] - self.begin[axis]
        low = max(0, -(offset // stride))
        high = max(low, min(self.out[axis], (self.size[axis] - 1 - offset) // stride + 1))
        start = low * stride + offset
        return slice(low, high), slice(start, start + (high - low - 1) * stride + 1 if high > low else start, stride)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sliding:
    """The attributes by which ONNX moves a window over an input: every convolution and pool has them (`@takes(Sliding)`).

    auto_pad: NOTSET takes `pads`, VALID none; SAME_UPPER and SAME_LOWER pad so that there are size / stride places, rounded up,
        an odd element at the end or at the beginning. dilations, strides: for each spatial axis, 1 where left out.
    pads: before every spatial axis, then behind every one; 0 where left out.
    """

    auto_pad: str = "NOTSET"
    dilations: tuple[int, ...] | None = None
    pads: tuple[int, ...] | None = None
    strides: tuple[int, ...] | None = None

    @staticmethod
    def of(attrs: Mapping[str, Any]) -> Sliding:
        """Pick these attributes from all those of a node."""
        return Sliding(**{field.name: attrs[field.name] for field in fields(Sliding) if field.name in attrs})

    @property
    def same(self) -> bool:
        """Whether the padding is computed from the sizes."""
        return self.auto_pad in ("SAME_UPPER", "SAME_LOWER")

    def steps(self, subject: str, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Strides and dilations for each of `rank` axes. Raises AttributeValueError on a wrong number of them, or one below 1."""
        one_of(f"{subject}: auto_pad", self.auto_pad, AUTO_PADS)
        strides = sizes_of(f"{subject}: strides", self.strides, rank, default=1)
        return strides, sizes_of(f"{subject}: dilations", self.dilations, rank, default=1)

    def given_pads(self, subject: str, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Padding before and behind each axis where it is not computed from the sizes. Raises AttributeValueError."""
        given = sizes_of(f"{subject}: pads", self.pads if self.auto_pad == "NOTSET" else None, 2 * rank, default=0)
        return given[:rank], given[rank:]

    def shared_out(self, totals: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Halve the padding of each axis into before and behind; an odd element goes behind for SAME_UPPER, else before."""
        less, more = tuple(t // 2 for t in totals), tuple(t - t // 2 for t in totals)
        return (less, more) if self.auto_pad == "SAME_UPPER" else (more, less)


def sizes_of(subject: str, values: Ints, count: int, *, default: int) -> tuple[int, ...]:
    """`count` integers, each `default` where none are given. Raises AttributeValueError on another count or a smaller integer."""
    found = tuple(values) if values else (default,) * count
    if len(found) != count or any(value < default for value in found):
        raise AttributeValueError(f"{subject} is {list(found)}, need {count} sizes ≥ {default}")
    return found


def window(subject: str, size: tuple[int, ...], kernel: tuple[int, ...], sliding: Sliding, *, ceil_mode: bool = False) -> Window:
    """Resolve ONNX's attributes to the places that a kernel takes.

    Args:    size, kernel: of the spatial axes. ceil_mode: whether a place may begin in the input and reach over its end,
             also the first one, where the window is wider than the input by less than a stride.
    Raises:  AttributeValueError or ShapeError with the values that do not fit.
    """
    rank = len(size)
    strides, dilations = sliding.steps(subject, rank)
    if len(kernel) != rank or any(k < 1 for k in kernel):
        raise AttributeValueError(f"{subject}: kernel_shape is {list(kernel)}, need {rank} sizes ≥ 1")
    if math.prod(kernel) > MAX_TAPS:
        raise AttributeValueError(f"{subject}: kernel_shape is {list(kernel)}, the limit is {MAX_TAPS} elements")
    extent = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    if sliding.same:
        totals = [max(0, (-(-n // s) - 1) * s + e - n) for n, e, s in zip(size, extent, strides, strict=True)]
        begin, end = sliding.shared_out(totals)
    else:
        begin, end = sliding.given_pads(subject, rank)
    out = []
    for n, e, s, b, a in zip(size, extent, strides, begin, end, strict=True):
        room = n + b + a - e
        places = (-(-room // s) if ceil_mode else room // s) + 1
        if places < 1:
            raise ShapeError(f"{subject}: a window of {e} is wider than the input {n} padded by {b} and {a}")
        if ceil_mode and (places - 1) * s >= n + b:
            places -= 1  # a window that starts in the end padding sees nothing
        out.append(places)
    return Window(size, tuple(kernel), strides, dilations, begin, end, tuple(out))
