"""A rule: which nodes of an op run on a GPU, and how they are lowered to launches."""

from __future__ import annotations

from collections.abc import Callable

from graph.cuda.facts import Facts
from graph.cuda.lowering import Lowering
from graph.ir import Node
from kernels.record import record


@record
class Rule:
    """How a GPU computes the nodes of one op.

    refuses: returns why a node cannot run there, or None. lower: appends the launches of a node. view: whether the op only
    renames memory where strides can say so: no reason to run there by itself. reserve: is called before any node of the segment
    is lowered, and says where the producers of a node's inputs write.
    """

    refuses: Callable[[Node, Facts], str | None]
    lower: Callable[[Lowering, Node], None]
    view: bool = False
    reserve: Callable[[Lowering, Node], None] | None = None
