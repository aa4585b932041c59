"""Binding of open dimensions: which sizes a model is counted, planned and run for where the caller does not give them.

One rule holds everywhere. The batch, the first axis of an input, is 1. Other open dimensions are asked for, all at once, with
sizes that were tried on the model.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

from graph.errors import FeedError
from graph.ir import Port
from graph.limits import Limits
from kernels.spec import Spec

BATCH: Final = 1
IMAGE_SIZES: Final = (224, 256, 320, 512, 640, 32)  # tried for open axes behind the channels
OTHER_SIZES: Final = (128, 64, 32, 16, 8, 1)  # tried for any other axis, one after the other
_BATCH_NAME: Final = re.compile(r"n|b|bs|.*batch.*", re.IGNORECASE)
_NO_NAME: Final = re.compile(r"unk__\d+|dynamic.*|\?", re.IGNORECASE)  # as exporters fill them in

_LIMITS = Limits()


Fits = Callable[[Mapping[str, Spec]], bool]  # says whether a model takes inputs of these specs


def bind_inputs(
    inputs: Sequence[Port], shapes: Mapping[str, tuple[int, ...]] | None, dims: Mapping[str, int] | None, fits: Fits
) -> dict[str, Spec]:
    """Give every input of a model a concrete spec, as `graph.shapes.bind` says. fits: asked before sizes are suggested."""
    shapes, dims = dict(shapes or {}), dict(dims or {})
    names = [port.name for port in inputs]
    if unknown := sorted(set(shapes) - set(names)):
        raise FeedError(f"shapes: input {unknown[0]!r} does not exist, the model has {names}")
    symbols = {dim for port in inputs for dim in port.dims or () if isinstance(dim, str)}
    if unknown := sorted(set(dims) - symbols):
        raise FeedError(f"dims: dimension {unknown[0]!r} does not exist, the model has {sorted(symbols) or 'none'}")
    for name, size in dims.items():
        if size < 0:
            raise FeedError(f"dims: {name!r} is {size}, need a size ≥ 0")
    sizes = dict(dims)
    for port in inputs:
        if port.name in shapes:
            _match(port, tuple(shapes[port.name]), sizes)
    for port in inputs:
        if isinstance(batch := _batch(port), str):
            sizes.setdefault(batch, BATCH)
    missing = [port for port in inputs if port.name not in shapes and None in _resolved(port, sizes)]
    if missing:
        raise FeedError(_asking(inputs, missing, shapes, sizes, fits))
    return {port.name: _spec(port, _shape(port, shapes, sizes)) for port in inputs}


def _match(port: Port, shape: tuple[int, ...], sizes: dict[str, int]) -> None:
    """Check a given shape against the declared dims, and note the sizes of named dimensions."""
    if any(size < 0 for size in shape):
        raise FeedError(f"input {port.name!r}: shape is {list(shape)}, need sizes ≥ 0")
    if port.dims is None:
        return
    if len(shape) != len(port.dims):
        raise FeedError(f"input {port.name!r}: shape {list(shape)} has rank {len(shape)}, need {len(port.dims)} ({port})")
    for axis, (size, dim) in enumerate(zip(shape, port.dims, strict=True)):
        wanted = sizes.setdefault(dim, size) if isinstance(dim, str) else size if dim is None else dim
        if size != wanted:
            named = f"dimension {dim!r} is {wanted} elsewhere" if isinstance(dim, str) else f"the model fixes {wanted}"
            raise FeedError(f"input {port.name!r}: axis {axis} is {size}, {named} ({port})")


_NONE: Final = object()  # an input without a batch: None is a dimension without a name


def _batch(port: Port) -> object:
    """Return the dimension that is an input's batch: its first, where it is open and nothing says that it is another."""
    if not port.dims or isinstance(port.dims[0], int):
        return _NONE
    named = port.dims[0] is not None and not _NO_NAME.fullmatch(port.dims[0])
    batch = _BATCH_NAME.fullmatch(port.dims[0] or "") is not None if named else len(port.dims) > 1
    return port.dims[0] if batch else _NONE


