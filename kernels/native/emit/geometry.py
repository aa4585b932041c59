"""The geometry of a convolution: which taps lie inside the image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from kernels.native.emit.builder import Function, Value
from kernels.native.emit.kernel import Table
from kernels.native.emit.types import I64
from kernels.native.emit.words import F32_WORDS, Words
from kernels.native.memory.buffers import aligned
from kernels.native.memory.image import Image
from kernels.record import record
from kernels.spec import Array


@record
class Depth:
    """The third dimension of a convolution over volumes, each of which lies as an image: the rows of a plane behind one another.

    x, y: planes of them. kernel, stride, dilation: of the window. front: padding before the first plane.
    """

    x: int
    y: int
    kernel: int = 1
    stride: int = 1
    dilation: int = 1
    front: int = 0


@record
class Conv:
    """A convolution. top, left: padding before the first row and column; what pads the other sides follows from y's size.

    within: channels of each group where several groups lie in a vector (`joined`), else 0; `groups` is 1 there.
    depth: of one over volumes, whose other sizes are those of its planes but for the heights of x and y, all planes' together.
    words: what the channels of x are; those of bytes are counted in words. zero: of bytes, the value that pads x.
    """

    x: Image
    y: Image
    kernel: tuple[int, int] = (1, 1)
    strides: tuple[int, int] = (1, 1)
    dilations: tuple[int, int] = (1, 1)
    top: int = 0
    left: int = 0
    groups: int = 1
    depth: Depth | None = None
    within: int = 0
    words: Words = F32_WORDS
    zero: int = 0

    @property
    def kernel_rows(self) -> int:
        """Rows of the kernel, of all its planes."""
        return self.kernel[0] * (1 if self.depth is None else self.depth.kernel)

    @property
    def taps(self) -> int:
        """Elements of the kernel."""
        return self.kernel_rows * self.kernel[1]

    @property
    def group_inputs(self) -> int:
        """Input channels that an output is computed from, or words of them."""
        return self.within // self.words.depth or self.x.channels // self.groups

    @property
    def group_outputs(self) -> int:
        """Output channels of one group."""
        return self.y.channels // self.groups

    def output_vectors(self, lanes: int) -> int:
        """Return how many vectors hold the outputs of a group; the last one may be partly filled."""
        return -(-self.group_outputs // lanes)

    def output_blocks(self, vectors: int, lanes: int) -> int:
        """Return how many blocks of so many vectors hold the outputs of a group; the last one may be partly filled."""
        return -(-self.group_outputs // (vectors * lanes))

    @property
    def macs(self) -> int:
        """Multiply–accumulates, padding taps included."""
        pixels = self.y.batch * self.y.height * self.y.width
        return pixels * self.y.channels * self.group_inputs * self.taps

    @property
    def is_product(self) -> bool:
        """Whether every output pixel depends on the input pixel at the same place alone."""
        plain = self.kernel == (1, 1) == self.strides and self.top == self.left == 0 and self.depth is None
        return plain and (self.x.height, self.x.width) == (self.y.height, self.y.width)

    def joined(self, lanes: int) -> Conv:
        """Return this convolution with the groups that share vectors of so many channels as one group, else unchanged."""
        size = self.group_inputs * self.words.depth
        together = self.groups > 1 and 1 < size == self.group_outputs < lanes and lanes % size == 0
        can = together and self.x.block * self.words.depth == lanes == self.y.block
        return replace(self, groups=1, within=size) if can else self

    def counted(self, words: Words, zero: int = 0) -> Conv:
        """Return this convolution with the channels of x counted in words. zero: of bytes, the value that pads x."""
        return replace(self, x=self.x.words(words.depth), words=words, zero=zero)

    def flat(self) -> Conv:
        """Return this convolution on one long row where the rows of both images are contiguous, else unchanged."""
        can = self.is_product and self.x.rows_join() and self.y.rows_join()
        return replace(self, x=self.x.flat(), y=self.y.flat()) if can else self


def even_rows(height: int, wanted: int) -> int:
    """About `wanted` rows of a chunk, or a few less so that the chunks of a plane are as even as can be."""
    chunks = -(-height // max(1, min(height, wanted)))
    return -(-height // chunks)


def row_table(conv: Conv) -> Table:
    """Return, for each output row, the first kernel row that lies inside the image and, in the high 32 bits, one after the last.

    A kernel that serves every shape reads them: a division for every row would cost as much as a short row's work.
    """
    planes, x_planes = (1, 1) if conv.depth is None else (conv.depth.y, conv.depth.x)
    sizes = (conv.y.height // planes, conv.x.height // x_planes, conv.kernel[0], conv.strides[0], conv.dilations[0], conv.top)
    return Table(_row_words, sizes) if conv.depth is None else Table(_repeated_row_words, (planes, *sizes))


def plane_tables(conv: Conv) -> dict[str, Table]:
    """Return the tables of a kernel over volumes; none of one over images.

    plane_table: like `row_table`, with planes of the kernel. row_starts: elements from the first row of a volume to the row that
    the kernel's first row meets, padding aside.
    """
    if (depth := conv.depth) is None:
        return {}
    rows, x_rows = conv.y.height // depth.y, conv.x.height // depth.x
    steps = (depth.stride * x_rows * conv.x.y_stride, conv.strides[0] * conv.x.y_stride)
    along = (depth.y, depth.x, depth.kernel, depth.stride, depth.dilation, depth.front)
    return {"plane_table": Table(_plane_words, (rows, *along)), "row_starts": Table(_row_starts, (depth.y, rows, *steps))}


def plane_numbers(conv: Conv) -> dict[str, int]:
    """Return the number of a kernel over volumes that each of its loops over planes reads: elements between those in x."""
    if (depth := conv.depth) is None:
        return {}
    return {"x_kernel_plane": depth.dilation * conv.x.height // depth.x * conv.x.y_stride}


def first_element(conv: Conv) -> int:
    """Return the elements from x to the first column of the first window, which lies outside of x where there is padding."""
    planes = 0 if conv.depth is None else conv.depth.front * (conv.x.height // conv.depth.x)
    return -(planes + conv.top) * conv.x.y_stride - conv.left * conv.x.x_stride


def _repeated_row_words(planes: int, *sizes: int) -> list[int]:
    return _row_words(*sizes) * planes


def _plane_words(rows: int, *sizes: int) -> list[int]:
    return [word for word in _row_words(*sizes) for _ in range(rows)]


def _row_starts(planes: int, rows: int, plane_step: int, row_step: int) -> list[int]:
    return [plane * plane_step + row * row_step for plane in range(planes) for row in range(rows)]


def _row_words(rows: int, x_rows: int, kernel_rows: int, stride: int, dilation: int, top: int) -> list[int]:
    starts = np.arange(rows) * stride - top
    high = np.clip((x_rows - 1 + dilation - starts) // dilation, 0, kernel_rows)
    low = np.minimum(np.maximum(-starts + dilation - 1, 0) // dilation, high)
    words: list[int] = (low | high << 32).tolist()
    return words


def row_range(k: Function, table: Value, row: Value) -> tuple[Value, Value]:
    """Emit the two numbers of a row in a `row_table`."""
    word = k.load(I64, table, row)
    return word & k.const(I64, 0xFFFFFFFF), k.shift("lshr", word, 32)


def row_start(k: Function, pointers: Mapping[str, Value], row: Value, step: Value) -> Value:
    """Emit the elements from an image's first row to the one that an output row's first kernel row meets. step: between rows."""
    return k.load(I64, pointers["row_starts"], row) if "row_starts" in pointers else row * step


def plane_range(k: Function, pointers: Mapping[str, Value], row: Value) -> tuple[Value, Value]:
    """Emit the planes of the kernel that lie inside of x for an output row; a loop over the only one of an image is no loop."""
    if "plane_table" in pointers:
        return row_range(k, pointers["plane_table"], row)
    return k.const(I64, 0), k.const(I64, 1)


def aligned_copy(values: Array) -> Array:
    """Copy values to memory that is aligned for kernels."""
    memory = aligned(values.nbytes).view(values.dtype)
    memory[:] = values
    return memory
