"""A chain of elementwise operations in one loop: every input is read once and nothing but the result is written.

    for each chunk = (plane, piece of it):    for each vector:    y = op(… op(x, operand) …, operand)

A plane is all pixels of one vector of channels in a blocked image, or a whole flat tensor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from kernels.native.builder import Function, Module, Value
from kernels.native.errors import EmitError
from kernels.native.isa import Isa
from kernels.native.kernel import NativeKernel, kernel_name, signature
from kernels.native.math import BINARY, Activation
from kernels.native.types import I64

PIECE = 4096  # elements of a chunk


@dataclass(frozen=True, slots=True)
class Binary:
    """The value so far, and an operand: pointer w, b or r; swapped puts the operand first.

    shape: "same" as x, "channel": one vector per block, repeated in every image, "scalar": one element.
    """

    op: str
    pointer: Literal["w", "b", "r"]
    shape: Literal["same", "channel", "scalar"] = "same"
    swapped: bool = False


@dataclass(frozen=True, slots=True)
class Chain:
    """What to do to images × blocks planes of `elements` each, one plane behind the other."""

    steps: tuple[Binary | Activation, ...]
    elements: int
    blocks: int = 1
    images: int = 1


def emit_chain(chain: Chain, isa: Isa) -> NativeKernel:
    """Emit the kernel. Raises EmitError for an operation that does not exist."""
    for step in chain.steps:
        if isinstance(step, Binary) and step.op not in BINARY:
            raise EmitError(f"chain: operation {step.op!r} is unknown, need one of {sorted(BINARY)}")
    name, module = kernel_name("f32_chain", chain, isa), Module(isa)
    pieces, whole = -(-chain.elements // PIECE), chain.elements // isa.lanes * isa.lanes
    names = ("x", "w", "b", "r", "y")
    with module.function(name, signature(names)) as (k, *arguments):
        pointers = dict(zip(signature(names), arguments, strict=True))
        with k.loop("chunk", pointers["begin"], pointers["end"]) as chunk:
            plane, first = chunk // pieces, chunk % pieces * PIECE
            stop = first + PIECE
            stop = k.select(stop < whole, stop, k.const(I64, whole))
            with k.loop("i", first, stop, isa.lanes) as i:
                _vector(k, chain, pointers, plane, i, isa.lanes)
            if chain.elements > whole:
                with k.when(k.compare("eq", chunk % pieces, k.const(I64, pieces - 1))):
                    _vector(k, chain, pointers, plane, k.const(I64, whole), chain.elements - whole)
    return NativeKernel(name, module.text, chain.images * chain.blocks * pieces, names)


def _vector(k: Function, chain: Chain, pointers: Mapping[str, Value], plane: Value, i: Value, lanes: int) -> None:
    """One vector of results."""
    at = plane * chain.elements + i
    value = k.load_part(k.f32, pointers["x"], lanes, at)
    for step in chain.steps:
        if isinstance(step, Activation):
            value = step(k, value)
            continue
        base = pointers[step.pointer]
        if step.shape == "same":
            other = k.load_part(k.f32, base, lanes, at)
        elif step.shape == "channel":
            other = k.load(k.f32, base, plane % chain.blocks * k.isa.lanes)
        else:
            other = k.broadcast(k.f32, base)
        value = BINARY[step.op](k, other, value) if step.swapped else BINARY[step.op](k, value, other)
    k.store_part(value, pointers["y"], lanes, at)