def _resolved(port: Port, sizes: Mapping[str, int]) -> list[int | None]:
    """Return the sizes of an input's dimensions, None for those that are open still; [None] where the rank is open."""
    if port.dims is None:
        return [None]
    found = [sizes.get(dim) if isinstance(dim, str) else dim for dim in port.dims]
    if found and found[0] is None and _batch(port) is not _NONE:
        found[0] = BATCH
    return found


def _shape(port: Port, shapes: Mapping[str, tuple[int, ...]], sizes: Mapping[str, int]) -> tuple[int, ...]:
    if port.name in shapes:
        return tuple(shapes[port.name])
    return tuple(size for size in _resolved(port, sizes) if size is not None)


def _spec(port: Port, shape: tuple[int, ...]) -> Spec:
    spec = Spec(shape, port.dtype)
    if spec.hides_its_size or spec.elements > _LIMITS.tensor_elements:
        limits = f"the limits are {_LIMITS.rank} dimensions and {_LIMITS.tensor_elements} elements"
        raise FeedError(f"input {port.name!r}: it is {spec!s:.200}, {limits}, and sizes beside a 0 count too")
    return spec


def _asking(
    inputs: Sequence[Port], missing: list[Port], shapes: Mapping[str, tuple[int, ...]], sizes: Mapping[str, int], fits: Fits
) -> str:
    """Say every dimension that is open, and arguments that fit the model."""
    told = "; ".join(_open(port, sizes) for port in missing)
    if any(port.dims is None for port in missing):
        return f"{told}; give whole shapes, as in {' '.join(f'--shape {port.name}=1,3,224,224' for port in missing)}"
    given = {port.name: _shape(port, shapes, sizes) for port in inputs if port not in missing}
    for tried in _tries(missing, sizes):
        if fits({port.name: Spec((given | tried)[port.name], port.dtype) for port in inputs}):
            return f"{told}; give their sizes, such as {_arguments(missing, tried, sizes)}, which fit this model"
    return f"{told}; give their sizes by --dim or --shape (none of those that were tried fits this model)"


def _open(port: Port, sizes: Mapping[str, int]) -> str:
    if port.dims is None:
        return f"input {port.name!r}: its rank is open"
    axes = [f"axis {axis} ({port.dims[axis] or 'unnamed'})" for axis, size in enumerate(_resolved(port, sizes)) if size is None]
    return f"input {port.name!r}: {', '.join(axes)} {'is' if len(axes) == 1 else 'are'} open"


def _tries(missing: list[Port], sizes: Mapping[str, int]) -> Iterator[dict[str, tuple[int, ...]]]:
    """Yield shapes to try for inputs. One name is one size everywhere, that of the first axis that has it."""
    for image, other in zip(IMAGE_SIZES, OTHER_SIZES, strict=True):
        named = dict(sizes)
        shapes: dict[str, tuple[int, ...]] = {}
        for port in missing:
            whole = []
            for axis, (size, dim) in enumerate(zip(_resolved(port, named), port.dims or (), strict=True)):
                guess = image if axis > 1 and len(port.dims or ()) > 3 else other
                whole.append(size if size is not None else named.setdefault(dim, guess) if isinstance(dim, str) else guess)
            shapes[port.name] = tuple(whole)
        yield shapes


def _arguments(missing: list[Port], tried: Mapping[str, tuple[int, ...]], sizes: Mapping[str, int]) -> str:
    """Write sizes as arguments of a command: by name where every dimension that is missing has one, else as whole shapes."""
    found: dict[str, int] = {}
    for port in missing:
        for dim, size, known in zip(port.dims or (), tried[port.name], _resolved(port, sizes), strict=True):
            if known is None and not isinstance(dim, str):
                return " ".join(f"--shape {port.name}={','.join(map(str, tried[port.name]))}" for port in missing)
            if known is None and isinstance(dim, str):
                found[dim] = size
    return " ".join(f"--dim {name}={size}" for name, size in found.items())
