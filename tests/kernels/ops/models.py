"""Make one-node ONNX models from cases, and evaluate nodes of ONNX models by our operators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from kernels.containers import held_by, is_container, is_sequence
from kernels.registry import Op, evaluate, find
from kernels.spec import STRING, Array, DType

NEWEST_OPSET = onnx.defs.onnx_opset_version()


def one_node_model(
    name: str,
    inputs: Sequence[Array | None],
    outputs: int,
    attrs: Mapping[str, Any],
    domain: str = "",
    opset: int = NEWEST_OPSET,
) -> onnx.ModelProto:
    """Return a model of one node, with the inputs x0, x1, … and the outputs y0, y1, …"""
    names = ["" if array is None else f"x{i}" for i, array in enumerate(inputs)]
    node = helper.make_node(name, names, [f"y{i}" for i in range(outputs)], domain=domain)
    for key, value in attrs.items():
        given = numpy_helper.from_array(value) if isinstance(value, np.ndarray) else value
        given = type_proto(value) if isinstance(value, np.dtype) else given
        node.attribute.append(helper.make_attribute(key, given))
    ports = [
        helper.make_value_info(label, type_proto(array.dtype, array.shape))
        for label, array in zip(names, inputs, strict=True)
        if array is not None
    ]
    graph = helper.make_graph([node], "one", ports, [onnx.ValueInfoProto(name=output) for output in node.output])
    opsets = [helper.make_opsetid("", opset)] + [helper.make_opsetid(domain, 1)] * bool(domain)
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def type_proto(dtype: DType, shape: Sequence[int] | None = None) -> onnx.TypeProto:
    """Return the type of values of a dtype. shape: of tensors, not of those in a sequence or an optional."""
    if is_container(dtype):
        wrap = helper.make_sequence_type_proto if is_sequence(dtype) else helper.make_optional_type_proto
        return wrap(type_proto(held_by(dtype)))
    return helper.make_tensor_type_proto(_element_type(dtype), shape)


def _element_type(dtype: np.dtype[Any]) -> int:
    return onnx.TensorProto.STRING if dtype == STRING else helper.np_dtype_to_tensor_dtype(dtype)


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """Return a node's attributes in the types that our operators take: str, tuples, arrays."""
    return {attribute.name: _plain(helper.get_attribute_value(attribute)) for attribute in node.attribute}


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, onnx.TensorProto):
        return array_of(value)
    if isinstance(value, list | tuple):
        return tuple(map(_plain, value))
    return value


def plain(value: Any) -> Any:
    """Return a value as sessions take and return it: an array, a list of values, or None."""
    if value is None:
        return None
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, onnx.SequenceProto):
        return [plain(item) for item in numpy_helper.to_list(value)]
    if isinstance(value, onnx.OptionalProto):
        return plain(numpy_helper.to_optional(value))
    return array_of(value)


def array_of(value: Any) -> Array:
    """Return a TensorProto or array-like as an array, in which strings are objects of type str."""
    array = numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else np.asarray(value)
    if array.dtype.kind in "SUO":
        texts = [text.decode() if isinstance(text, bytes) else str(text) for text in array.ravel().tolist()]
        held = np.empty(array.shape, STRING)
        held.reshape(-1)[:] = texts
        return held
    return array


def evaluate_node(node: onnx.NodeProto, opset: int, inputs: Sequence[Array | None]) -> tuple[Array, ...]:
    """Evaluate a node of that opset by our operators and return its outputs."""
    op: Op = find(f"{node.domain}.{node.op_type}" if node.domain else node.op_type)
    attrs, given = attributes(node), list(inputs)
    if op.upgrade is not None:
        attrs, constants = op.upgrade(opset, attrs, len(node.output))
        for position, constant in constants.items():
            given += [None] * (position + 1 - len(given))
            given[position] = constant
    while given and given[-1] is None:
        given.pop()
    return evaluate(op, given, attrs)
