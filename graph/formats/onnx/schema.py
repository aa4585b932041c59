"""Checks of a node against ONNX's definition of its operator: its name, and the types of its attributes."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from graph.errors import CorruptModelError
from graph.formats.onnx.attributes import attribute_kinds
from graph.formats.onnx.messages import AttributeProto
from kernels.registry import Op

if TYPE_CHECKING:
    from onnx import NodeProto

KINDS: Mapping[int, str] = {number: name for name, number in AttributeProto.AttributeType.items()}  # names of AttributeTypes


def is_standard(node: NodeProto) -> bool:
    """Whether the operator belongs to ONNX's own domain."""
    return node.domain in ("", "ai.onnx")


def op_name(node: NodeProto) -> str:
    """Return the name of the operator in `kernels.registry`."""
    return node.op_type if is_standard(node) else f"{node.domain}.{node.op_type}"


def walk(nodes: Iterable[NodeProto]) -> Iterator[NodeProto]:
    """Nodes, and those of the graphs among their attributes."""
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        yield node
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                waiting.extend(attribute.g.node)
            for graph in attribute.graphs:
                waiting.extend(graph.node)


def check_kinds(proto: NodeProto, op: str, node: str) -> None:
    """Raise CorruptModelError on an attribute that occurs twice or has another type than ONNX defines.

    Attributes that ONNX does not define are refused later, by `Op.bind`.
    """
    kinds = _kind_numbers(proto.op_type) if is_standard(proto) else {}
    seen: set[str] = set()
    for attribute in proto.attribute:
        wanted = kinds.get(attribute.name, attribute.type)
        if attribute.name in seen:
            raise CorruptModelError(f"{op}: attribute {attribute.name!r} is given twice (node {node!r})")
        if attribute.type != wanted:
            found, need = (_kind_name(number) for number in (attribute.type, wanted))
            raise CorruptModelError(f"{op}: attribute {attribute.name!r} is {found}, need {need} (node {node!r})")
        seen.add(attribute.name)


@functools.cache
def _kind_numbers(op: str) -> Mapping[str, int]:
    """Attribute name -> AttributeProto.AttributeType; empty for an operator that ONNX does not have."""
    return {name: AttributeProto.AttributeType.Value(kind) for name, kind in attribute_kinds(op).items()}


def _kind_name(number: int) -> str:
    return KINDS.get(number, f"of kind {number}")


def check_types(op: Op, bound: Mapping[str, Any], node: str) -> None:
    """Raise CorruptModelError where a value has another type than the default, before it causes a TypeError inside an op."""
    for name, default in op.defaults.items():
        value = bound[name]
        if default is None or value is None or not isinstance(default, (int, float, str, tuple)):
            continue
        wanted = (int, float) if isinstance(default, float) else (int,) if isinstance(default, bool) else (type(default),)
        if not isinstance(value, wanted):
            raise CorruptModelError(
                f"{op.name}: attribute {name!r} is a {type(value).__name__}, need {wanted[0].__name__} (node {node!r})"
            )
