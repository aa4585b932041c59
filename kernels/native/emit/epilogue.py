"""Epilogues: the bias and the elementwise expression that a kernel applies to its results in registers, before it stores them.

An `Epilogue` is the same for every layout. How its operands are read for a vector of results is up to an adapter for each
layout: `Places` for images, in blocks of channels, channels last, or the rows of a matrix as pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Generic, TypeVar

from kernels.expression import FLOAT, Expression
from kernels.native.emit.builder import Function, Operand, Value
from kernels.native.emit.expression import evaluate, from_memory, is_long, memory_type, value_types
from kernels.native.errors import EmitError
from kernels.native.memory.image import Image
from kernels.native.target.isa import Isa
from kernels.spec import DType

TOGETHER = (
    4  # on Zen 3 a SiLU behind a convolution takes 19 cycles a vector by itself, 18 by twos, 13 by fours, as much by eights
)
UNCHANGED = Expression((FLOAT,))

Layout = TypeVar("Layout")


@dataclass(frozen=True, slots=True)
class Epilogue(Generic[Layout]):
    """An elementwise computation on each result of a kernel: a bias is added, then the expression is computed.

    expression: of the result, its operand 0, and of further operands; results are float32 before it and after.
    operands: how each further operand lies: an `Image` or a `View`, with the stride 0 along what it is broadcast over.
    Raises EmitError where there are not as many layouts as operands, or the expression has other types.
    """

    bias: bool = False
    expression: Expression = UNCHANGED
    operands: tuple[Layout, ...] = ()

    def __post_init__(self) -> None:
        types = value_types(self.expression)
        if len(self.expression.operands) != 1 + len(self.operands):
            raise EmitError(f"epilogue: {len(self.operands)} layouts, need {len(self.expression.operands) - 1}, one an operand")
        if not types[0] == types[-1] == FLOAT:
            raise EmitError(f"epilogue: it makes {types[-1].name} of {types[0].name}, need float32 of float32")

    @property
    def arguments(self) -> tuple[str, ...]:
        """The names of the pointers that a kernel takes for this epilogue, one for each operand, after its own and before "y"."""
        return tuple(f"r{n}" for n in range(len(self.operands)))

    @property
    def dtypes(self) -> tuple[DType, ...]:
        """The element types of the operands."""
        return self.expression.operands[1:]

    def laid(self, change: Callable[[Layout], Layout]) -> Epilogue[Layout]:
        """Return this epilogue with `change` applied to the layout of each operand."""
        return replace(self, operands=tuple(map(change, self.operands)))

    def finish(self, k: Function, result: Value, loads: Sequence[Callable[[], Value]]) -> Value:
        """Emit the expression on a vector of results, bias included. loads: what reads each operand's vector."""
        return evaluate(k, self.expression, [lambda: result, *loads], result.type.lanes)


PLAIN: Epilogue[Any] = Epilogue()  # that changes nothing


def check_images(epilogue: Epilogue[Image], lanes: int) -> None:
    """Raise EmitError for an operand whose channels do not come in vectors."""
    for n, image in enumerate(epilogue.operands):
        if not (image.one_for_all_channels or image.contiguous_channels or image.block % lanes == 0):
            raise EmitError(f"epilogue: operand {n} has blocks of {image.block} channels, need {lanes} or one for all")


@dataclass(frozen=True, slots=True)
class Result:
    """A vector of results before the epilogue.

    at: from an image to the offset of lane 0 in it, in elements. lanes: how many lanes to read of operands. stored: how many to
    write.
    """

    value: Value
    at: Callable[[Image], int]
    lanes: int
    stored: int


@dataclass(frozen=True, slots=True)
class Places:
    """The addresses of the output and of its epilogue's operands, all images; they move together, each by its own strides."""

    images: tuple[Image, ...]
    addresses: tuple[Value, ...]
    dtypes: tuple[DType, ...]

    @staticmethod
    def of(y: Image, epilogue: Epilogue[Image], address: Value, operands: Sequence[Value]) -> Places:
        """Return the addresses, the output's first."""
        return Places((y, *epilogue.operands), (address, *operands), (FLOAT, *epilogue.dtypes))

    def move(self, k: Function, by: Callable[[Image], Operand]) -> Places:
        """Return the places with every address moved by as many elements as `by` returns for its image."""
        each = zip(self.images, self.addresses, self.dtypes, strict=True)
        return replace(self, addresses=tuple(k.offset(at, by(image), memory_type(dtype)) for image, at, dtype in each))

    def store(self, k: Function, epilogue: Epilogue[Image], results: Sequence[Result]) -> None:
        """Apply the epilogue to vectors of results and store them."""
        for some in _by_powers(results, together(epilogue.expression, k.isa)):
            whole = _joined(k, [result.value for result in some])
            loads = [partial(self._load, k, n, some) for n in range(1, len(self.images))]
            values = _parted(k, epilogue.finish(k, whole, loads), len(some))
            for result, value in zip(some, values, strict=True):
                k.store_part(value, self.addresses[0], result.stored, result.at(self.images[0]))

    def _load(self, k: Function, n: int, results: Sequence[Result]) -> Value:
        """Load an operand's elements for vectors of results, joined to one vector."""
        image, base, dtype = self.images[n], self.addresses[n], self.dtypes[n]
        kind = memory_type(dtype).by(k.isa.lanes)
        if image.one_for_all_channels:
            loads = [k.broadcast(kind, base, result.at(image)) for result in results]
        else:
            loads = [k.load_part(kind, base, result.lanes, result.at(image)) for result in results]
        return from_memory(k, _joined(k, loads), dtype)


def together(expression: Expression, isa: Isa) -> int:
    """Return how many vectors to finish at once, joined to one wider than a register: each step is then several instructions.

    In a long function each instruction on a single vector waits for the one before, and a core does not look far enough ahead to
    begin the next vector meanwhile. With 512-bit registers functions have forms of their own, for one vector at a time.
    """
    return TOGETHER if is_long(expression) and not isa.masks else 1


def _by_powers(results: Sequence[Result], most: int) -> Iterator[Sequence[Result]]:
    """Cut results into groups of `most`, a power of two, in order; what is left over goes into smaller powers of two."""
    first = 0
    while first < len(results):
        size = min(most, 1 << ((len(results) - first).bit_length() - 1))
        yield results[first : first + size]
        first += size


def _joined(k: Function, parts: Sequence[Value]) -> Value:
    """Join vectors of one type to one; their number is a power of two."""
    while len(parts) > 1:
        parts = [k.shuffle(a, b, range(2 * a.type.lanes)) for a, b in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0]


def _parted(k: Function, whole: Value, count: int) -> list[Value]:
    """Split a joined vector into `count` vectors again."""
    if count == 1:
        return [whole]
    lanes = whole.type.lanes // count
    return [k.shuffle(whole, None, range(n * lanes, (n + 1) * lanes)) for n in range(count)]


def vector_at(pixel: int, channel: int) -> Callable[[Image], int]:
    """Return a function from an image to the offset of a channel of a pixel, in elements from the tile's first pixel."""
    return lambda image: pixel * image.x_stride + image.offset(channel)
