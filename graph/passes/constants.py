"""Constant folding: nodes that read constants alone are computed once."""

from __future__ import annotations

from collections.abc import Sequence

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
    is_open = node.op in CONTROL_FLOW or any(value and array is None for value, array in zip(node.inputs, inputs, strict=True))
    if len(known) < len(made) and is_open:
        return None
    specs = [spec for spec in made.values() if spec is not None]
    result_bytes = sum(spec.nbytes for spec in specs)
    if len(specs) < len(made) or result_bytes > room_bytes:
        return None
    if len(known) == len(made):
        return known
    return computed(node, inputs)


def computed(node: Node, inputs: Sequence[Array | None]) -> dict[str, Array] | None:
    """Compute the values that a node writes, from constants, None for an absent input.

    Returns: None where the op is random, where symbols are among the inputs (what follows from them is known, or for a run to
             compute), and where the result or what computing it takes is too large, as `fold_constants` says.
    Raises:  the errors of the op, with the name of the node.
    """
    op = find(node.op)
    if not op.deterministic or any(isinstance(array, SizeArray) for array in inputs):
        return None
    try:
        read = [None if array is None else Spec.of(array) for array in inputs]
        made = op.infer_specs(read, node.attrs)
        input_bytes = sum(spec.nbytes for spec in read if spec is not None)
        result_bytes = sum(spec.nbytes for value, spec in zip(node.outputs, made, strict=False) if value)
        if result_bytes > max(SMALL_RESULT_BYTES, input_bytes) and node.op != _WEIGHTS:
            return None
        if evaluation_bytes(op, read, made, node.attrs) > _most_bytes(input_bytes + result_bytes):
            return None
        arrays = evaluate(op, inputs, node.attrs)
    except EdgewiseError as error:
        raise type(error)(f"{error} (node {node.name!r})") from None
    return {value: array for value, array in zip(node.outputs, arrays, strict=False) if value}


def _most_bytes(moved_bytes: int) -> int:
    """Return the most memory that computing a result may take. moved_bytes: of the result and of the inputs."""
    return 4 * moved_bytes + (64 << 20)
