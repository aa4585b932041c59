"""Rules by which ops keep the rows of a batch apart: the terms they are written in, and the rules that many ops share.

A batch puts the requests of several clients along axis 0 of every input; the part of one request is a row. An op keeps rows
apart where row i of its output depends on row i of its inputs and on no other row. An op states this as a `RowRule` in its
field `Op.mixes_rows`; `graph.batching` applies the rules node by node to prove it of a whole graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum, auto
from typing import Any

from kernels.record import record
from kernels.spec import Spec


class Content(Enum):
    """How the value of a tensor depends on the batch."""

    FREE = auto()  # not at all: the same for every batch of every size
    SIZE = auto()  # on the number of rows alone: shape arithmetic
    ROWS = auto()  # axis 0 is the batch, and row i comes from row i of the graph's inputs


@record
class Operand:
    """One input of a node in a graph that runs on a batch.

    name: of the value, for messages. spec: at one batch size; None where only run-time values decide the shape.
    """

    name: str
    content: Content
    spec: Spec | None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape at one batch size; () where it is not known."""
        return () if self.spec is None else self.spec.shape

    @property
    def is_rows(self) -> bool:
        """Whether axis 0 is the batch."""
        return self.content is Content.ROWS

    @property
    def is_free(self) -> bool:
        """Whether the value is the same for every batch."""
        return self.content is Content.FREE

    def integers(self) -> list[int] | None:
        """The elements as integers; None where they are unknown or depend on the batch."""
        if self.spec is None or self.spec.value is None or not self.is_free:
            return None
        return [int(item) for item in self.spec.value.ravel()]


@record
class Application:
    """An op applied to a batch: what a `RowRule` decides from.

    inputs: by position, None where an optional input is absent. attrs: bound attributes. rank: of output 0.
    further_outputs: whether any output but output 0 is read.
    """

    inputs: tuple[Operand | None, ...]
    attrs: Mapping[str, Any]
    rank: int
    further_outputs: bool

    def input(self, position: int) -> Operand | None:
        """The input at a position; None where it is absent or the node has fewer inputs."""
        return self.inputs[position] if position < len(self.inputs) else None

    def axes(self, position: int) -> list[int] | None:
        """The axes of input 0 that an input lists, counted from the front: [] where it is absent, None where it is not known."""
        operand, first = self.input(position), self.input(0)
        if operand is None or first is None:
            return []
        found = operand.integers()
        return None if found is None else [axis % max(len(first.shape), 1) for axis in found]


# "" where rows stay apart, else the reason why they may not. Called only where at least one input depends on the batch. The
# caller checks that axis 0 of the output is the batch and that no other axis varies with its size.
RowRule = Callable[[Application], str]


def first_input_has_rows(call: Application) -> str:
    """For ops that leave axis 0 as it is, so that row i of output 0 comes from row i of input 0."""
    first = call.input(0)
    return "" if first is not None and first.is_rows else "its input 0 holds no rows"


def only_first_input_has_rows(call: Application) -> str:
    """For ops that treat each row of input 0 alike. Further outputs of pools and normalizations count across the batch."""
    if reason := first_input_has_rows(call):
        return reason
    if call.further_outputs:
        return "its further outputs may depend on the whole batch"
    late = [operand for operand in call.inputs[1:] if operand is not None and not operand.is_free]
    return f"{late[0].name!r} depends on the batch" if late else ""


def broadcast_keeps_rows(call: Application) -> str:
    """For elementwise ops: rows must meet rows, and an input that is free of the batch must meet all rows alike."""
    for operand in call.inputs:
        if operand is None:
            continue
        if operand.content is Content.SIZE:
            return f"{operand.name!r} depends on the batch's size"
        if operand.is_rows and len(operand.shape) != call.rank:
            return f"{operand.name!r} is broadcast across axis 0"
        if operand.is_free and len(operand.shape) == call.rank and operand.shape[0] != 1:
            return f"{operand.name!r} differs from row to row"
    return ""


def works_along_axis(call: Application) -> str:
    """For ops that work along one axis, given by their attribute `axis`."""
    first, *others = call.inputs
    if first is None or not first.is_rows or any(not operand.is_free for operand in others if operand is not None):
        return "another input than the first depends on the batch"
    return "it works along axis 0" if call.attrs["axis"] % len(first.shape) == 0 else ""
