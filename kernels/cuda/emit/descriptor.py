"""What a kernel is told of one problem when it is launched: sizes, strides and addresses, as one structure.

Kernels hold no size: one serves every problem of its form. Each family of kernels has a structure of its own, a class derived
from `Descriptor` whose fields `listed` makes.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field
from types import MappingProxyType

from kernels.cuda.errors import CudaError
from kernels.native.emit.builder import Function, Value
from kernels.native.emit.types import F32, I32, I64
from kernels.record import record

OPERANDS = 2  # arrays, beside the result, that an epilogue may read
OTHERS = tuple(f"r{n}" for n in range(OPERANDS))  # their names; "r0_stride" is the number of elements between two rows
AHEAD, AHEAD_LINES, LINE_BYTES = "ahead", "ahead_lines", 128
LIMIT = 1 << 31  # kernels count elements, rows and chunks in 32 bits, and divide numbers below this


def check_sizes(subject: str, sizes: Mapping[str, int]) -> None:
    """Raise CudaError, naming the subject and the array, unless all have 1 element or more and as few as kernels can count.

    sizes: elements of each array, gaps included.
    """
    for name, size in sizes.items():
        if not 0 < size < LIMIT:
            raise CudaError(f"{subject}: {name} has {size} elements, need 1 to {LIMIT - 1}")


def others_sizes(rows: int, strides: Sequence[int]) -> dict[str, int]:
    """Return the elements of the arrays that an epilogue reads. strides: from a row to the next, 0 where all share one."""
    return {name: max(1, rows * stride) for name, stride in zip(OTHERS, strides, strict=False)}


def listed(
    addresses: Iterable[str], numbers: Iterable[str], divisors: Iterable[str] = (), scalars: Iterable[str] = ()
) -> list[tuple[str, type[ctypes.c_uint64 | ctypes.c_uint32 | ctypes.c_float]]]:
    """Return the fields of a structure: addresses, numbers of 32 bits, divisors (see `set_divisor`), and float32.

    Every structure also has `ahead` and `ahead_lines`: memory that a later launch will read, in lines of 128 bytes.
    """
    return [
        *((name, ctypes.c_uint64) for name in (*addresses, AHEAD)),
        *((name, ctypes.c_uint32) for name in (*numbers, AHEAD_LINES)),
        *((f"{name}{part}", ctypes.c_uint32) for name in divisors for part in ("", "_factor", "_shift")),
        *((name, ctypes.c_float) for name in scalars),
    ]


class Descriptor(ctypes.Structure):
    """The structure that a kernel takes. Each divisor comes with the numbers by which a kernel divides by it."""

    def set_divisor(self, name: str, divisor: int) -> None:
        """Set a divisor and the numbers by which a kernel divides by it: n / d = n · factor / 2^shift for n below 2^31.

        Source: Granlund and Montgomery, Division by Invariant Integers using Multiplication, PLDI 1994, theorem 4.2.
        """
        shift = 31 + (divisor - 1).bit_length()
        for part, value in (("", divisor), ("_factor", -(-(1 << shift) // divisor)), ("_shift", shift)):
            setattr(self, f"{name}{part}", value)


@record
class Fields:
    """A descriptor in memory, as a kernel reads it. structure: its address.  kind: its class.  moved: added to addresses."""

    k: Function
    structure: Value
    kind: type[Descriptor]
    moved: Mapping[str, Value] = field(default_factory=lambda: MappingProxyType({}))

    def address(self, name: str) -> Value:
        """Read an address."""
        address = self.k.load(I64, self.structure, getattr(self.kind, name).offset // 8)
        return address + self.moved[name] if name in self.moved else address

    def number(self, name: str) -> Value:
        """Read a number."""
        return self.k.load(I32, self.structure, getattr(self.kind, name).offset // 4)

    def scalar(self, name: str) -> Value:
        """Read a float32."""
        return self.k.load(F32, self.structure, getattr(self.kind, name).offset // 4)

    def divide(self, dividend: Value, name: str) -> tuple[Value, Value]:
        """Return the quotient of a dividend from 0 to 2^31 - 1 by the divisor of that name, and what is left."""
        k = self.k
        factor, shift = (k.convert("zext", self.number(f"{name}_{part}"), I64) for part in ("factor", "shift"))
        product = k.op(f"mul {k.convert('zext', dividend, I64)}, {factor.ref}", I64, "scaled")
        quotient = k.convert("trunc", k.binary("lshr", product, shift), I32)
        return quotient, dividend - quotient * self.number(name)
