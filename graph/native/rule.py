"""What a rule is: which nodes a family takes, and how it lowers them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from graph.choice import Choice
from graph.ir import Node, Specs
from graph.native.epilogues import Merged, find_steps
from graph.native.work import Layout, Work, streamed
from kernels.errors import UnsupportedError
from kernels.native.errors import EmitError
from kernels.native.target.isa import Isa
from kernels.spec import BOOL, INTS, Array, DType, Spec

if TYPE_CHECKING:
    from graph.native.lowering import Lowering

F32, F64 = np.dtype(np.float32), np.dtype(np.float64)
VALUES: frozenset[DType] = INTS | {BOOL, F32, F64}  # what a segment holds
MAX_TILE = 32


@dataclass(frozen=True, slots=True)
class Facts:
    """What decides whether a node has a native form, and which is best: never what surrounds it.

    threads: that will share the work.
    """

    specs: Specs
    constants: Mapping[str, Array]
    isa: Isa
    threads: int = 1

    def spec(self, value: str) -> Spec:
        """What a value is; only static nodes are asked about."""
        return known(self.specs, value)

    def not_f32(self, *values: str) -> str | None:
        """That one of the values is not fp32, or None. Absent ones are passed over."""
        found = next((value for value in values if value and self.spec(value).dtype != F32), None)
        return None if found is None else f"{found!r} is {self.spec(found)}, need fp32"

    def refuses_epilogue(self, node: Node) -> str | None:
        """Why a kernel cannot do what is fused behind the node, or None."""
        if (steps := find_steps(node, self.constants)) is None:
            return f"its epilogue {'+'.join(fused.op for fused in node.epilogue)} has an op without a native form"
        for step in steps:
            if isinstance(step, Merged) and (reason := self.not_f32(step.value)):
                return f"its epilogue reads what is not fp32: {reason}"
        return None


@dataclass(frozen=True, slots=True)
class Rule:
    """A family's say on one op.

    refuses: why a node has no native form, or None. lower: append its calls, as `Lowering.choice` says. candidates: the ways to
    compute a node that is not refused, the one to use unmeasured first. view: it is but another name for memory where strides can
    say so, and moves bytes elsewhere: no reason to run natively by itself. work: what a candidate does.
    """

    refuses: Callable[[Node, Facts], str | None]
    lower: Callable[[Lowering, Node], None]
    candidates: Callable[[Node, Facts], Sequence[Choice]]
    work: Callable[[Node, Facts, Choice], Work]
    view: bool = False


def only(algorithm: str) -> Callable[[Node, Facts], Sequence[Choice]]:
    """The candidates of a family that has one algorithm."""
    return lambda _node, _facts: (Choice("native", algorithm),)


def parse_tile(text: str) -> tuple[int, int]:
    """ "6x4" as pixels and vectors. Raises UnsupportedError."""
    pixels, _, vectors = text.partition("x")
    if not (pixels.isdecimal() and vectors.isdecimal() and 1 <= int(pixels) <= MAX_TILE and 1 <= int(vectors) <= MAX_TILE):
        raise UnsupportedError(f"tile: {text[:20]!r}, need pixels x vectors like 6x4, each 1 to {MAX_TILE}")
    return int(pixels), int(vectors)


def plain(kind: str, *, wants: Layout = "any") -> Callable[[Node, Facts, Choice], Work]:
    """The work of a family that has no port model."""
    return lambda node, facts, _choice: streamed(kind, node, facts.specs, facts.constants, wants=wants)


def known(specs: Specs, value: str) -> Spec:
    """The spec of a value of a static node. Raises EmitError when only a run decides it: such a node is refused before."""
    spec = specs.get(value)
    if spec is None:
        raise EmitError(f"value {value!r}: its shape is only known at run time")
    return spec
