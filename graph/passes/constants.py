"""Constant folding: nodes that read constants alone are computed once."""

from __future__ import annotations

from graph.ir import CONTROL_FLOW, Node
from graph.limits import Check, go_on
from graph.passes.editor import Editor, sizes
from kernels.errors import EdgewiseError
from kernels.registry import evaluate, evaluation_bytes, find
from kernels.spec import Array, SizeArray, Spec

SMALL_RESULT_BYTES = 1 << 20  # a result may be this large even when its inputs are smaller
_WEIGHTS = "DequantizeLinear"  # its result is weights, which native kernels pack once


def fold_constants(editor: Editor, limit_bytes: int, check: Check = go_on) -> None:
    """Replace nodes by their results. Random ops stay.

    Args:    limit_bytes: of all constants together. A node whose result would exceed it stays, and so does one whose result is
             larger than its inputs and than SMALL_RESULT_BYTES (to run an Expand of a scalar is cheaper than to read its result,
             but weights are dequantised), or takes much more memory to compute than it and they do. check: called between nodes;
             what it raises ends the work.
    """
    held_bytes = sizes(editor.graph.constants)
    for node in editor.graph.nodes:
        check()
        values = _values(editor, node, limit_bytes - held_bytes)
        if values is None:
            continue
        editor.drop(node)
        for value, array in values.items():
            editor.make_constant(value, array)
            held_bytes += array.nbytes


def _values(editor: Editor, node: Node, room_bytes: int) -> dict[str, Array] | None:
    """Compute the values that a node writes; None where they differ between runs or exceed the limit."""
    if node.epilogue:
        return None
    made = {value: editor.specs.get(value) for value in node.writes()}
    known = {value: spec.value for value, spec in made.items() if spec is not None and spec.value is not None}
    inputs = [editor.constant(value) if value else None for value in node.inputs]
    if len(known) < len(made):
        if node.op in CONTROL_FLOW or any(value and array is None for value, array in zip(node.inputs, inputs, strict=True)):
            return None
        if any(isinstance(array, SizeArray) for array in inputs):  # what follows from symbols is known, or for a run to compute
            return None
    specs = [spec for spec in made.values() if spec is not None]
    result_bytes = sum(spec.nbytes for spec in specs)
    if len(specs) < len(made) or result_bytes > room_bytes:
        return None
    if len(known) == len(made):
        return known
    input_bytes = sum(array.nbytes for array in inputs if array is not None)
    is_blown_up = result_bytes > max(SMALL_RESULT_BYTES, input_bytes) and node.op != _WEIGHTS
    if is_blown_up or not find(node.op).deterministic:
        return None
    try:
        specs_read = [None if array is None else Spec.of(array) for array in inputs]
        all_made = find(node.op).infer_specs(specs_read, node.attrs)
        if evaluation_bytes(find(node.op), specs_read, all_made, node.attrs) > _most_bytes(input_bytes + result_bytes):
            return None
        arrays = evaluate(find(node.op), inputs, node.attrs)
    except EdgewiseError as error:
        raise type(error)(f"{error} (node {node.name!r})") from None
    return {value: array for value, array in zip(node.outputs, arrays, strict=False) if value}


def _most_bytes(moved_bytes: int) -> int:
    """Return the most memory that computing a result may take. moved_bytes: of the result and of the inputs."""
    return 4 * moved_bytes + (64 << 20)
