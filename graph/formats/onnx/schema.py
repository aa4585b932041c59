"""What a node may say: the name of its operator, and attributes of the kinds that ONNX's schema and the op give them."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import onnx
from onnx import AttributeProto, NodeProto

from graph.errors import CorruptModelError
from kernels.registry import Op


def is_standard(node: NodeProto) -> bool:
    """Whether a node's operator is of ONNX's own domain."""
    return node.domain in ("", "ai.onnx")


def op_name(node: NodeProto) -> str:
    """The name of a node's operator in `kernels.registry`."""
    return node.op_type if is_standard(node) else f"{node.domain}.{node.op_type}"


def check_kinds(proto: NodeProto, op: str, opset: int, node: str) -> None:
    """Each attribute once, and of the kind that ONNX's schema gives it. Unknown ones are refused when they are bound."""
    kinds = _kinds_in_schema(proto.op_type, opset) if is_standard(proto) else {}
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
def _kinds_in_schema(op: str, opset: int) -> Mapping[str, int]:
    """Attribute name -> AttributeProto.AttributeType, as that opset defines the op; empty for an op it lacks."""
    if not onnx.defs.has(op):
        return {}
    try:
        schema = onnx.defs.get_schema(op, opset)
    except onnx.defs.SchemaError:
        return {}
    return {
        name: AttributeProto.AttributeType.Value(str(attribute.type).rpartition(".")[2])
        for name, attribute in schema.attributes.items()
    }


def _kind_name(number: int) -> str:
    return AttributeProto.AttributeType.Name(number) if number in AttributeProto.AttributeType.values() else f"of kind {number}"


def check_types(op: Op, bound: Mapping[str, Any], node: str) -> None:
    """A value of another kind than its default's would surface as a TypeError deep inside an op."""
    for name, default in op.defaults.items():
        value = bound[name]
        if default is None or value is None or not isinstance(default, (int, float, str, tuple)):
            continue
        wanted = (int, float) if isinstance(default, float) else (int,) if isinstance(default, bool) else (type(default),)
        if not isinstance(value, wanted):
            raise CorruptModelError(
                f"{op.name}: attribute {name!r} is a {type(value).__name__}, need {wanted[0].__name__} (node {node!r})"
            )
