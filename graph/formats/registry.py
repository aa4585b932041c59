"""The file formats of models, and how the format of a file is found.

Each format is a package in this folder whose module `graph.formats.<name>` holds a `FORMAT`. Adding one touches nothing outside
its package: `read` finds it by the suffix of a path, by the first bytes of other data, or by the type of an object in memory.
"""

from __future__ import annotations

import functools
import importlib
import os
import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import graph.formats
from graph.errors import CorruptModelError
from graph.formats.opening import open_regular
from graph.ir import Model
from graph.limits import Check, Limits, go_on
from kernels.record import record

if TYPE_CHECKING:
    from onnx import ModelProto

HEAD_BYTES = 64  # of a file, by which its format is recognised
_DEFAULT_LIMITS = Limits()


@record
class Format:
    """One file format.

    name: for messages. suffixes: of its files, lower case with the dot, the usual one first.
    begins: whether these first bytes (at most HEAD_BYTES) may begin a file of the format.
    holds: whether an object in memory is a model of the format.
    read: (source, limits, mapped, check) -> Model, with the contract of `graph.formats.registry.read`.
    """

    name: str
    suffixes: tuple[str, ...]
    begins: Callable[[bytes], bool]
    holds: Callable[[object], bool]
    read: Callable[..., Model]

    def __str__(self) -> str:
        return f"{self.name} ({', '.join(self.suffixes)})"


@functools.cache
def formats() -> tuple[Format, ...]:
    """Every format that this build reads, by name."""
    packages = (info.name for info in pkgutil.iter_modules(graph.formats.__path__) if info.ispkg)
    found: list[Format] = [importlib.import_module(f"graph.formats.{name}").FORMAT for name in packages]
    return tuple(sorted(found, key=lambda each: each.name))


def suffixes() -> tuple[str, ...]:
    """The suffixes of all formats' files, lower case with the dot."""
    return tuple(suffix for each in formats() for suffix in each.suffixes)


def read(
    source: str | Path | bytes | ModelProto, limits: Limits = _DEFAULT_LIMITS, *, mapped: bool = True, check: Check = go_on
) -> Model:
    """Read and check a model of any format.

    Args:    source: a path (external data is read from its folder only), the bytes of a file, or an onnx.ModelProto.
             mapped: large weights stay in their file, which must not be written to; else the file is read as a whole.
             check: called between nodes and between tensors; what it raises ends the reading.
    Raises:  CorruptModelError, naming the formats there are where it has none of them; LimitError, UnsafePathError,
             CyclicGraphError, UnknownOpError (naming every unknown op), UnsupportedError; FileNotFoundError for a missing path.
    """
    return format_of(source).read(source, limits, mapped=mapped, check=check)


def format_of(source: str | Path | bytes | ModelProto) -> Format:
    """The format of a model: by its path's suffix, else by its first bytes. Raises CorruptModelError where none fits."""
    if isinstance(source, str | Path):
        return _format_of_file(Path(source))
    if isinstance(source, bytes):
        return _recognised(source[:HEAD_BYTES], f"{len(source)} bytes", "<bytes>")
    for each in formats():
        if each.holds(source):
            return each
    raise CorruptModelError(f"model: it is a {type(source).__name__}, need a path, bytes or a message of {_known()}")


def _format_of_file(path: Path) -> Format:
    for each in formats():
        if path.suffix.lower() in each.suffixes:
            return each
    with os.fdopen(open_regular(path), "rb") as file:
        nbytes = os.fstat(file.fileno()).st_size
        return _recognised(file.read(HEAD_BYTES), f"{nbytes} bytes", path.name)


def _recognised(head: bytes, amount: str, name: str) -> Format:
    for each in formats():
        if each.begins(head):
            return each
    raise CorruptModelError(
        f"model: {amount} that begin with {head[:8].hex(' ') or 'nothing'}, need a file of {_known()} ({name})"
    )


def _known() -> str:
    return " or ".join(map(str, formats()))
