"""The geometry of a convolution: which taps lie inside the image."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from kernels.native.emit.builder import Function, Value
from kernels.native.emit.kernel import Table
from kernels.native.emit.types import I64
from kernels.native.memory.buffers import aligned
from kernels.native.memory.image import Image
from kernels.spec import Array


@dataclass(frozen=True, slots=True)
class Conv:
    """A convolution. top, left: padding before the first row and column; what pads the other sides follows from y's size."""

    x: Image
    y: Image
    kernel: tuple[int, int] = (1, 1)
    strides: tuple[int, int] = (1, 1)
    dilations: tuple[int, int] = (1, 1)
    top: int = 0
    left: int = 0
    groups: int = 1

    @property
    def group_inputs(self) -> int:
        """Input channels of one group."""
        return self.x.channels // self.groups

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
        return pixels * self.y.channels * self.group_inputs * self.kernel[0] * self.kernel[1]

    @property
    def is_product(self) -> bool:
        """Whether every output pixel depends on the input pixel at the same place alone."""
        plain = self.kernel == (1, 1) == self.strides and self.top == self.left == 0
        return plain and (self.x.height, self.x.width) == (self.y.height, self.y.width)

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
    return Table(_row_words, (conv.y.height, conv.x.height, conv.kernel[0], conv.strides[0], conv.dilations[0], conv.top))


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


def aligned_copy(values: Array) -> Array:
    """Copy fp32 values to memory that is aligned for kernels."""
    memory = aligned(values.nbytes).view(np.float32)
    memory[:] = values
    return memory
