"""The tensors that a load sends: the user's own, or random ones of the shapes that the server declares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from app.load.server import LoadError
from graph.ir import Port
from graph.run.feeds import check_feeds, random_feeds
from kernels.spec import Array, Spec


def make_feeds(
    ports: Sequence[Port], own: Mapping[str, Array], shapes: Mapping[str, tuple[int, ...]], rows: int | None
) -> dict[str, Array]:
    """Return every input of a request.

    Args:   own: arrays of the user; the others are random. shapes: of random inputs; otherwise open dimensions are 1. rows: size
            of the first dimension where it is open: own arrays are repeated or cut to it. None = own arrays as they are, else 1.
    Raises: FeedError for arrays or shapes that are not the model's; LoadError where rows are asked for and no input has any.
    """
    batched = [port.name for port in ports if port.dims and port.dims[0] is None]
    if rows is not None and rows > 1 and not batched:
        raise LoadError(f"load: batch of {rows} rows, no input has an open first dimension: {', '.join(map(str, ports))}")
    feeds = {**random_feeds({port.name: _spec(port, shapes, rows or 1) for port in ports if port.name not in own}), **own}
    if rows is not None:
        feeds |= {name: _resized(feeds[name], rows) for name in batched if name in feeds}
    return check_feeds(ports, feeds, "load")


def rows_of(ports: Sequence[Port], feeds: Mapping[str, Array]) -> int:
    """Return the rows of a request: the size of its first open first dimension, or 1."""
    return next((feeds[port.name].shape[0] for port in ports if port.dims and port.dims[0] is None), 1)


def _spec(port: Port, shapes: Mapping[str, tuple[int, ...]], rows: int) -> Spec:
    if port.name in shapes:
        return Spec(shapes[port.name], port.dtype)
    sizes = [1 if size is None else int(size) for size in port.dims or ()]
    if port.dims and port.dims[0] is None:
        sizes[0] = rows
    return Spec(tuple(sizes), port.dtype)


def _resized(array: Array, rows: int) -> Array:
    """Repeat or cut rows. An array of no rows or no dimensions stays, for the check of its shape to refuse."""
    return array.take(np.arange(rows) % len(array), axis=0) if array.ndim and len(array) else array
