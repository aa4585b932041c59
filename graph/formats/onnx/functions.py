"""Expansion of model-local functions, after a check of how large the expanded model would be."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from graph.errors import CorruptModelError, LimitError
from graph.formats.onnx.schema import walk
from graph.limits import Limits
from kernels.record import record

if TYPE_CHECKING:
    from onnx import FunctionProto, ModelProto, NodeProto

_Key = tuple[str, str, str]  # domain, name, overload


@record
class _Size:
    """Size of a function with all its calls expanded. height: how deeply its calls nest."""

    nodes: int
    nbytes: int
    height: int


def inline(proto: ModelProto, limits: Limits) -> ModelProto:
    """Return the model with every call of a model-local function expanded.

    Raises LimitError when it would have more nodes or bytes than the limits allow (twenty functions that each call the next one
    twice are a million nodes), or when functions nest too deep or in a circle; CorruptModelError when they cannot be expanded.
    """
    size = _Sizer(proto.functions, limits).of(walk(proto.graph.node), proto.graph.ByteSize(), depth=0)
    if size.nodes > limits.nodes:
        raise LimitError(f"model: {size.nodes} nodes once its functions are inlined, the limit nodes is {limits.nodes}")
    if size.nbytes > limits.model_bytes:
        raise LimitError(
            f"model: {size.nbytes} bytes once its functions are inlined, the limit model_bytes is {limits.model_bytes}"
        )
    from onnx import checker, inliner  # noqa: PLC0415  30 ms to import, and few files have functions

    try:
        return inliner.inline_local_functions(proto, convert_version=False)
    except (RuntimeError, ValueError, checker.ValidationError) as error:
        raise CorruptModelError(f"model: its local functions cannot be inlined, {str(error)[:200]}") from None


class _Sizer:
    def __init__(self, functions: Iterable[FunctionProto], limits: Limits) -> None:
        self._functions: dict[_Key, FunctionProto] = {}
        self._sizes: dict[_Key, _Size] = {}
        self._depth = limits.function_depth
        for function in functions:
            key = (_domain(function.domain), function.name, function.overload)
            if self._functions.setdefault(key, function) is not function:
                raise CorruptModelError(f"model: function {function.name!r} is defined twice (domain {function.domain!r})")

    def of(self, nodes: Iterable[NodeProto], own_bytes: int, depth: int) -> _Size:
        """Size of a body."""
        count, nbytes, height = 0, own_bytes, 0
        for node in nodes:
            called = self._called((_domain(node.domain), node.op_type, node.overload), depth + 1)
            count += 1 if called is None else called.nodes
            if called is not None:
                nbytes += called.nbytes
                height = max(height, called.height + 1)
        if height > self._depth:
            raise LimitError(f"model: functions call functions {height} deep, the limit function_depth is {self._depth}")
        return _Size(count, nbytes, height)

    def _called(self, key: _Key, depth: int) -> _Size | None:
        function = self._functions.get(key)
        if function is None:
            return None
        if depth > self._depth:
            rule = f"the limit function_depth is {self._depth}"
            raise LimitError(f"model: function {function.name!r} is called {depth} deep or by itself, {rule}")
        if key not in self._sizes:
            self._sizes[key] = self.of(walk(function.node), function.ByteSize(), depth)
        return self._sizes[key]


def _domain(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain
