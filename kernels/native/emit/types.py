"""Types and constants of LLVM IR as text."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from kernels.native.errors import EmitError
from kernels.record import record


@record
class Type:
    """A scalar or a vector of scalars. scalar: LLVM's name of the element; bits: of one element; lanes: 1 for a scalar."""

    scalar: str
    bits: int
    lanes: int = 1

    @property
    def text(self) -> str:
        """LLVM's spelling."""
        return self.scalar if self.lanes == 1 else f"<{self.lanes} x {self.scalar}>"

    @property
    def mangled(self) -> str:
        """The suffix of an overloaded intrinsic."""
        name = {"float": "f32", "double": "f64", "half": "f16", "bfloat": "bf16", "ptr": "p0"}.get(self.scalar, self.scalar)
        return name if self.lanes == 1 else f"v{self.lanes}{name}"

    @property
    def is_float(self) -> bool:
        """Whether elements are floating point."""
        return self.scalar in {"float", "double", "half", "bfloat"}

    @property
    def element(self) -> Type:
        """The scalar type of one lane."""
        return Type(self.scalar, self.bits)

    def by(self, lanes: int) -> Type:
        """A vector of this element."""
        return Type(self.scalar, self.bits, lanes)

    @property
    def align_bytes(self) -> int:
        """Alignment that any address of an element has: what a load may assume when nothing more is known."""
        return max(self.bits // 8, 1)


VOID = Type("void", 0)
PTR = Type("ptr", 64)
I1, I8, I16, I32, I64 = (Type(f"i{bits}", bits) for bits in (1, 8, 16, 32, 64))
F16, BF16, F32, F64 = Type("half", 16), Type("bfloat", 16), Type("float", 32), Type("double", 64)


def literal(kind: Type, value: float | Sequence[float]) -> str:
    """A constant of the type, bit-exact: floats in hexadecimal, a scalar given for a vector is in every lane."""
    if isinstance(value, Sequence):
        if len(value) != kind.lanes:
            raise EmitError(f"constant: {len(value)} lanes given, need {kind.lanes}")
        return f"<{', '.join(f'{kind.scalar} {literal(kind.element, lane)}' for lane in value)}>"
    scalar = _scalar(kind, value)
    return scalar if kind.lanes == 1 else f"splat ({kind.scalar} {scalar})"


def _scalar(kind: Type, value: float) -> str:
    if not kind.is_float:
        if int(value) != value:
            raise EmitError(f"constant: {value} is no integer, the type is {kind.text}")
        return str(int(value)) if kind.bits > 1 else ("true" if value else "false")
    if kind.scalar == "half":
        return f"0xH{struct.pack('>e', value).hex().upper()}"
    if kind.scalar == "bfloat":
        high, rest = divmod(struct.unpack(">I", struct.pack(">f", value))[0], 1 << 16)
        if rest:
            raise EmitError(f"constant: {value} is no bfloat")
        return f"0xR{high:04X}"
    if kind.scalar == "float":
        value = struct.unpack("f", struct.pack("f", value))[0]  # LLVM spells a float as the double of that value
    return f"0x{struct.pack('>d', value).hex().upper()}"
