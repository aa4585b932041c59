"""What a product's kernel is told of one problem when it is launched: sizes, strides and addresses, as one structure.

Kernels hold no size: one serves every problem of its form.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

from kernels.native.emit.builder import Function, Value
from kernels.native.emit.types import I32, I64

OPERANDS = 2  # matrices, beside the result, that an epilogue may read

_ADDRESSES = ("x", "w", "y", "bias", "partial", "counters", *(f"r{n}" for n in range(OPERANDS)))
_DIVISORS = ("tiles", "columns", "channels", "kernel_width", "out_width", "out_pixels")
_NUMBERS = (
    *("m", "n", "k", "x_stride", "w_stride", "y_stride", *(f"r{n}_stride" for n in range(OPERANDS))),
    *("chunks", "slices", "steps", "slice_steps"),
    *("height", "width", "stride_height", "stride_width", "pad_top", "pad_left", "dilation_height", "dilation_width"),
    *(f"{name}{part}" for name in _DIVISORS for part in ("", "_factor", "_shift")),
)


class Descriptor(ctypes.Structure):
    """The structure that a product's kernel takes.

    x, w, y, bias, r0, r1: addresses. partial, counters: where slices of one result meet.  m, n, k: rows, columns and depth of
    the product.  *_stride: elements from a row to the next, for a window from a pixel to the next.  chunks: tiles × slices.
    steps: of the depth, 128 bytes each; slice_steps: of a slice.  Each divisor comes with the numbers by which a kernel divides
    by it.
    """

    _fields_ = [(name, ctypes.c_uint64) for name in _ADDRESSES] + [(name, ctypes.c_uint32) for name in _NUMBERS]

    def set_divisor(self, name: str, divisor: int) -> None:
        """Set a divisor and the numbers by which a kernel divides by it: n / d = n · factor / 2^shift for n below 2^31.

        Source: Granlund and Montgomery, Division by Invariant Integers using Multiplication, PLDI 1994, theorem 4.2.
        """
        shift = 31 + (divisor - 1).bit_length()
        for part, value in (("", divisor), ("_factor", -(-(1 << shift) // divisor)), ("_shift", shift)):
            setattr(self, f"{name}{part}", value)


@dataclass(frozen=True, slots=True)
class Fields:
    """A descriptor in memory, as a kernel reads it. structure: its address."""

    k: Function
    structure: Value

    def address(self, name: str) -> Value:
        """Read an address."""
        return self.k.load(I64, self.structure, _ADDRESSES.index(name))

    def number(self, name: str) -> Value:
        """Read a number."""
        return self.k.load(I32, self.structure, 2 * len(_ADDRESSES) + _NUMBERS.index(name))

    def divide(self, dividend: Value, name: str) -> tuple[Value, Value]:
        """Return the quotient of a dividend from 0 to 2^31 - 1 by the divisor of that name, and what is left."""
        k = self.k
        factor, shift = (k.convert("zext", self.number(f"{name}_{part}"), I64) for part in ("factor", "shift"))
        product = k.op(f"mul {k.convert('zext', dividend, I64)}, {factor.ref}", I64, "scaled")
        quotient = k.convert("trunc", k.binary("lshr", product, shift), I32)
        return quotient, dividend - quotient * self.number(name)
