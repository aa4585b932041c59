"""The facts that decide whether a node can run on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np

from graph.ir import Node, Specs
from graph.native.expressions import BoundExpression, Sources, express_epilogue
from graph.native.facts import known
from kernels.native.errors import EmitError
from kernels.record import record
from kernels.spec import Array, Spec

F32 = np.dtype(np.float32)
MAX_OPERANDS = 6  # arrays that a map reads


@record
class Facts:
    """The values of a graph. specs, constants: of the whole graph."""

    specs: Specs
    constants: Mapping[str, Array]

    def spec(self, value: str) -> Spec:
        """Return the shape and dtype of a value. Raises EmitError where only a run decides them."""
        return known(self.specs, value)

    @property
    def sources(self) -> Sources:
        """What the operands of expressions are."""
        return Sources(self.spec, self.constants)

    def not_f32(self, *values: str) -> str | None:
        """Return which of the values is not fp32, as a reason, or None. Absent values ("") are skipped."""
        found = next((value for value in values if value and self.spec(value).dtype != F32), None)
        return None if found is None else f"{found!r} is {self.spec(found)}, need fp32"

    def computed(self, values: Iterable[str]) -> bool:
        """Whether one of the values is not a constant. Absent values ("") are skipped."""
        return any(value and value not in self.constants for value in values)

    def refuses_epilogue(self, node: Node) -> str | None:
        """Return why what is fused behind a node cannot run on a GPU, or None."""
        return refuses_expression(lambda: express_epilogue(node, self.sources), "its epilogue") if node.epilogue else None


def refuses_expression(express: Callable[[], BoundExpression], subject: str) -> str | None:
    """Return why a kernel cannot compute an expression, or None. subject: reads its operands, for the message."""
    try:
        count = len(express().operands)
    except EmitError as error:
        return str(error)
    return None if count <= MAX_OPERANDS else f"{subject} reads {count} arrays, kernels read {MAX_OPERANDS}"
