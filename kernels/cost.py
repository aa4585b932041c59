"""The cost of one operator in arithmetic, and the formulas of plain families. The profiler counts bytes, from the specs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kernels.record import record
from kernels.spec import Spec

FLOPS_PER_MAC = 2  # one multiply–accumulate is one multiplication and one addition; the only definition


@record
class Cost:
    """Arithmetic of one operator.

    macs: multiply–accumulates of conv, gemm, matmul, einsum, attention and recurrent ops.
    other_flops: one per scalar arithmetic operation that is not part of a MAC (bias, activation, norm, pooling, compare…).
    """

    macs: int = 0
    other_flops: int = 0

    @property
    def flops(self) -> int:
        """2·macs + other_flops."""
        return FLOPS_PER_MAC * self.macs + self.other_flops

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.macs + other.macs, self.other_flops + other.other_flops)


def moves(out: tuple[Spec, ...], *inputs: Spec | None, **attrs: Any) -> Cost:
    """0: it moves data and computes nothing."""
    return Cost()


def per_element(flops: int, formula: str) -> Callable[..., Cost]:
    """Return a cost function: `flops` per element of output 0. formula: names them, for the docstring."""

    def cost(out: tuple[Spec, ...], *inputs: Spec | None, **attrs: Any) -> Cost:
        return Cost(other_flops=flops * out[0].elements)

    cost.__doc__ = f"{flops} per element: {formula}."
    return cost
