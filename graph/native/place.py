"""Where a value lies: a storage, and a view or an image in it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace

from kernels.native.errors import EmitError
from kernels.native.memory.image import Image
from kernels.native.memory.view import View
from kernels.spec import Array, DType


@dataclass(slots=True, eq=False, weakref_slot=True)
class PackedConstant:
    """A constant as kernels read it, which may still be at work. source: what it is made of, kept as long as this is, so that its
    id stays its own."""

    source: Array | None
    made: Future[Array]

    @staticmethod
    def of(array: Array) -> PackedConstant:
        """One that is there."""
        made: Future[Array] = Future()
        made.set_result(array)
        return PackedConstant(None, made)

    @property
    def array(self) -> Array:
        """Its memory, waited for. Raises what making it raised."""
        return self.made.result()


@dataclass(eq=False, slots=True)
class Storage:
    """A piece of memory that calls of a segment read and write.

    name: of the value that it was made for. elements: of that dtype, which all views of it count in. constant: set where it holds
    one, and then `elements` is 0. port: the value that it enters or leaves the segment as, "" for what only the segment knows.
    """

    name: str
    elements: int
    dtype: DType
    constant: PackedConstant | None = field(default=None, repr=False)
    port: str = ""

    @property
    def nbytes(self) -> int:
        """Size in memory."""
        return self.elements * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
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
        """Itself."""
        return self

    def under(self, view: View) -> Viewed:
        """The same memory seen otherwise."""
        return Viewed(self.storage, view)


@dataclass(frozen=True, slots=True)
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
        """As strides alone, or None where blocks of channels need more; one pixel alone has its channels side by side."""
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
        """As a view of rank 5: (n, blocks, h, w, channels of a block)."""
        image = self.image
        shape = (image.batch, image.blocks, image.height, image.width, image.block)
        return View(shape, (image.n_stride, image.block_stride, image.y_stride, image.x_stride, 1), self.offset)

    def part(self, first: int, channels: int) -> Imaged:
        """Some of its channels, from the beginning of a block."""
        image = self.image
        offset = self.offset + first // image.block * image.block_stride
        return Imaged(self.storage, replace(image, channels=channels), offset)


Place = Viewed | Imaged


def is_image(shape: Sequence[int]) -> bool:
    """Whether a value of that shape can lie as an image: (n, c, h, w) or (n, c, w), and not empty."""
    return len(shape) in (3, 4) and math.prod(shape) > 0


def image_shape(shape: Sequence[int]) -> tuple[int, int, int, int]:
    """(n, c, h, w) of a shape that `is_image`."""
    n, c, *plane = shape
    return (n, c, 1, plane[0]) if len(plane) == 1 else (n, c, plane[0], plane[1])


def as_image(place: Place) -> Image:
    """A value as the image that it is, or, where it lies as a view, as one whose channels are read one by one.

    Raises EmitError for views that are no images.
    """
    if isinstance(place, Imaged):
        return place.image
    view = place.view
    if not is_image(view.shape):
        raise EmitError(f"value {place.storage.name!r}: its shape is {list(view.shape)}, need rank 3 or 4")
    n, c, height, width = image_shape(view.shape)
    n_stride, c_stride, *steps = view.strides
    y_stride, x_stride = steps if len(steps) == 2 else (width * steps[0], steps[0])
    if c_stride == 1 and c > 1:
        return Image(n, c, height, width, c, n_stride, 0, y_stride, x_stride)
    return Image(n, c, height, width, 1, n_stride, c_stride, y_stride, x_stride)
