"""How an image of activations lies in memory: one affine map serves NCHW, NHWC, channel blocks, views and padded buffers."""

from __future__ import annotations

import numpy as np

from kernels.native.errors import EmitError
from kernels.record import record
from kernels.size import is_symbolic
from kernels.spec import Array


@record
class Image:
    """Element (n, c, y, x) lies at n·n_stride + (c // block)·block_stride + y·y_stride + x·x_stride + c % block.

    Strides count elements. block: channels that lie side by side: 1 in NCHW, all of them in NHWC, a vector in blocked images.
    A blocked image has memory for whole blocks; lanes behind the last channel may hold anything.
    """

    batch: int
    channels: int
    height: int
    width: int
    block: int
    n_stride: int
    block_stride: int
    y_stride: int
    x_stride: int

    @staticmethod
    def nchw(batch: int, channels: int, height: int, width: int) -> Image:
        """ONNX's own layout: good to read single channels from, never written by vector kernels."""
        plane = height * width
        return Image(batch, channels, height, width, 1, channels * plane, plane, width, 1)

    @staticmethod
    def nhwc(batch: int, channels: int, height: int, width: int, pixel_stride: int | None = None) -> Image:
        """Channels last; with a larger pixel stride it is a slice of channels of a wider image, as a concat writes it."""
        step = pixel_stride or channels
        return Image(batch, channels, height, width, channels, height * width * step, 0, width * step, step)

    @staticmethod
    def blocked(batch: int, channels: int, height: int, width: int, block: int) -> Image:
        """Blocks of one vector of channels (NCHW16c on AVX-512): neighbouring pixels of a block are neighbours in memory."""
        plane = height * width * block
        return Image(batch, channels, height, width, block, -(-channels // block) * plane, plane, width * block, block)

    @property
    def plane(self) -> tuple[int, int]:
        """Height and width."""
        return self.height, self.width

    @property
    def blocks(self) -> int:
        """Blocks of channels."""
        return -(-self.channels // self.block)

    @property
    def stored_channels(self) -> int:
        """Channels that there is memory for: a multiple of the block."""
        return self.blocks * self.block

    @property
    def elements(self) -> int:
        """Extent in elements, from the first to behind the last."""
        last = (self.batch - 1) * self.n_stride + (self.blocks - 1) * self.block_stride
        return last + (self.height - 1) * self.y_stride + (self.width - 1) * self.x_stride + self.block

    @property
    def contiguous_channels(self) -> bool:
        """Whether all channels of a pixel lie side by side."""
        return self.block >= self.channels

    @property
    def one_for_all_channels(self) -> bool:
        """Whether all channels are one element in memory, as those of a broadcast operand are."""
        return self.block == 1 and self.block_stride == 0

    def offset(self, channel: int) -> int:
        """Elements from channel 0 to that channel of the same pixel."""
        return channel // self.block * self.block_stride + channel % self.block

    def rows_join(self) -> bool:
        """Whether the next row follows where a row ends, so that rows may be walked as one; rows of one pixel always do."""
        return 1 in self.plane or self.y_stride == self.width * self.x_stride

    def flat(self) -> Image:
        """Return these pixels as one row. Raises EmitError where rows do not join."""
        if not self.rows_join():
            raise EmitError(f"image: rows are {self.y_stride} apart and {self.width * self.x_stride} long, they do not join")
        pixels = self.height * self.width
        step = self.y_stride if self.width == 1 else self.x_stride
        return Image(self.batch, self.channels, 1, pixels, self.block, self.n_stride, self.block_stride, pixels * step, step)

    def words(self, depth: int) -> Image:
        """Return this image counted in words of so many neighbouring channels; the last word may be partly filled.

        Raises EmitError where words would not begin where blocks, rows or pixels do.
        """
        strides = (self.n_stride, self.block_stride, self.y_stride, self.x_stride)
        if (self.block % depth and self.blocks > 1) or any(stride % depth for stride in strides if not is_symbolic(stride)):
            raise EmitError(f"image: blocks of {self.block} channels, {list(strides)} apart, are no words of {depth}")
        block = -(-self.block // depth)
        return Image(self.batch, -(-self.channels // depth), self.height, self.width, block, *(each // depth for each in strides))

    def every(self, first: tuple[int, int], steps: tuple[int, int]) -> tuple[Image, int]:
        """Return every `steps`-th pixel from row and column `first` on as an image, and how many elements lie before it."""
        height, width = (-(-(size - at) // step) for size, at, step in zip((self.height, self.width), first, steps, strict=True))
        image = Image(self.batch, self.channels, height, width, self.block, self.n_stride, self.block_stride,
                      steps[0] * self.y_stride, steps[1] * self.x_stride)  # fmt: skip
        return image, first[0] * self.y_stride + first[1] * self.x_stride

    def view(self, memory: Array) -> Array:
        """Strided numpy view (n, blocks, y, x, block) of flat memory, for packing and tests."""
        item = memory.itemsize
        shape = (self.batch, self.blocks, self.height, self.width, self.block)
        strides = tuple(s * item for s in (self.n_stride, self.block_stride, self.y_stride, self.x_stride, 1))
        return np.lib.stride_tricks.as_strided(memory, shape, strides)

    def store(self, nchw: Array, memory: Array) -> None:
        """Write an (n, c, y, x) array into memory of this layout; lanes behind the last channel become 0."""
        full = np.zeros((self.batch, self.stored_channels, self.height, self.width), nchw.dtype)
        full[:, : self.channels] = nchw
        split = full.reshape(self.batch, self.blocks, self.block, self.height, self.width)
        self.view(memory)[...] = split.transpose(0, 1, 3, 4, 2)

    def load(self, memory: Array) -> Array:
        """Read an (n, c, y, x) array out of memory of this layout."""
        split = self.view(memory).transpose(0, 1, 4, 2, 3)
        return split.reshape(self.batch, self.stored_channels, self.height, self.width)[:, : self.channels]
