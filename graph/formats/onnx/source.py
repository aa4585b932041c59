"""Loading of an ONNX model's bytes from a file, from memory or from a message; large weights are kept apart from the rest."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path

import numpy as np
from google.protobuf.message import DecodeError, EncodeError

from graph.errors import CorruptModelError, LimitError
from graph.formats.onnx.messages import ModelProto
from graph.formats.onnx.wire import Span, split
from graph.formats.opening import open_regular
from graph.limits import Limits
from graph.mapped import LEAST_BYTES, MappedFile
from kernels.record import record
from kernels.spec import Array, Spec


@record
class Loaded:
    """The bytes of a model.

    message: the protobuf message without the raw data of large initializers. weights: that data, by initializer name, as arrays
    of uint8. whole: all bytes, which its digest is computed of, together with the external data. nbytes: size of the model.
    folder: may hold its external data; None refuses external data. files: the files that weights are mapped from.
    """

    message: bytes
    whole: bytes | MappedFile
    nbytes: int
    name: str
    folder: Path | None = None
    weights: Mapping[str, Array] = field(default_factory=dict)
    files: tuple[MappedFile, ...] = ()


def load(source: str | Path | bytes | ModelProto, limits: Limits, *, mapped: bool) -> Loaded:
    """Load a model. mapped: leave large weights in their file. Raises LimitError, UnsafePathError, FileNotFoundError."""
    if not isinstance(source, (bytes, ModelProto)):
        return _load_file(Path(source), limits.model_bytes, mapped)
    if isinstance(source, ModelProto):
        try:
            data, name = source.SerializeToString(deterministic=True), "<ModelProto>"
        except (EncodeError, ValueError) as error:
            raise LimitError(f"model: it cannot be written as one protobuf, {str(error)[:200]} (<ModelProto>)") from None
    else:
        data, name = source, "<bytes>"
    _check_size(len(data), limits.model_bytes, name)
    return Loaded(data, data, len(data), name)


def _load_file(path: Path, limit_bytes: int, mapped: bool) -> Loaded:
    """Map a file into memory, or read it."""
    descriptor = open_regular(path)
    status = os.fstat(descriptor)
    with os.fdopen(descriptor, "rb") as file:
        _check_size(status.st_size, limit_bytes, path.name)
        folder = path.resolve().parent
        if not mapped or not status.st_size:
            data = file.read(limit_bytes + 1)
            _check_size(len(data), limit_bytes, path.name)
            message, spans = split(memoryview(data), LEAST_BYTES) or (data, {})
            # protobuf copies under the interpreter's lock: 550 MB stopped all other threads for 1.0 to 3.3 s, this for 0.1 to 0.2
            copies = {name.decode(errors="replace"): _copied(data, span) for name, span in spans.items()}
            return Loaded(message, data, len(data), path.name, folder, copies)
        whole = MappedFile(descriptor, path.name)
    found = split(memoryview(whole.map), LEAST_BYTES)
    if found is None:
        data = bytes(whole.map)
        return Loaded(data, data, len(data), path.name, folder)
    message, spans = found
    weights: dict[str, Array] = {}
    for raw_name, span in spans.items():
        name, spec = raw_name.decode(errors="replace"), Spec((span.nbytes,), np.dtype(np.uint8))
        weights[name] = whole.array(span.offset, spec, f"initializer {name!r:.80}")
    return Loaded(message, whole, status.st_size, path.name, folder, weights, (whole,))


def _copied(data: bytes, span: Span) -> Array:
    """Copy one weight to aligned memory. numpy copies without holding the interpreter's lock."""
    array = np.frombuffer(data, np.uint8, span.nbytes, span.offset).copy()
    array.flags.writeable = False
    return array


def _check_size(nbytes: int, limit_bytes: int, name: str) -> None:
    if nbytes > limit_bytes:
        raise LimitError(f"model: {nbytes} bytes, the limit model_bytes is {limit_bytes} ({name})")


def parse(loaded: Loaded) -> ModelProto:
    """Parse the protobuf message. Raises CorruptModelError."""
    try:
        proto: ModelProto = ModelProto.FromString(loaded.message)
    except DecodeError:
        raise CorruptModelError(f"model: not an ONNX file, or truncated after {loaded.nbytes} bytes ({loaded.name})") from None
    if not proto.HasField("graph") or not proto.opset_import:
        raise CorruptModelError(f"model: {loaded.nbytes} bytes without a graph or an opset, need both ({loaded.name})")
    return proto
