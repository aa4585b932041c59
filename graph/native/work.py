"""The work of a candidate, estimated by its rule from shapes and port models: a cost model predicts its time from it."""

from __future__ import annotations

import math
from typing import Literal

from graph.ir import Node, Specs
from graph.native.facts import Facts
from kernels.cost import FLOPS_PER_MAC
from kernels.precision import Precision
from kernels.record import record
from kernels.registry import find

Layout = Literal["any", "blocks", "rows"]


@record
class Work:
    """The work of one candidate on one node, from which a cost model predicts its time.

    kind: class of kernels with the same cost behaviour. flops: peak FLOPs of a core in the cycles that the kernel's port model
    estimates, tails of tiles and vectors included; without such a model those of the op. macs: multiplied by the algorithm, None
    for those of the op's definition. read_bytes, write_bytes: of activations. weight_bytes: of constants as they are packed.
    buffer_bytes: of buffers between the phases of one node, written and read again. chunks: pieces of work that threads share.
    calls: kernel calls, one after another. tile: its sizes. wants: layout of the first input, which is converted from any other.
    error: that the algorithm adds to rounding, relative to the largest output. precision: of the factors of its products.
    """

    kind: str
    flops: float
    macs: int | None = None
    read_bytes: int = 0
    write_bytes: int = 0
    weight_bytes: int = 0
    buffer_bytes: int = 0
    chunks: int = 1
    calls: int = 1
    tile: tuple[int, ...] = ()
    wants: Layout = "any"
    error: float = 0.0
    precision: Precision = "fp32"

    @property
    def family(self) -> str:
        """What has one cost behaviour: a kind in a precision."""
        return self.kind if self.precision == "fp32" else f"{self.kind} {self.precision}"


def moved_bytes(node: Node, facts: Facts) -> tuple[int, int]:
    """Return the bytes of activations that a node reads and writes, each counted once."""
    read, written = dict.fromkeys(node.reads()), dict.fromkeys(node.writes())
    return _nbytes([name for name in read if name not in facts.constants], facts.specs), _nbytes(list(written), facts.specs)


def streamed_work(kind: str, node: Node, facts: Facts, *, wants: Layout = "any") -> Work:
    """Return the work of a kernel without a port model: the arithmetic of the op and of its epilogue, and the bytes moved."""
    inputs = [facts.specs.get(name) if name else None for name in node.inputs]
    op = find(node.op)
    cost = op.count(inputs, op.infer_specs(inputs, node.attrs), node.attrs)
    read, written = moved_bytes(node, facts)
    spec = facts.specs.get(node.outputs[0])
    fused = len(node.epilogue) * (spec.elements if spec is not None else 0)
    flops = fused + (0 if cost is None else FLOPS_PER_MAC * cost.macs + cost.other_flops)
    weights = _nbytes([name for name in dict.fromkeys(node.reads()) if name in facts.constants], facts.specs)
    return Work(kind, float(flops), None, read, written, weights, wants=wants)


def packed_bytes(outputs: int, taps: int, lanes: int, groups: int = 1) -> int:
    """Return the bytes of packed fp32 weights, the outputs of each group padded to whole vectors. taps: weights of an output."""
    return 4 * groups * math.ceil(outputs / lanes) * lanes * taps


def _nbytes(names: list[str], specs: Specs) -> int:
    return sum(spec.nbytes for name in names if (spec := specs.get(name)) is not None)
