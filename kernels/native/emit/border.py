"""Columns of an image under a tile of a window: those at the tile's edges may lie outside of the image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from kernels.native.emit.builder import Function, Value
from kernels.native.emit.geometry import Conv
from kernels.native.emit.types import F32, I64
from kernels.record import record


@record
class Columns:
    """The columns that a tile reads along a row, counted from the tile's first one.

    count, stride, dilation: of the window. pixels: of the tile. edge: columns at either end that may lie outside of the image.
    """

    count: int
    stride: int
    dilation: int
    pixels: int
    edge: int

    @staticmethod
    def of(conv: Conv, pixels: int) -> Columns:
        """Return the columns of a tile of a convolution or pool. Where padding is wide, any may lie outside."""
        count, stride, dilation = conv.kernel[1], conv.strides[1], conv.dilations[1]
        span = (count - 1) * dilation
        right = (conv.y.width - 1) * stride + span + 1 - conv.left - conv.x.width
        narrow = Columns(count, stride, dilation, pixels, span)
        return replace(narrow, edge=narrow.reach) if max(conv.left, right) > span else narrow

    @property
    def reach(self) -> int:
        """Columns from the first to behind the last."""
        return (self.pixels - 1) * self.stride + (self.count - 1) * self.dilation + 1

    def of_pixel(self, pixel: int) -> list[int]:
        """Return the columns that a pixel reads, by kernel column."""
        return [pixel * self.stride + s * self.dilation for s in range(self.count)]

    def may_be_outside(self, column: int) -> bool:
        """Whether a column may lie outside of the image in some tile."""
        return column < self.edge or column >= self.reach - self.edge


def tile_start(k: Function, number: Value, pixels: int, width: Value) -> tuple[Value, Value]:
    """Return the first pixel of a tile, and how many of its pixels belong to the tile before it.

    The last tile of a row ends with the row, which is at least as wide as a tile.
    """
    start = k.least(number * pixels, width - pixels)
    return start, number * pixels - start


Load = Callable[[Value], Value]  # reads a vector at an address
ColumnLoad = Callable[[Value, int], Value]  # reads a vector at the address of a column, whose number it is told


@record
class Border:
    """Reads the columns of one tile.

    start: the tile's first column in the image, which may lie outside. width: of the image. otherwise: what is read there, a
    number in all lanes, or what lies at an address.
    """

    k: Function
    columns: Columns
    start: Value
    width: Value
    otherwise: float | Value

    def loads(self, load: Load) -> ColumnLoad:
        """Return what reads a column inside the image with `load`, and outside of it `otherwise` in all lanes."""
        k = self.k
        nothing = self.otherwise
        if not isinstance(nothing, Value):
            nothing = k.module.table(k, "outside", F32, [nothing] * k.isa.lanes)

        def at(address: Value, column: int) -> Value:
            if not self.columns.may_be_outside(column):
                return load(address)
            return load(k.select(self.is_inside(column), address, nothing))

        return at

    def is_inside(self, column: int) -> Value:
        """Test whether a column lies inside the image."""
        index = self.start + column
        return self.k.compare("ge", index, self.k.const(I64, 0)) & (index < self.width)
