"""What a kernel does to its results before it stores them: a bias, an expression, and how the operands of that lie.

An `Epilogue` is the same for every layout. How its operands are read for a vector of results is up to an adapter for each
layout: `Places` for images (in blocks of channels, channels last, or the rows of a matrix as pixels), and
`kernels.native.emit.walk.Addresses` for strided views.
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
    """What is done to each result before it is stored: a bias is added, then the expression is computed.

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
        """The pointer arguments of a kernel with this epilogue, between its own and "y": one for each operand."""
        return tuple(f"r{n}" for n in range(len(self.operands)))

    @property
    def dtypes(self) -> tuple[DType, ...]:
        """The element types of the operands."""
        return self.expression.operands[1:]

    def laid(self, change: Callable[[Layout], Layout]) -> Epilogue[Layout]:
        """Return this epilogue with its operands laid out as `change` says."""
        return replace(self, operands=tuple(map(change, self.operands)))

    def finish(self, k: Function, result: Value, loads: Sequence[Callable[[], Value]]) -> Value:
        """Emit the expression on a vector of results, bias included. loads: what reads each operand's vector."""
        return evaluate(k, self.expression, [lambda: result, *loads], result.type.lanes)


PLAIN: Epilogue[Any] = Epilogue()  # that changes nothing


def check_images(epilogue: Epilogue[Image], lanes: int) -> None:
    """Raise EmitError for an operand whose channels do not come in vectors."""
    for n, image in enumerate(epilogue.operands):
        if not (_is_one(image) or image.contiguous_channels or image.block % lanes == 0):
            raise EmitError(f"epilogue: operand {n} has blocks of {image.block} channels, need {lanes} or one for all")


def _is_one(image: Image) -> bool:
    """Whether one element is there for all channels."""
    return image.block == 1 and image.block_stride == 0


@dataclass(frozen=True, slots=True)
class Result:
    """A vector of results before the epilogue. at: the element of an image that lane 0 belongs to; lanes: that operands have for
    it; stored: that are written."""

    value: Value
    at: Callable[[Image], int]
    lanes: int
    stored: int


@dataclass(frozen=True, slots=True)
class Places:
    """The output and the operands of its epilogue as images: addresses that move together, each by the strides of its own."""

    images: tuple[Image, ...]
    addresses: tuple[Value, ...]
    dtypes: tuple[DType, ...]

    @staticmethod
    def of(y: Image, epilogue: Epilogue[Image], address: Value, operands: Sequence[Value]) -> Places:
        """The output first."""
        return Places((y, *epilogue.operands), (address, *operands), (FLOAT, *epilogue.dtypes))

    def move(self, k: Function, by: Callable[[Image], Operand]) -> Places:
        """Every address moved by that many elements of its image."""
        each = zip(self.images, self.addresses, self.dtypes, strict=True)
        return replace(self, addresses=tuple(k.offset(at, by(image), memory_type(dtype)) for image, at, dtype in each))

    def store(self, k: Function, epilogue: Epilogue[Image], results: Sequence[Result]) -> None:
        """Finish vectors of results and write them."""
        for some in _by_powers(results, together(epilogue.expression, k.isa)):
            whole = _joined(k, [result.value for result in some])
            loads = [partial(self._load, k, n, some) for n in range(1, len(self.images))]
            values = _parted(k, epilogue.finish(k, whole, loads), len(some))
            for result, value in zip(some, values, strict=True):
                k.store_part(value, self.addresses[0], result.stored, result.at(self.images[0]))

    def _load(self, k: Function, n: int, results: Sequence[Result]) -> Value:
        """What an operand has for vectors of results, joined to one."""
        image, base, dtype = self.images[n], self.addresses[n], self.dtypes[n]
        kind = memory_type(dtype).by(k.isa.lanes)
        if _is_one(image):
            loads = [k.broadcast(kind, base, result.at(image)) for result in results]
        else:
            loads = [k.load_part(kind, base, result.lanes, result.at(image)) for result in results]
        return from_memory(k, _joined(k, loads), dtype)


def together(expression: Expression, isa: Isa) -> int:
    """Vectors to finish at once, joined to one wider than registers, which is several instructions at each step.

    One alone waits for itself at every instruction of a long function, and a core does not look far enough ahead to begin the
    next one meanwhile. Where registers are widest, functions have forms of their own for them, and stay by themselves.
    """
    return TOGETHER if is_long(expression) and not isa.masks else 1


def _by_powers(results: Sequence[Result], most: int) -> Iterator[Sequence[Result]]:
    """All of them in order, in groups of `most`, a power of two, and what is left over in smaller ones."""
    first = 0
    while first < len(results):
        size = min(most, 1 << ((len(results) - first).bit_length() - 1))
        yield results[first : first + size]
        first += size


def _joined(k: Function, parts: Sequence[Value]) -> Value:
    """Vectors of one type, a power of two of them, as one."""
    while len(parts) > 1:
        parts = [k.shuffle(a, b, range(2 * a.type.lanes)) for a, b in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0]


def _parted(k: Function, whole: Value, count: int) -> list[Value]:
    """What was joined, as so many vectors again."""
    if count == 1:
        return [whole]
    lanes = whole.type.lanes // count
    return [k.shuffle(whole, None, range(n * lanes, (n + 1) * lanes)) for n in range(count)]


def vector_at(pixel: int, channel: int) -> Callable[[Image], int]:
    """Of an image, the element of a channel of a pixel, counted from the tile's first."""
    return lambda image: pixel * image.x_stride + image.offset(channel)
