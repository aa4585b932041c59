"""Rules: each says which nodes of an op a family of native kernels computes, in which ways, and lowers them to calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from graph.choice import Choice
from graph.ir import Node
from graph.native.facts import Facts
from graph.native.lowering import Lowering
from graph.native.work import Layout, Work, streamed_work
from kernels.errors import UnsupportedError
from kernels.record import record

MAX_TILE = 32


@record
class Rule:
    """How a family of native kernels computes the nodes of one op.

    refuses: returns why a node has no native form, or None. lower: appends the calls of a node, as `Lowering.choice` says.
    candidates: returns the ways to compute a node that is not refused, the one to use unmeasured first. work: returns the work of
    one of them. view: the op only renames memory where strides can say so, and copies otherwise: no reason to run natively by
    itself. reserve: is called before any node of the segment is lowered, and says where the producers of a node's inputs write.
    holds: returns the float32 values that the kernels of a choice read and write where these lie as bfloat16, too. moves: all
    float32 values of a node have to lie in one type.
    """

    refuses: Callable[[Node, Facts], str | None]
    lower: Callable[[Lowering, Node], None]
    candidates: Callable[[Node, Facts], Sequence[Choice]]
    work: Callable[[Node, Facts, Choice], Work]
    view: bool = False
    reserve: Callable[[Lowering, Node], None] | None = None
    holds: Callable[[Node, Choice], Sequence[str]] | None = None
    moves: bool = False


def one_algorithm(
    algorithm: str,
    refuses: Callable[[Node, Facts], str | None],
    lower: Callable[[Lowering, Node], None],
    *,
    kind: str = "",
    wants: Layout = "any",
    view: bool = False,
    reserve: Callable[[Lowering, Node], None] | None = None,
    holds: Callable[[Node, Choice], Sequence[str]] | None = None,
    moves: bool = False,
) -> Rule:
    """Return the rule of a family that has one algorithm and no port model. kind: of its work, as the algorithm by default."""
    work = streamed(kind or algorithm, wants=wants)
    return Rule(refuses, lower, lambda _node, _facts: (Choice("native", algorithm),), work, view, reserve, holds, moves)


def all_values(node: Node, _choice: Choice) -> Sequence[str]:
    """Return all that a node reads and writes: what it `holds` where its kernels take every value as it lies."""
    return (*node.reads(), *node.writes())


def unfused_values(node: Node, choice: Choice) -> Sequence[str]:
    """Return all that a node reads and writes, if nothing is fused behind it."""
    return () if node.epilogue else all_values(node, choice)


def streamed(kind: str, *, wants: Layout = "any") -> Callable[[Node, Facts, Choice], Work]:
    """Return the `Rule.work` of a family that has no port model: arithmetic of the op and its epilogue, and bytes moved."""
    return lambda node, facts, _choice: streamed_work(kind, node, facts, wants=wants)


def parse_tile(text: str) -> tuple[int, int]:
    """Return the pixels and vectors of a tile like "6x4". Raises UnsupportedError where the text is not such a tile."""
    pixels, _, vectors = text.partition("x")
    if not (pixels.isdecimal() and vectors.isdecimal() and 1 <= int(pixels) <= MAX_TILE and 1 <= int(vectors) <= MAX_TILE):
        raise UnsupportedError(f"tile: {text[:20]!r}, need pixels x vectors like 6x4, each 1 to {MAX_TILE}")
    return int(pixels), int(vectors)
