"""Where a value lies: a storage, and a view or an image in it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace

import numpy as np

from kernels.native.emit.kernel import Table
from kernels.native.errors import EmitError
from kernels.native.memory.image import Image
from kernels.native.memory.view import View
from kernels.record import record
from kernels.spec import Array, DType


@dataclass(slots=True, eq=False, weakref_slot=True)
class PackedConstant:
    """A constant as kernels read it, which another thread may still be packing.

    source: the array that it is made of; it is referenced here so that its id() is not reused.
    """

    source: Array | None
    made: Future[Array]

    @staticmethod
    def of(array: Array) -> PackedConstant:
        """Return a packed constant that is ready."""
        made: Future[Array] = Future()
        made.set_result(array)
        return PackedConstant(None, made)

    @property
    def array(self) -> Array:
        """The packed array. Waits until it is made, and raises the error that making it raised."""
        return self.made.result()


@dataclass(eq=False, slots=True)
class Storage:
    """A piece of memory that calls of a segment read and write.

    name: of the value that it was made for. elements: how many of that dtype; views count in these. constant: the packed constant
    that it holds, if any; `elements` is 0 then, and for a table: int64 numbers that follow from sizes, made when these are bound.
    port: the segment's input or output that it is, "" for its own memory.
    """

    name: str
    elements: int
    dtype: DType
    constant: PackedConstant | None = field(default=None, repr=False)
    port: str = ""
    table: Table | None = None

    @property
    def is_own(self) -> bool:
        """Whether it is memory of the segment's own, which results may be written to."""
        return self.constant is None and self.table is None and not self.port

    @staticmethod
    def of_sizes(name: str, make: Callable[..., Sequence[int]], sizes: Sequence[int]) -> Storage:
        """Return the storage of numbers that a pure function makes of sizes."""
        return Storage(name, 0, np.dtype(np.int64), table=Table(make, tuple(sizes)))

    @property
    def nbytes(self) -> int:
        """Size in bytes; 0 for a constant."""
        return self.elements * self.dtype.itemsize


@record
class Viewed:
    """A value that lies as a view of a storage."""

    storage: Storage
    view: View

    @staticmethod
    def new(name: str, shape: Sequence[int], dtype: DType, *, port: str = "") -> Viewed:
        """Return new memory for a row-major value of that shape."""
        view = View.dense(shape)
        return Viewed(Storage(name, view.size, dtype, port=port), view)

    @property
    def first_byte(self) -> int:
        """Bytes from the storage's beginning to the first element."""
        return self.storage.dtype.itemsize * self.view.offset

    @property
    def strided(self) -> Viewed | None:
        """This place: it is described by strides already."""
        return self

    def under(self, view: View) -> Viewed:
        """Return this memory under another view."""
        return Viewed(self.storage, view)


@record
class Imaged:
    """A value that lies as an image, `offset` elements into a storage."""

    storage: Storage
    image: Image
    offset: int = 0

    @staticmethod
    def new(name: str, image: Image, dtype: DType) -> Imaged:
        """Return new memory for an image."""
        return Imaged(Storage(name, image.elements, dtype), image)

    @property
    def first_byte(self) -> int:
        """Bytes from the storage's beginning to the first element."""
        return self.storage.dtype.itemsize * self.offset

    @property
    def strided(self) -> Viewed | None:
        """The image as a view, or None where blocks of channels cannot be described by strides."""
        image = self.image
        shape = (image.batch, image.channels, image.height, image.width)
        if image.block == 1:
            strides = (image.n_stride, image.block_stride, image.y_stride, image.x_stride)
        elif image.blocks == 1 or image.block_stride == image.block:
            strides = (image.n_stride, 1, image.y_stride, image.x_stride)
        else:
            return None
        return Viewed(self.storage, View(shape, strides, self.offset))

    @property
    def blocks(self) -> View:
        """The image as a view of shape (n, blocks, h, w, channels of a block)."""
        image = self.image
        shape = (image.batch, image.blocks, image.height, image.width, image.block)
        return View(shape, (image.n_stride, image.block_stride, image.y_stride, image.x_stride, 1), self.offset)

    def part(self, first: int, channels: int) -> Imaged:
        """Return the place of some channels. first: the first one, where a block begins. channels: how many."""
        image = self.image
        offset = self.offset + first // image.block * image.block_stride
        return Imaged(self.storage, replace(image, channels=channels), offset)


Place = Viewed | Imaged


def is_image(shape: Sequence[int]) -> bool:
    """Whether a value of that shape can lie as an image: (n, c, w), (n, c, h, w) or (n, c, d, h, w), and not empty."""
    return len(shape) in (3, 4, 5) and math.prod(shape) > 0


def image_shape(shape: Sequence[int]) -> tuple[int, int, int, int]:
    """Return a shape (n, c, w), (n, c, h, w) or (n, c, d, h, w) as (n, c, rows, w); rows of d planes lie behind one another."""
    n, c, *rows, width = shape
    return n, c, math.prod(rows), width


def rows_of(view: View) -> View | None:
    """Return a view of rank 3, 4 or 5 as (n, c, rows, w), None where no stride leads from row to row of a volume."""
    n, c, *plane = view.shape
    n_stride, c_stride, *steps = view.strides
    if len(plane) == 1:
        return View((n, c, 1, plane[0]), (n_stride, c_stride, plane[0] * steps[0], steps[0]), view.offset)
    if len(plane) == 2:
        return view
    rows = View(tuple(plane), tuple(steps)).reshaped((plane[0] * plane[1], plane[2]))
    return None if rows is None else View((n, c, *rows.shape), (n_stride, c_stride, *rows.strides), view.offset)


def as_image(place: Place) -> Image:
    """Return the layout of a value as an image; the channels of a view are blocks of one.

    Raises: EmitError where the value is not of rank 3 to 5, or empty, or a volume whose rows no stride leads along.
    """
    if isinstance(place, Imaged):
        return place.image
    view = place.view
    if not is_image(view.shape):
        raise EmitError(f"value {place.storage.name!r}: its shape is {list(view.shape)}, need rank 3, 4 or 5")
    if (image := rows_of(view)) is None:
        raise EmitError(f"value {place.storage.name!r}: no stride leads from row to row of its planes ({view})")
    (n, c, height, width), (n_stride, c_stride, y_stride, x_stride) = image.shape, image.strides
    if c_stride == 1 and c > 1:  # strides of a row or a column of one pixel say nothing: kernels get those of channels last
        x_stride = c if width == 1 else x_stride
        y_stride = width * x_stride if height == 1 else y_stride
        return Image(n, c, height, width, c, n_stride, 0, y_stride, x_stride)
    return Image(n, c, height, width, 1, n_stride, c_stride, y_stride, x_stride)
