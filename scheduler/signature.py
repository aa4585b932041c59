"""The signature of a node: everything that decides how fast it runs, and nothing else.

Nodes of equal signature are the same work, so models share their measurements. A signature holds the op, the spec of every input
and output, which inputs are constant, attributes, the fused epilogue, and the values of small integer constants (axes, pads and
starts decide which elements are touched). It does not hold names or the values of weights.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from graph.ir import Fused, Graph, Node, Specs
from kernels.spec import Array, Spec, dtype_name

_SPELLED_ELEMENTS = 16  # longer values are hashed
_Describe = Callable[[str], str]  # value name -> text
_TEXT_CHARACTERS = 8000  # of a node with hundreds of inputs, the rest is hashed


@dataclass(frozen=True)
class Signature:
    """Canonical text of one node's work; the database finds measurements by its `key`.

    op: the operators whose kernels do the work, "Conv+Relu" with a fused activation; `Build.kernel_source` takes it.
    """

    op: str
    text: str

    @cached_property
    def key(self) -> str:
        """SHA-256 of the text, in hex."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    def __str__(self) -> str:
        return self.text


def signature(node: Node, specs: Specs, constants: Mapping[str, Array]) -> Signature:
    """Return the signature of one node.

    Args: specs: of every value that the node reads and writes, None where it is known only at run time. constants: value name ->
          array, of the graph the node is in.
    """
    text = _node_text(node, lambda value: _value_text(value, specs, constants))
    if len(text) > _TEXT_CHARACTERS:
        text = f"{text[:_TEXT_CHARACTERS]}…#{hashlib.sha256(text.encode()).hexdigest()}"
    return Signature("+".join((node.op, *(fused.op for fused in node.epilogue))), text)


def _node_text(node: Node, describe: _Describe) -> str:
    inputs = ", ".join(describe(value) for value in node.inputs)
    outputs = ", ".join(describe(value) for value in node.outputs)
    epilogue = "".join(f" + {_fused_text(fused, describe)}" for fused in node.epilogue)
    return f"{node.op}({inputs}){_attrs_text(node.attrs)}{epilogue} -> {outputs}"


def _fused_text(fused: Fused, describe: _Describe) -> str:
    inputs = ", ".join(describe(value) if value else "." for value in fused.inputs)
    return f"{fused.op}({inputs}){_attrs_text(fused.attrs)}"


def _value_text(value: str, specs: Specs, constants: Mapping[str, Array]) -> str:
    if not value:
        return "-"
    spec = specs.get(value)
    constant = constants.get(value)
    if spec is None:
        spec = Spec.of(constant) if constant is not None else None
    if spec is None:
        return "?"
    if constant is None:
        return str(spec)
    if constant.dtype.kind in "iu" and constant.size <= _SPELLED_ELEMENTS:
        return f"{spec}={_array_text(constant)}"
    return f"{spec}:const"


def _attrs_text(attrs: Mapping[str, Any]) -> str:
    return "{" + ",".join(f"{name}={_attr_text(attrs[name])}" for name in sorted(attrs)) + "}" if attrs else ""


def _attr_text(value: Any) -> str:
    """Spell one attribute so that equal values have equal text on every machine."""
    if isinstance(value, Graph):
        return f"graph#{_digest(_graph_text(value))}"
    if isinstance(value, np.ndarray):
        if value.size <= _SPELLED_ELEMENTS:
            return f"{dtype_name(value.dtype)}{_array_text(value)}"
        raw = repr(value.tolist()).encode() if value.dtype == object else np.ascontiguousarray(value).tobytes()
        return f"{Spec(value.shape, value.dtype)}#{hashlib.sha256(raw).hexdigest()[:16]}"
    if isinstance(value, np.dtype):
        return dtype_name(value)
    if isinstance(value, np.generic):
        return repr(value.item())
    if isinstance(value, bool | int | float | str | bytes) or value is None:
        text = repr(value)
        return text if len(text) <= 128 else f"{type(value).__name__}#{_digest(text)}"
    if isinstance(value, list | tuple):
        text = "[" + ",".join(_attr_text(item) for item in value) + "]"
        return text if len(value) <= _SPELLED_ELEMENTS else f"list[{len(value)}]#{_digest(text)}"
    raise TypeError(f"signature: attribute of type {type(value).__name__} has no canonical text")


def _array_text(array: Array) -> str:
    return repr(array.tolist()).replace(" ", "")


def _graph_text(graph: Graph) -> str:
    """Spell a subgraph by its structure: values are numbered in the order they appear, so that names do not matter."""
    numbers: dict[str, int] = {}

    def describe(value: str) -> str:
        if not value:
            return "-"
        number = numbers.setdefault(value, len(numbers))
        constant = graph.constants.get(value)
        return f"%{number}" if constant is None else f"%{number}:{_attr_text(constant)}"

    ports = ",".join(f"{describe(p.name)}:{dtype_name(p.dtype)}{p.dims}" for p in graph.inputs)
    nodes = ";".join(_node_text(node, describe) for node in graph.nodes)
    return f"({ports}){{{nodes}}}({','.join(describe(p.name) for p in graph.outputs)})"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
