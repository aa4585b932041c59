"""ONNX: protobuf files, with external data beside them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from graph.formats.registry import Format
from graph.ir import Model
from graph.limits import Check, Limits

if TYPE_CHECKING:
    from onnx import ModelProto

# The keys of ModelProto's fields in protobuf's encoding (number · 8 + wire type). A file has no other mark.
_KEYS = (b"\x08", b"\x12", b"\x1a", b"\x22", b"\x28", b"\x32", b"\x3a", b"\x42", b"\x72", b"\xa2\x01", b"\xca\x01", b"\xd2\x01")


def _holds(source: object) -> bool:
    onnx = sys.modules.get("onnx")  # an object of its types cannot exist before it was imported
    return onnx is not None and isinstance(source, onnx.ModelProto)


def _read(source: str | Path | bytes | ModelProto, limits: Limits, *, mapped: bool, check: Check) -> Model:
    from graph.formats.onnx.reader import read  # noqa: PLC0415  onnx and protobuf take 0.1 s to import

    return read(source, limits, mapped=mapped, check=check)


FORMAT = Format("ONNX", (".onnx",), lambda head: head.startswith(_KEYS), _holds, _read)
