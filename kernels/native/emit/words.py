"""What the factors of a product are made of: words of 32 bits, each one float32, or two bfloat16 or four bytes of neighbouring
channels.

Kernels address pixels and weights in words, so that one loop nest serves all types: what differs is how a word of a pixel is
multiplied by words of weights, and in which type products are added up.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from kernels.expression import FLOAT, INT32
from kernels.native.emit.builder import Function, Operand, Value
from kernels.native.emit.expression import memory_type
from kernels.native.emit.halves import widen_pairs
from kernels.native.emit.types import BF16, I16, I32, Type
from kernels.native.emit.units import dot
from kernels.native.errors import EmitError
from kernels.native.target.isa import Isa, Unit
from kernels.precision import Precision
from kernels.record import record
from kernels.spec import BFLOAT16, Array, DType

INT8, UINT8 = np.dtype(np.int8), np.dtype(np.uint8)
WORD_BYTES = 4
_NAMES: Mapping[DType, str] = {FLOAT: "f32", BFLOAT16: "bf16", UINT8: "u8", INT8: "i8"}
FLIP = 0x80  # added to a signed byte, without carry, it makes the unsigned byte that is 128 more


@record
class Words:
    """The words of pixels. x: type of their elements: float32 or bfloat16, or uint8 or int8, with weights of int8."""

    x: DType = FLOAT

    def __post_init__(self) -> None:
        if self.x not in _NAMES:
            raise EmitError(f"product: elements of x are {self.x.name}, need one of {', '.join(each.name for each in _NAMES)}")

    def __str__(self) -> str:
        return _NAMES[self.x]

    @property
    def are_bytes(self) -> bool:
        """Whether integers are multiplied."""
        return self.x.itemsize == 1

    @property
    def depth(self) -> int:
        """Neighbouring channels of a word."""
        return WORD_BYTES // self.x.itemsize

    @property
    def sums(self) -> DType:
        """The type in which products are added up."""
        return INT32 if self.are_bytes else FLOAT

    @property
    def excess(self) -> int:
        """How much more than its value a byte counts in the products: signed bytes are multiplied as unsigned ones."""
        return FLIP if self.x == INT8 else 0

    def type(self, lanes: int) -> Type:
        """Return the type of so many words, and of so many sums."""
        return memory_type(self.sums).by(lanes)

    def filled(self, value: int) -> int:
        """Return the word whose bytes all have that value, as a signed number."""
        return int(np.full(self.depth, value, self.x).view(np.int32)[0])

    def pixel(self, k: Function, base: Value, index: Operand) -> Value:
        """Emit the load of a word into every lane, as `add` takes it."""
        return k.splat(self._raised(k, k.load(self.type(1), base, index)), self.type(k.isa.lanes))

    def channels(self, k: Function, base: Value, index: Operand) -> Value:
        """Emit the load of the words of as many channels as a vector has lanes, as `add` takes them."""
        return self._raised(k, k.load(self.type(k.isa.lanes // self.depth), base, index))

    def _raised(self, k: Function, words: Value) -> Value:
        return words ^ k.const(words.type, self.filled(-FLIP)) if self.excess else words

    def add(self, k: Function, pixel: Value, weights: Value, sums: Value) -> Value:
        """Emit sums + the products of the elements of a pixel's word, in every lane, by those of a word of weights in each."""
        if self.x == FLOAT:
            return k.fma(pixel, weights, sums)
        return add_bytes(k, pixel, weights, sums) if self.are_bytes else add_halves(k, pixel, weights, sums)


F32_WORDS, BF16_WORDS = Words(), Words(BFLOAT16)


def words_of(precision: Precision) -> Words:
    """Return the words of float32 tensors whose products are computed in that precision."""
    return BF16_WORDS if precision == "bf16" else F32_WORDS


def byte_words(weights: Array) -> Array:
    """Return weights (outputs, inputs, …) of int8 as words (outputs, words, …) of int32; inputs are filled up with 0."""
    return _words_of(weights, INT8)


def half_words(weights: Array) -> Array:
    """Return weights (outputs, inputs, …) of float32, rounded to bfloat16, as words like those of bytes."""
    return _words_of(weights, BFLOAT16)


