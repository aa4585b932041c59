"""Checks of the arrays given to a run against the declared inputs. Nothing is cast or guessed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from graph.budget import model_share_bytes
from graph.errors import FeedError, LimitError
from graph.ir import Port
from kernels.containers import contained, held_by, is_container, is_optional
from kernels.spec import STRING, Array, Spec


def check_feeds(ports: Sequence[Port], feeds: Mapping[str, Any], where: str = "feeds") -> dict[str, Array]:
    """Return every feed as an aligned, C-contiguous, native-endian array; the caller's own memory where it already is one.

    Lists of arrays become sequences; an array, a list or None becomes an optional, where a port asks for one.

    Args:    ports: the inputs; dims may be sizes, names (one size per name over all inputs) or open. where: ends every message.
    Raises:  FeedError on a missing or extra name, and on any value, dtype, rank or dimension that differs from its port.
    """
    if len(feeds) != len(ports) or any(port.name not in feeds for port in ports):
        _refuse_names(ports, feeds, where)
    sizes: dict[str, tuple[int, str]] = {}
    arrays = {}
    for port in ports:
        array = _native(port, feeds[port.name], where)
        if array.shape != port.dims:
            _check_dims(port, array.shape, sizes, where)
        arrays[port.name] = array
    return arrays


def random_feeds(specs: Mapping[str, Spec], seed: int = 0) -> dict[str, Array]:
    """Return an array for every input: standard normal numbers, integers 0 or 1, or empty strings; equal for equal seeds.

    Raises: LimitError where they need more memory than a model may take.
    """
    limit_bytes, needed_bytes = model_share_bytes(), 2 * sum(spec.elements * 8 for spec in specs.values())
    if needed_bytes > limit_bytes:
        largest = max(specs, key=lambda name: specs[name].elements)
        raise LimitError(
            f"{largest}: its random values take {needed_bytes} bytes with those of all inputs, the limit is {limit_bytes}; "
            "use smaller shapes"
        )
    rng = np.random.default_rng(seed)
    return {name: _random(rng, spec) for name, spec in specs.items()}


def _random(rng: np.random.Generator, spec: Spec) -> Array:
    if spec.dtype == STRING:
        return np.full(spec.shape, "", STRING)
    if is_container(spec.dtype):
        return contained(
            spec.dtype, [np.zeros(0 if is_container(held_by(spec.dtype)) else (), held_by(spec.dtype))] * spec.elements
        )
    if spec.dtype.kind in "iub":
        return rng.integers(0, 2, spec.shape).astype(spec.dtype)
    return rng.standard_normal(spec.shape).astype(spec.dtype)


def _refuse_names(ports: Sequence[Port], feeds: Mapping[str, Any], where: str) -> None:
    names = [port.name for port in ports]
    expected = f"the inputs are {', '.join(map(str, ports)) or 'none'}"
    if missing := [name for name in names if name not in feeds]:
        raise FeedError(f"{missing[0]}: input is missing, {expected} ({where})")
    extra = next(name for name in feeds if name not in names)
    raise FeedError(f"{extra}: no input of that name, {expected} ({where})")


def _native(port: Port, value: Any, where: str) -> Array:
    """Check the dtype of a feed and return it as an array that kernels can read."""
    if is_container(port.dtype):
        return _container(port, value, where)
    if not isinstance(value, np.ndarray | np.generic):
        raise FeedError(f"{port.name}: feed is a {type(value).__name__}, need a numpy array ({where})")
    array = np.asarray(value)
    if port.dtype == STRING:
        return _strings(port, array, where)
    if array.dtype.newbyteorder("=") != port.dtype:
        raise FeedError(f"{port.name}: dtype is {array.dtype.name}, need {port.dtype.name}, feeds are never cast ({where})")
    if array.dtype.isnative and array.flags.c_contiguous and array.flags.aligned:
        return array
    return np.require(array, port.dtype, ("C", "A"))


def _container(port: Port, value: Any, where: str) -> Array:
    """Return a list of arrays as a sequence; None, an array or a list as an optional. Raises FeedError for anything else."""
    if isinstance(value, np.ndarray) and value.dtype == port.dtype:
        return value
    if is_optional(port.dtype):
        held = [] if value is None else [_native(Port(port.name, held_by(port.dtype), None), value, where)]
        return contained(port.dtype, held)
    if not isinstance(value, list | tuple):
        raise FeedError(f"{port.name}: feed is a {type(value).__name__}, need a list of numpy arrays for {port} ({where})")
    return contained(port.dtype, [_native(Port(port.name, held_by(port.dtype), None), each, where) for each in value])


def fed_shape(port: Port, feeds: Mapping[str, Any]) -> tuple[int, ...] | None:
    """Return the shape that a feed has as an array, without making one; None where it is missing or no feed."""
    value = feeds.get(port.name)
    if not is_container(port.dtype) or getattr(value, "dtype", None) == port.dtype:
        return getattr(value, "shape", None)
    if is_optional(port.dtype):
        return (int(value is not None),) if port.name in feeds else None
    return (len(value),) if isinstance(value, list | tuple) else None


def _strings(port: Port, array: Array, where: str) -> Array:
    if array.dtype.kind == "U":
        return array.astype(STRING, order="C")
    if array.dtype != STRING:
        raise FeedError(f"{port.name}: dtype is {array.dtype.name}, need strings: an array of str ({where})")
    for index, item in np.ndenumerate(array):
        if not isinstance(item, str):
            raise FeedError(f"{port.name}: element {index} is a {type(item).__name__}, need str in every element ({where})")
    return np.ascontiguousarray(array).reshape(array.shape)


def _check_dims(port: Port, shape: tuple[int, ...], sizes: dict[str, tuple[int, str]], where: str) -> None:
    """Compare a shape with the declared dims. sizes: named dimension -> its size and the input that gave it, extended."""
    if port.dims is None:
        return
    if len(shape) != len(port.dims):
        raise FeedError(f"{port.name}: shape is {shape}, rank {len(shape)}, need rank {len(port.dims)} of {port} ({where})")
    for axis, (size, dim) in enumerate(zip(shape, port.dims, strict=True)):
        if isinstance(dim, int) and size != dim:
            raise FeedError(f"{port.name}: shape is {shape}, need {dim} in dimension {axis} of {port} ({where})")
        if isinstance(dim, str):
            known, source = sizes.setdefault(dim, (size, port.name))
            if size != known:
                raise FeedError(
                    f"{port.name}: shape is {shape}, need {dim}={known} in dimension {axis} as in input {source} ({where})"
                )
