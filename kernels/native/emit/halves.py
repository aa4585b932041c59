"""float16 and bfloat16 in registers: vectors of the 16 bits of each element, converted to float32 and back.

A conversion to float32 is exact. One to a half rounds once, ties to even, and what is too large becomes infinite. float16 is
converted by instructions where the instruction set has them, and by arithmetic on the bits elsewhere.
"""

from __future__ import annotations

from kernels.native.emit.builder import Function, Value
from kernels.native.emit.types import BF16, F16, F32, I16, I32
from kernels.spec import BFLOAT16, DType

_SIGN = 0x8000
_NORMAL = 112 << 23  # what a float32's exponent has more than a float16's, as bits of the float32
_INFINITE = 0x7F800000


def widen(k: Function, bits: Value, dtype: DType) -> Value:
    """Return halves of that type as float32."""
    lanes = bits.type.lanes
    if dtype == BFLOAT16:
        return k.convert("bitcast", k.shift("shl", k.convert("zext", bits, I32.by(lanes)), 16), F32.by(lanes))
    if _has_instructions(k):
        return k.convert("fpext", k.convert("bitcast", bits, F16.by(lanes)), F32.by(lanes))
    return _widen_bits(k, k.convert("zext", bits, I32.by(lanes)))


def narrow(k: Function, value: Value, dtype: DType) -> Value:
    """Return float32 values as halves of that type."""
    lanes = value.type.lanes
    if dtype == BFLOAT16:
        return _narrow_to_bfloat(k, value)
    if _has_instructions(k):
        return k.convert("bitcast", k.convert("fptrunc", value, F16.by(lanes)), I16.by(lanes))
    return _narrow_bits(k, value)


def widen_pairs(k: Function, words: Value) -> tuple[Value, Value]:
    """Return the two bfloat16 of each word of 32 bits as float32: those in the low half, and those in the high one."""
    bits = k.convert("bitcast", words, I32.by(words.type.lanes))
    kind = F32.by(words.type.lanes)
    return k.convert("bitcast", k.shift("shl", bits, 16), kind), k.convert("bitcast", bits & -0x10000, kind)


def hold(k: Function, value: Value) -> Value:
    """Return float32 values as the bits of bfloat16, by one instruction where there is one.

    It takes numbers below 2⁻¹²⁶ for 0, which a conversion that a model asks for (`narrow`) does not.
    """
    if "avx512bf16" not in k.isa.requires:
        return narrow(k, value, BFLOAT16)
    lanes = value.type.lanes
    return k.convert("bitcast", k.convert("fptrunc", value, BF16.by(lanes)), I16.by(lanes))


def _has_instructions(k: Function) -> bool:
    """Whether the instruction set converts float16: all but the oldest of x86 do."""
    return k.isa.arch != "x86_64" or "f16c" in k.isa.requires


def _widen_bits(k: Function, bits: Value) -> Value:
    """Convert float16, in the low half of each lane. The least ones, below 2^-14, are what is left when 2^-14 is taken off."""
    kind = F32.by(bits.type.lanes)
    magnitude = k.shift("shl", bits & 0x7FFF, 13)
    normal = magnitude + _NORMAL
    raised = k.select(k.compare("ge", magnitude, 0x7C00 << 13), normal + _NORMAL, normal)  # infinities and NaN
    least = k.convert("bitcast", magnitude + (_NORMAL + (1 << 23)), kind) - 2.0**-14
    small = k.convert("bitcast", least, bits.type)
    made = k.select(k.compare("lt", magnitude, 1 << 23), small, raised)
    return k.convert("bitcast", made | k.shift("shl", bits & _SIGN, 16), kind)


def _narrow_bits(k: Function, value: Value) -> Value:
    """Convert to float16. The bits that a result has no room for are rounded by adding half of its last one, less 1 where
    that is even; results below 2^-14 are rounded by an addition of 0.5, whose last bit is theirs."""
    kind = I32.by(value.type.lanes)
    bits = k.convert("bitcast", value, kind)
    magnitude = bits & 0x7FFFFFFF
    odd = k.shift("lshr", magnitude, 13) & 1
    normal = k.shift("lshr", magnitude - _NORMAL + 0xFFF + odd, 13)
    raised = k.convert("bitcast", k.convert("bitcast", magnitude, value.type) + 0.5, kind)
    made = k.select(k.compare("lt", magnitude, _NORMAL + (1 << 23)), raised - 0x3F000000, normal)
    made = k.select(k.compare("ge", magnitude, 143 << 23), 0x7C00, made)  # from 2^16
    made = k.select(k.compare("gt", magnitude, _INFINITE), 0x7E00, made)
    return k.convert("trunc", made | (k.shift("lshr", bits, 16) & _SIGN), I16.by(value.type.lanes))


def _narrow_to_bfloat(k: Function, value: Value) -> Value:
    """Convert to bfloat16, the upper half of a float32; rounding carries on into its exponent, up to infinity."""
    kind = I32.by(value.type.lanes)
    bits = k.convert("bitcast", value, kind)
    upper = k.shift("lshr", bits, 16)
    rounded = k.shift("lshr", bits + 0x7FFF + (upper & 1), 16)
    made = k.select(k.compare("gt", bits & 0x7FFFFFFF, _INFINITE), (upper & _SIGN) | 0x7FC0, rounded)
    return k.convert("trunc", made, I16.by(value.type.lanes))
