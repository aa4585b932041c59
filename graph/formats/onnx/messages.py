"""The message classes of ONNX files that the reader needs when it runs, without the rest of the package `onnx`.

Importing `onnx` loads its checker, its tools and the schemas of all operators, which takes 30 ms; the module that protobuf has
generated takes 8. protobuf keeps one class for each type of message, so these are the classes of `onnx` in any case.
"""

from __future__ import annotations

import importlib.util
from importlib.machinery import PathFinder
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnx import AttributeProto, ModelProto, TensorProto

__all__ = ["AttributeProto", "ModelProto", "TensorProto"]


def _generated() -> ModuleType:
    """Load the module that protobuf has generated from onnx-ml.proto, without importing the package that it lies in."""
    package = importlib.util.find_spec("onnx")
    folders = None if package is None else package.submodule_search_locations
    spec = None if folders is None else PathFinder.find_spec("onnx_ml_pb2", folders)
    if spec is None or spec.loader is None:
        raise ImportError(f"onnx: no module onnx_ml_pb2 in {folders}, install onnx again", name="onnx")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if not TYPE_CHECKING:
    _messages = _generated()
    AttributeProto, ModelProto, TensorProto = _messages.AttributeProto, _messages.ModelProto, _messages.TensorProto
