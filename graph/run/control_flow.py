"""If, Loop, Scan and SequenceMap on arrays, given a function that runs a body.

Both the executor, which prepares bodies as graphs of their own, and the tests' interpreter call `run_control_flow`. Every array
it returns is new or comes from a body. It never returns an input of the node, whose memory the caller may reuse.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from graph.errors import CorruptModelError, LimitError
from graph.ir import BATCHED, Graph, Node, Port
from graph.run.bounds import RunBounds
from graph.shapes import MAX_VALUE_BYTES
from kernels.containers import contained, is_sequence, items, sequence_of
from kernels.errors import AttributeValueError, ShapeError
from kernels.spec import STRING, Array, Spec

RunBody = Callable[[Graph, Sequence[Array]], list[Array]]  # a body and its inputs in order -> its outputs in order


def run_control_flow(node: Node, inputs: Sequence[Array | None], run_body: RunBody, bounds: RunBounds) -> tuple[Array, ...]:
    """Run an If, Loop or Scan node. bounds: of the run that it is part of; its bodies are to use the same.

    Raises: ShapeError, AttributeValueError where the inputs do not fit the body; LimitError for more rounds or bytes than the
            bounds allow, or an output that grows past MAX_VALUE_BYTES; RunStoppedError where the bounds end the run.
    """

    def checked(body: Graph, arguments: Sequence[Array]) -> list[Array]:
        if len(arguments) != len(body.inputs):
            raise ShapeError(f"{node.op}: {len(arguments)} values for its body {body.name!r}, which takes {len(body.inputs)}")
        return run_body(body, arguments)

    if node.op == "If":
        return tuple(_if(node, inputs, checked))
    return tuple({"Loop": _loop, "Scan": _scan, "SequenceMap": _map}[node.op](node, inputs, checked, bounds))


def _if(node: Node, inputs: Sequence[Array | None], run_body: RunBody) -> list[Array]:
    taken = "then_branch" if _scalar(inputs[0], "If: condition") else "else_branch"
    return run_body(_body(node, taken), ())


def _loop(node: Node, inputs: Sequence[Array | None], run_body: RunBody, bounds: RunBounds) -> Iterator[Array]:
    """Return the carried values, then the stacked outputs. Ends at the trip count or when the condition turns false."""
    body = _body(node, "body")
    trips, condition, *initial = [*inputs, None, None][: max(2, len(inputs))]
    limit = None if trips is None else int(_scalar(trips, "Loop: trip count"))
    going = condition is None or bool(_scalar(condition, "Loop: condition"))
    carried = _present(initial, node)
    stacks = [_Stack(port) for port in body.outputs[1 + len(carried) :]]
    if len(body.outputs) < 1 + len(carried):
        raise ShapeError(f"Loop: its body has {len(body.outputs)} outputs, need a condition and {len(carried)} carried values")

    trip = 0
    while going and (limit is None or trip < limit):
        bounds.start_round(node.op)
        again, *made = run_body(body, [np.array(trip, np.int64), np.array(going), *carried])
        going, carried = bool(_scalar(again, "Loop: condition of its body")), made[: len(carried)]
        for stack, array in zip(stacks, made[len(carried) :], strict=True):
            stack.add(array)
        trip += 1
    yield from carried if trip else (array.copy() for array in carried)
    yield from (stack.joined(0, bounds) for stack in stacks)


def _scan(node: Node, inputs: Sequence[Array | None], run_body: RunBody, bounds: RunBounds) -> Iterator[Array]:
    """Return the states, then the outputs stacked along the axes and in the directions of the attributes (opset 9 and newer)."""
    if node.attrs.get(BATCHED):
        yield from _scan_batch(node, inputs, run_body, bounds)
        return
    body, scanned = _body(node, "body"), int(node.attrs.get("num_scan_inputs", 0))
    arrays = _present(inputs, node)
    if not 0 < scanned <= len(arrays):
        raise AttributeValueError(f"Scan: num_scan_inputs is {scanned}, need 1…{len(arrays)}")
    states, sequences = arrays[:-scanned], arrays[-scanned:]
    if len(body.outputs) < len(states):
        raise ShapeError(f"Scan: its body has {len(body.outputs)} outputs, need {len(states)} states")
    stacks = [_Stack(port) for port in body.outputs[len(states) :]]
    axes = _per_item(node, "scan_input_axes", scanned)
    backward = _per_item(node, "scan_input_directions", scanned)
    out_axes = _per_item(node, "scan_output_axes", len(stacks))
    out_backward = _per_item(node, "scan_output_directions", len(stacks))

    for sequence, axis in zip(sequences, axes, strict=True):
        if not -sequence.ndim <= axis < sequence.ndim:
            raise ShapeError(f"Scan: axis {axis} of a sequence with shape {sequence.shape}, need one of its axes")
    lengths = {sequence.shape[axis] for sequence, axis in zip(sequences, axes, strict=True)}
    if len(lengths) != 1:
        raise ShapeError(f"Scan: its sequences have lengths {sorted(lengths)}, need one length")
    (length,) = lengths

    for i in range(length):
        bounds.start_round(node.op)
        slices = [
            np.take(sequence, [length - 1 - i if back else i], axis).squeeze(axis)  # an array of strings too, not a string
            for sequence, axis, back in zip(sequences, axes, backward, strict=True)
        ]
        made = run_body(body, [*states, *slices])
        states = made[: len(states)]
        for stack, array in zip(stacks, made[len(states) :], strict=True):
            stack.add(array)
    yield from states if length else (array.copy() for array in states)
    for stack, axis, back in zip(stacks, out_axes, out_backward, strict=True):
        yield stack.joined(axis, bounds, backward=bool(back))


def _map(node: Node, inputs: Sequence[Array | None], run_body: RunBody, bounds: RunBounds) -> Iterator[Array]:
    """Run the body on the tensors of each position of the sequences; other inputs are the same in every round."""
    body, (first, *others) = _body(node, "body"), _present(inputs, node)
    if not is_sequence(first.dtype):
        raise ShapeError(f"SequenceMap: input 0 is {Spec.of(first)}, need a sequence")
    held = [items(each) if is_sequence(each.dtype) else [each] * len(first) for each in (first, *others)]
    if any(len(each) != len(first) for each in held):
        raise ShapeError(f"SequenceMap: sequences of {sorted({len(each) for each in held})} tensors, need one length")
    results: list[list[Array]] = [[] for _ in body.outputs]
    for arguments in zip(*held, strict=True):
        bounds.start_round(node.op)
        for found, array in zip(results, run_body(body, arguments), strict=True):
            found.append(array)
    for port, found in zip(body.outputs, results, strict=True):
        dtype = found[0].dtype if found else port.dtype
        yield bounds.hold(contained(sequence_of(dtype), found))


def _scan_batch(node: Node, inputs: Sequence[Array | None], run_body: RunBody, bounds: RunBounds) -> Iterator[Array]:
    """Scan every row of a batch by itself, as before opset 9. Outputs of shorter sequences are filled up with zeros."""
    lengths, *arrays = inputs
    given = _present(arrays, node)
    rows = {len(array) if array.ndim else 0 for array in given}
    scanned = int(node.attrs.get("num_scan_inputs", 0))
    longest = max((array.shape[1] if array.ndim > 1 else 0 for array in given[-scanned:]), default=0)
    if len(rows) != 1 or not 0 < scanned <= len(given) or any(array.ndim < 2 for array in given[-scanned:]):
        raise ShapeError(
            f"Scan: inputs of {sorted(rows)} rows, {scanned} of {len(given)} are scanned, need one batch of sequences"
        )
    (batch,) = rows
    ends = [longest] * batch if lengths is None else [int(end) for end in lengths.ravel()]
    if len(ends) != batch or not batch or not all(0 <= end <= longest for end in ends):
        raise ShapeError(f"Scan: sequence lengths are {ends[:8]}, need {batch} of 0…{longest}, at least one")
    each = replace(node, attrs={name: value for name, value in node.attrs.items() if name != BATCHED})
    made = []
    for row, end in enumerate(ends):
        states, sequences = given[:-scanned], given[-scanned:]
        taken = [*(state[row] for state in states), *(sequence[row, :end] for sequence in sequences)]
        made.append(list(_scan(each, taken, run_body, bounds)))
    for index, first in enumerate(made[0]):
        is_state = index < len(given) - scanned
        shape = first.shape if is_state else (longest, *first.shape[1:])
        stacked = bounds.empty(Spec((batch, *shape), first.dtype), node.op)
        stacked[...] = "" if stacked.dtype == STRING else 0
        for row, end in enumerate(ends):
            place = stacked[row, ... if is_state else slice(end)]
            if place.shape != made[row][index].shape:
                raise ShapeError(f"Scan: row {row} makes {made[row][index].shape}, need {place.shape} as row 0")
            place[...] = made[row][index]
        yield stacked


class _Stack:
    """Collects one output of a body over all iterations."""

    def __init__(self, port: Port) -> None:
        self.port = port
        self.arrays: list[Array] = []
        self.nbytes = 0

    def add(self, array: Array) -> None:
        """Append one iteration's array. Raises ShapeError where it differs from the first, LimitError past MAX_VALUE_BYTES."""
        if self.arrays and (array.shape, array.dtype) != (self.arrays[0].shape, self.arrays[0].dtype):
            need = f"need {self.arrays[0].shape} as in iteration 0"
            raise ShapeError(f"{self.port.name}: shape {array.shape} in iteration {len(self.arrays)}, {need}")
        self.nbytes += array.nbytes
        if self.nbytes > MAX_VALUE_BYTES:
            raise LimitError(
                f"{self.port.name}: {self.nbytes} bytes after {len(self.arrays)} iterations, the limit is {MAX_VALUE_BYTES}"
            )
        self.arrays.append(array)

    def joined(self, axis: int, bounds: RunBounds, *, backward: bool = False) -> Array:
        """Stack all iterations along a new axis. With no iteration, the shape is the declared one, 0 for each open dimension.

        Raises: ShapeError for an axis that the result does not have; LimitError where the bounds do not allow its memory.
        """
        arrays = self.arrays[::-1] if backward else self.arrays
        if not arrays:
            dims = [dim if isinstance(dim, int) else 0 for dim in self.port.dims or ()]
            dims.insert(axis + len(dims) + 1 if axis < 0 else axis, 0)
            return np.empty(dims, self.port.dtype)
        if not -arrays[0].ndim - 1 <= axis <= arrays[0].ndim:
            raise ShapeError(f"{self.port.name}: stacked along axis {axis}, it has {arrays[0].ndim + 1} axes then")
        shape = list(arrays[0].shape)
        shape.insert(axis + len(shape) + 1 if axis < 0 else axis, len(arrays))
        return np.stack(arrays, axis, out=bounds.empty(Spec(tuple(shape), arrays[0].dtype), self.port.name))


def _body(node: Node, name: str) -> Graph:
    body = node.attrs.get(name)
    if not isinstance(body, Graph):
        raise CorruptModelError(f"{node.op}: attribute {name!r} is missing, need a graph")
    return body


def _scalar(array: Array | None, subject: str) -> Any:
    if array is None or array.size != 1:
        raise ShapeError(f"{subject} has shape {None if array is None else array.shape}, need one element")
    return array.item()


def _present(arrays: Sequence[Array | None], node: Node) -> list[Array]:
    present = [array for array in arrays if array is not None]
    if len(present) != len(arrays):
        raise ShapeError(f"{node.op}: an input is left out, need every value its body takes")
    return present


def _per_item(node: Node, name: str, count: int) -> tuple[int, ...]:
    """Return an attribute that holds one integer per input or output; zeros where it is absent."""
    values = tuple(node.attrs.get(name) or (0,) * count)
    if len(values) != count:
        raise AttributeValueError(f"{node.op}: {name} has {len(values)} values, need {count}")
    return values
