"""Where element (row, depth) of a product's factor lies: in a matrix, or in an image seen through a convolution's windows.

A convolution is a product whose left factor has a row for each output pixel and a column for each (kernel row, kernel column,
channel), and is never written out. Addresses are sums of a part that depends on the row, computed once a tile, and one that
depends on the depth, computed once for all rows. Offsets count elements and are below 2^31.
"""

from __future__ import annotations

from typing import Protocol

from kernels.cuda.emit.builder import below, both
from kernels.cuda.emit.descriptor import Fields
from kernels.native.emit.builder import Function, Value
from kernels.native.emit.types import I32
from kernels.record import record

OUTSIDE = -(1 << 30)  # a row of pixels that no kernel reaches the image from

Parts = tuple[Value, ...]


class Source(Protocol):
    """A factor of a product. Parts are values that `place` takes."""

    def row(self, number: Value) -> Parts:
        """Return the parts that depend on the row."""

    def depth(self, number: Value) -> Parts:
        """Return the parts that depend on the depth."""

    def place(self, row: Parts, depth: Parts) -> tuple[Value, Value]:
        """Return the offset of an element, and whether there is such an element; where there is none it counts as 0."""


@record
class Rows:
    """A matrix, row by row. rows, stride: the descriptor's names of its number of rows, and of the distance between them."""

    fields: Fields
    rows: str
    stride: str

    def row(self, number: Value) -> Parts:
        """Return the parts that depend on the row."""
        return number * self.fields.number(self.stride), below(self.fields.k, number, self.fields.number(self.rows))

    def depth(self, number: Value) -> Parts:
        """Return the parts that depend on the depth."""
        return number, below(self.fields.k, number, self.fields.number("k"))

    def place(self, row: Parts, depth: Parts) -> tuple[Value, Value]:
        """Return the offset of an element, and whether there is one."""
        return row[0] + depth[0], both(self.fields.k, row[1], depth[1])


@record
class Windows:
    """The windows of a convolution in an image whose channels come last."""

    fields: Fields

    def row(self, number: Value) -> Parts:
        """Return the parts that depend on the row."""
        f, k = self.fields, self.fields.k
        image, pixel = f.divide(number, "out_pixels")
        row, column = f.divide(pixel, "out_width")
        top = row * f.number("stride_height") - f.number("pad_top")
        left = column * f.number("stride_width") - f.number("pad_left")
        offset = ((image * f.number("height") + top) * f.number("width") + left) * f.number("x_stride")
        return offset, k.select(below(k, number, f.number("m")), top, k.const(I32, OUTSIDE)), left

    def depth(self, number: Value) -> Parts:
        """Return the parts that depend on the depth."""
        f = self.fields
        tap, channel = f.divide(number, "channels")
        row, column = f.divide(tap, "kernel_width")
        down, right = row * f.number("dilation_height"), column * f.number("dilation_width")
        offset = (down * f.number("width") + right) * f.number("x_stride") + channel
        return offset, down, right, below(f.k, number, f.number("k"))

    def place(self, row: Parts, depth: Parts) -> tuple[Value, Value]:
        """Return the offset of an element, and whether there is one."""
        k: Function = self.fields.k
        inside = both(
            k,
            below(k, row[1] + depth[1], self.fields.number("height")),
            below(k, row[2] + depth[2], self.fields.number("width")),
        )
        return row[0] + depth[0], both(k, inside, depth[3])