def _words_of(weights: Array, dtype: DType) -> Array:
    outputs, inputs, *window = weights.shape
    depth = WORD_BYTES // dtype.itemsize
    full = np.zeros((outputs, *window, -(-inputs // depth) * depth), dtype)
    full[..., :inputs] = np.moveaxis(weights, 1, -1)
    words: Array = np.moveaxis(full.view(np.int32), -1, 1)
    return words


def add_halves(k: Function, a: Value, b: Value, sums: Value) -> Value:
    """Emit sums + the products of two bfloat16 of a and b in each lane, in float32.

    By one instruction where there is one, which rounds after each product and takes numbers below 2⁻¹²⁶ for 0.
    """
    unit = word_unit(k.isa, "bf16", 2)
    if unit is None:
        for x, y in zip(widen_pairs(k, a), widen_pairs(k, b), strict=True):
            sums = k.fma(x, y, sums)
        return sums
    halves = BF16.by(2 * a.type.lanes)
    name = (
        f"x86.avx512bf16.dpbf16ps.{k.isa.vector_bits}"
        if k.isa.arch == "x86_64"
        else f"aarch64.neon.bfdot.{sums.type.mangled}.{halves.mangled}"
    )
    return k.call(f"llvm.{name}", sums.type, sums, k.convert("bitcast", a, halves), k.convert("bitcast", b, halves))


def add_bytes(k: Function, a: Value, b: Value, sums: Value) -> Value:
    """Emit sums + the products of four unsigned bytes of a and four signed ones of b, in each lane of 32 bits.

    By one instruction where there is one, else by products of 16 bits, whose sums of two fit in 32 bits always.
    """
    unit = word_unit(k.isa, "int8", WORD_BYTES)
    if unit is not None and unit.instruction == "vpdpbusd":
        return k.call(f"llvm.x86.avx512.vpdpbusd.{k.isa.vector_bits}", sums.type, sums, a, b)
    if unit is not None:  # signed by signed: 128 less for every byte of a
        less = dot(k, unit, k.zero(sums.type), b, k.const(sums.type, -0x7F7F7F80))
        return dot(k, unit, sums, a ^ k.const(a.type, -0x7F7F7F80), b) - less
    even = a & k.const(a.type, 0x00FF00FF)
    odd = k.convert("bitcast", k.shift("lshr", k.convert("bitcast", a, I16.by(2 * a.type.lanes)), 8), a.type)
    return sums + _pairs(k, even, _signed(k, b, 8)) + _pairs(k, odd, _signed(k, b, 0))


def is_paired(words: Words, isa: Isa) -> bool:
    """Whether a word is multiplied by two instructions, without one that adds up its products; each takes a register."""
    return words.depth > 1 and word_unit(isa, "int8" if words.are_bytes else "bf16", words.depth) is None


def products_at_once(words: Words, isa: Isa) -> int:
    """Return how many products are added up in the time of a multiply–add of float32.

    Without an instruction for it, words of any type take as long as their elements would as float32 (AVX2, Zen 3 and 5).
    """
    return 1 if is_paired(words, isa) else words.depth


def word_unit(isa: Isa, precision: Precision, depth: int) -> Unit | None:
    """Return the instruction that adds the products of so many elements, of those that every machine of the set has."""
    fitting = [unit for unit in isa.units if (unit.precision, unit.depth) == (precision, depth)]
    return next((unit for unit in fitting if set(unit.requires) <= set(isa.requires)), None)


def _signed(k: Function, words: Value, shift: int) -> Value:
    """Emit the bytes 0 and 2 (shift 8) or 1 and 3 (shift 0) of each word as signed numbers of 16 bits."""
    halves = k.convert("bitcast", words, I16.by(2 * words.type.lanes))
    moved = k.shift("shl", halves, shift) if shift else halves
    return k.convert("bitcast", k.shift("ashr", moved, 8), words.type)


def _pairs(k: Function, a: Value, b: Value) -> Value:
    """Emit the sum of the two products of 16 bits in each word."""
    lanes = a.type.lanes
    halves = [k.convert("bitcast", each, I16.by(2 * lanes)) for each in (a, b)]
    if k.isa.arch == "x86_64":
        name = {4: "sse2.pmadd.wd", 8: "avx2.pmadd.wd", 16: "avx512.pmaddw.d.512"}[lanes]
        return k.call(f"llvm.x86.{name}", a.type, *halves)
    products = [k.convert("sext", half, I32.by(2 * lanes)) for half in halves]
    whole = products[0] * products[1]
    even, odd = (k.shuffle(whole, None, range(first, 2 * lanes, 2)) for first in (0, 1))
    return even + odd
