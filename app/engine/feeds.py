"""Inputs of a model where the caller names no shapes, or gives some of the arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from graph.errors import FeedError
from graph.ir import Port
from graph.run.feeds import check_feeds, random_feeds
from kernels.spec import Array, Spec


def smallest_shapes(ports: Sequence[Port], rows: int = 1) -> dict[str, tuple[int, ...]]:
    """Return each input's declared shape with 1 for open dimensions; inputs of unknown rank are left out.

    rows: size of the first dimension where that is open.
    """
    found = {port.name: tuple(dim if isinstance(dim, int) else 1 for dim in port.dims) for port in ports if port.dims is not None}
    return {**found, **{name: (rows, *found[name][1:]) for name in _batched(ports)}}


def make_feeds(
    ports: Sequence[Port], own: Mapping[str, Array], shapes: Mapping[str, tuple[int, ...]], rows: int | None = None
) -> dict[str, Array]:
    """Return an array for every input.

    Args:   own: arrays of the caller; the others are random. shapes: of random inputs, in place of the smallest ones. rows: size
            of the first dimension where that is open; own arrays are repeated or cut to it. None: own arrays stay as they are.
    Raises: FeedError for arrays or shapes that are not the model's, an input of unknown rank without either, and rows where no
            input has any.
    """
    batched = _batched(ports)
    if rows is not None and rows > 1 and not batched:
        raise FeedError(f"batch of {rows} rows: no input has an open first dimension ({', '.join(map(str, ports))})")
    known = {**smallest_shapes(ports, rows or 1), **shapes}
    for port in ports:
        if port.name not in own and port.name not in known:
            raise FeedError(f"input {port.name!r}: its rank is open, give --shape {port.name}=…")
    feeds = {**random_feeds({port.name: Spec(known[port.name], port.dtype) for port in ports if port.name not in own}), **own}
    if rows is not None:
        feeds |= {name: _resized(feeds[name], rows) for name in batched}
    return check_feeds(ports, feeds, "inputs")


def rows_of(ports: Sequence[Port], feeds: Mapping[str, Array]) -> int:
    """Return the rows of a request: the size of its first open first dimension, or 1."""
    return next((feeds[name].shape[0] for name in _batched(ports)), 1)


def _batched(ports: Sequence[Port]) -> list[str]:
    """Return the names of the inputs whose first dimension is open."""
    return [port.name for port in ports if port.dims and not isinstance(port.dims[0], int)]


def _resized(array: Array, rows: int) -> Array:
    """Repeat or cut rows. An array of no rows or no dimensions stays, for the check of its shape to refuse."""
    return array.take(np.arange(rows) % len(array), axis=0) if array.ndim and len(array) else array
