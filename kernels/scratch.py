"""How much memory a numpy kernel allocates by itself while it runs, as formulas that its `Kernel` names.

A formula is an upper bound for any shapes: (out: tuple[Spec, ...], *inputs: Spec | None, **attrs) -> bytes. Small things that do
not grow with the shapes are `FIXED_BYTES`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from kernels.half import is_half
from kernels.spec import Spec

Scratch = Callable[..., int]

FIXED_BYTES: Final = 1 << 19  # blocks, buffers of ufuncs and Python's own objects, of any kernel


def moved_bytes(*specs: Spec | None) -> int:
    """Return the bytes of these tensors in the precision in which kernels compute: half precisions are widened to float32."""
    return sum(spec.nbytes * (2 if is_half(spec.dtype) else 1) for spec in specs if spec is not None)


def times(factor: float) -> Scratch:
    """Return the formula of a kernel whose temporaries are that many times as large as its inputs and outputs together."""

    def scratch_bytes(out: tuple[Spec, ...], *inputs: Spec | None, **_: Any) -> int:
        return FIXED_BYTES + round(factor * moved_bytes(*out, *inputs))

    return scratch_bytes


def for_each(nbytes: int) -> Scratch:
    """Return the formula of a kernel that takes that many bytes for each element of its inputs and outputs, of any type."""

    def scratch_bytes(out: tuple[Spec, ...], *inputs: Spec | None, **_: Any) -> int:
        return FIXED_BYTES + nbytes * sum(spec.elements for spec in (*out, *inputs) if spec is not None)

    return scratch_bytes


def fixed(out: tuple[Spec, ...], *inputs: Spec | None, **_: Any) -> int:
    """The formula of a kernel that writes its results where they belong, or works through them in blocks."""
    return FIXED_BYTES


twice: Scratch = times(2)  # what most formulas of a few passes stay below
