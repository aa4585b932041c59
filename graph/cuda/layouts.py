"""Values as matrices: rows of the last dimension, or pixels of channels. Kernels read and write these with one stride."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from graph.native.place import Viewed
from kernels.cuda.emit.epilogue import Storage
from kernels.cuda.families.elementwise import Array
from kernels.native.memory.view import View
from kernels.spec import DType

Layout = Literal["rows", "pixels"]

WIDEST_BYTES = 16  # that a kernel moves at once, from an address that is a multiple of it
_STORAGES: dict[str, Storage] = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}


def storage_of(dtype: DType) -> Storage:
    """Return how kernels of floats name a type of memory."""
    return _STORAGES[dtype.name]


def new_view(shape: Sequence[int], layout: Layout) -> View:
    """Return the view of new memory: row-major, or an image (n, c, …) with its channels last."""
    if layout == "rows" or len(shape) < 3:
        return View.dense(shape)
    n, channels, *plane = shape
    last = View.dense((n, *plane, channels))
    return last.transposed((0, len(shape) - 1, *range(1, len(shape) - 1)))


def in_order_of(view: View) -> View:
    """Return the view of new memory of that shape, its dimensions in the order in which those of `view` lie, without gaps."""
    order = sorted(range(len(view.shape)), key=lambda axis: (-view.strides[axis], axis))
    dense = View.dense([view.shape[axis] for axis in order])
    return dense.transposed([order.index(axis) for axis in range(len(order))])


def matrix_of(view: View, layout: Layout) -> View | None:
    """Return a value as (rows, columns) or (pixels, channels), with columns side by side; None where no stride does that."""
    rank = len(view.shape)
    if layout == "pixels" and rank > 2:
        view = view.transposed((0, *range(2, rank), 1))
    columns = view.shape[-1] if rank else 1
    return matrix(view, columns)


def matrix(view: View, columns: int) -> View | None:
    """Return the elements of a view, in order, as rows of so many columns that lie side by side, or None."""
    seen = view.reshaped((view.size // columns, columns))
    if seen is None or (columns > 1 and seen.strides[1] != 1):
        return None
    stride = seen.strides[0] if seen.shape[0] > 1 else columns
    return View(seen.shape, (stride, 1), seen.offset)


def is_aligned(place: Viewed) -> bool:
    """Whether kernels that move several elements at once can begin at a place."""
    return place.first_byte % WIDEST_BYTES == 0


def repeats(view: View) -> bool:
    """Whether some element is there more than once."""
    return any(stride == 0 and size > 1 for size, stride in zip(view.shape, view.strides, strict=True))


def array_of(place: Viewed, shape: Sequence[int]) -> Array:
    """Return a place, broadcast to a shape, as maps and copies read it."""
    view = place.view.broadcast(shape)
    aligned = np.gcd(place.first_byte, WIDEST_BYTES).item() if place.first_byte else WIDEST_BYTES
    storage = _STORAGES.get(place.storage.dtype.name, "fp32")
    return Array(view.strides, storage, aligned)
