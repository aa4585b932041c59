"""What an emitted kernel is to the program that calls it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from kernels.native.builder import Function, Operand, Value
from kernels.native.isa import Isa
from kernels.native.layout import Image
from kernels.native.math import Activation
from kernels.native.types import I64, PTR, Type

# Every kernel: void name(ptr x, ptr w, ptr b, ptr r, ptr y, i64 begin, i64 end). x: input, w: packed weights, b: packed bias,
# r: residual (it may be y), y: output; those a kernel does not use are never looked at.
SIGNATURE: dict[str, Type] = {"x": PTR, "w": PTR, "b": PTR, "r": PTR, "y": PTR, "begin": I64, "end": I64}


@dataclass(frozen=True, slots=True)
class NativeKernel:
    """A kernel does the chunks [begin, end) of its work in one call; chunks are independent, so any thread may do any.

    name: symbol, unique for what it computes and how. ir: a module that exports it. chunks: all of its work.
    """

    name: str
    ir: str
    chunks: int


@dataclass(frozen=True, slots=True)
class Epilogue:
    """What is done to a result before it is stored: + bias, + residual, activation.

    residual: the layout of what is added; None = nothing. It has the output's shape.
    """

    bias: bool = False
    residual: Image | None = None
    activation: Activation | None = None

    def finish(self, k: Function, value: Value, residual: Value | None, at: Operand, lanes: int) -> Value:
        """Residual and activation on one vector of results. at: the element of the residual that lane 0 meets."""
        if residual is not None:
            value = value + k.load_part(value.type, residual, lanes, at)
        return self.activation(k, value) if self.activation else value

    def __str__(self) -> str:
        parts = ("bias" if self.bias else "", "residual" if self.residual else "", str(self.activation or ""))
        return "_".join(part for part in parts if part) or "plain"


def kernel_name(stem: str, key: object, isa: Isa) -> str:
    """`<stem>__<isa>_<digest>`: the digest tells apart what the stem does not spell out."""

    digest = hashlib.sha256(repr((key, isa.key)).encode()).hexdigest()[:12]
    return f"{stem}__{isa.name}_{digest}"
