"""What a rule is: which nodes a family takes, and how it lowers them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from graph.choice import Choice
from graph.ir import Node
from graph.native.facts import Facts
from graph.native.lowering import Lowering
from graph.native.work import Layout, Work, streamed
from kernels.errors import UnsupportedError

MAX_TILE = 32


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
