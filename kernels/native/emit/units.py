"""Dot-product instructions (VNNI, BF16, Arm's dot products and small matrix products) in LLVM IR."""

from __future__ import annotations

from kernels.native.emit.builder import Function, Value
from kernels.native.emit.types import BF16, F32, F64, I8, I32, Type
from kernels.native.target.isa import Isa, Unit


def accumulator_type(unit: Unit, isa: Isa) -> Type:
    """Return the type of a full vector of accumulators."""
    element = {"fp32": F32, "fp64": F64, "bf16": F32, "int8": I32}[unit.precision]
    return element.by(isa.vector_bits // element.bits)


def dot(k: Function, unit: Unit, accumulator: Value, a: Value, b: Value) -> Value:
    """Emit accumulator + a·b for a unit of bf16 or int8.

    a, b: the bits of the factors, in the accumulator's type. On x86 it is inline assembly, because the signatures of these
    intrinsics changed between the LLVM versions that llvmlite has shipped.
    """
    kind = accumulator.type
    if k.isa.arch == "x86_64":
        assembly = f"{unit.prefix} {unit.instruction}".lstrip()
        return k.op(f'call {kind.text} asm "{assembly} $2, $1, $0", "=v,v,v,0"({a}, {b}, {accumulator})', kind, "dot")
    short = BF16.by(2 * kind.lanes) if unit.precision == "bf16" else I8.by(4 * kind.lanes)
    suffix = "" if unit.precision == "bf16" else f".{kind.mangled}.{short.mangled}"
    factors = (k.convert("bitcast", factor, short) for factor in (a, b))
    return k.call(f"llvm.aarch64.neon.{unit.instruction}{suffix}", kind, accumulator, *factors)
