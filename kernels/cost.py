"""The cost of one operator in arithmetic; bytes follow from the specs and are counted by the profiler."""

from __future__ import annotations

from dataclasses import dataclass

FLOPS_PER_MAC = 2  # one multiply–accumulate is one multiplication and one addition; said here and nowhere else


@dataclass(frozen=True, slots=True)
class Cost:
    """Arithmetic of one operator.

    macs: multiply–accumulates of conv, gemm, matmul, einsum, attention and recurrent ops.
    other_flops: one per scalar arithmetic operation that is no part of a MAC (bias, activation, norm, pooling, compare…).
    """

    macs: int = 0
    other_flops: int = 0

    @property
    def flops(self) -> int:
        """2·macs + other_flops."""
        return FLOPS_PER_MAC * self.macs + self.other_flops

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.macs + other.macs, self.other_flops + other.other_flops)
