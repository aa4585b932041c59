"""What an emitted kernel is to the program that calls it, and what is done to its results before they are stored."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from kernels.native.code.cache import Source
from kernels.native.emit.builder import Function, Module, Operand, Value
from kernels.native.emit.functions import Activation
from kernels.native.emit.math import BINARY
from kernels.native.emit.types import I64, PTR, Type
from kernels.native.errors import EmitError
from kernels.native.memory.image import Image
from kernels.native.target.isa import Isa

TOGETHER = (
    4  # on Zen 3 a SiLU behind a convolution takes 19 cycles a vector by itself, 18 by twos, 13 by fours, as much by eights
)
NAME_CHARACTERS = 96  # at most; file systems and linkers take 255
# Hexadecimal. The 579 kernels of 11 architectures on AVX2 make 12,062 pairs that differ in the digest alone; a code cache that is
# full (13,000 kernels) then holds two kernels of one name with a probability of 2e-8. With 8 digits it would be 1e-3.
DIGEST_DIGITS = 12
SCRATCH = "scratch"  # the argument that is memory of the calling thread's own, of no defined content


@dataclass(frozen=True, slots=True)
class NativeKernel:
    """A kernel does the chunks [begin, end) of its work in one call; chunks are independent, so any thread may do any.

    It is `void name(ptr …, i64 begin, i64 end)` with a pointer for each of `arguments`: "x" input, "w" packed weights, "b" packed
    bias, "r0", "r1"… operands of the epilogue (each may be y), "y" output; other kernels have others.

    name: symbol, unique for what it computes and how: the same name is the same code. emit: makes a module that exports it; where
    the code is known by its name it is never called. chunks: all of its work.
    scratch_bytes: of the argument "scratch", which every thread has its own of, 128-byte aligned.
    """

    name: str
    emit: Callable[[], str]
    chunks: int
    arguments: tuple[str, ...]
    scratch_bytes: int = 0

    @property
    def ir(self) -> str:
        """The module that exports it."""
        return self.emit()

    @property
    def source(self) -> Source:
        """For the compiler, which asks for the module only when it has no code of that name."""
        return Source.of_kernel(self.name, self.emit)


def emitted(
    isa: Isa,
    name: str,
    arguments: Sequence[str],
    chunks: int,
    body: Callable[[Function, list[Value]], None],
    scratch_bytes: int = 0,
) -> NativeKernel:
    """A kernel whose function `body` fills. body: takes its builder and its arguments, the chunks' begin and end last."""

    def emit() -> str:
        module = Module(isa)
        with module.function(name, signature(arguments)) as (k, *values):
            body(k, values)
        return module.text

    return NativeKernel(name, emit, chunks, tuple(arguments), scratch_bytes)


def signature(arguments: Sequence[str]) -> dict[str, Type]:
    """The types of a kernel's arguments, in order."""
    return {**dict.fromkeys(arguments, PTR), "begin": I64, "end": I64}


@dataclass(frozen=True, slots=True)
class Merge:
    """One step of an epilogue: value = op(value, operand), or op(operand, value) where swapped. op: of math.BINARY.

    operand: where its elements lie, with the output's channels and the stride 0 along what it is broadcast over. Its channels
    come in vectors like the output's; block and block_stride 1 and 0 mean one element for all channels.
    """

    op: str
    operand: Image
    swapped: bool = False


@dataclass(frozen=True, slots=True)
class Epilogue:
    """What is done to a result before it is stored: + bias, then each step in order."""

    bias: bool = False
    steps: tuple[Activation | Merge, ...] = ()

    @property
    def operands(self) -> tuple[Image, ...]:
        """The layouts of what the steps read, in order."""
        return tuple(step.operand for step in self.steps if isinstance(step, Merge))

    @property
    def arguments(self) -> tuple[str, ...]:
        """The pointer arguments of a kernel with this epilogue, between its own and "y": one for each operand."""
        return tuple(f"r{n}" for n in range(len(self.operands)))

    def check(self, lanes: int) -> None:
        """Raise EmitError for an operand whose channels do not come in vectors."""
        for n, image in enumerate(self.operands):
            one = image.block == 1 and image.block_stride == 0
            if not (one or image.contiguous_channels or image.block % lanes == 0):
                raise EmitError(f"epilogue: operand {n} has blocks of {image.block} channels, need {lanes} or one for all")

    def flat(self) -> Epilogue:
        """The same on images seen as one row. Raises EmitError for an operand whose rows do not join."""
        steps = (replace(step, operand=step.operand.flat()) if isinstance(step, Merge) else step for step in self.steps)
        return replace(self, steps=tuple(steps))

    def every(self, first: tuple[int, int], steps: tuple[int, int]) -> Epilogue:
        """The same on some of the pixels, as `Image.every` picks them."""
        made = (
            replace(step, operand=step.operand.every(first, steps)[0]) if isinstance(step, Merge) else step for step in self.steps
        )
        return replace(self, steps=tuple(made))

    def together(self, isa: Isa) -> int:
        """Vectors to finish at once, joined to one wider than registers, which is several instructions at each step.

        One alone waits for itself at every instruction of a long function, and a core does not look far enough ahead to begin the
        next one meanwhile. Where registers are widest, functions have forms of their own for them, and stay by themselves.
        """
        long = any(isinstance(step, Activation) and not step.is_short for step in self.steps)
        return TOGETHER if long and not isa.masks else 1

    def finish(self, k: Function, results: Sequence[Result], addresses: Sequence[Value]) -> list[Value]:
        """The steps on vectors of results, a power of two of them. addresses: of the operands."""
        value = _joined(k, [result.value for result in results])
        waiting = list(zip(self.operands, addresses, strict=True))
        for step in self.steps:
            if isinstance(step, Activation):
                value = step(k, value)
                continue
            image, base = waiting.pop(0)
            one = image.block == 1 and image.block_stride == 0
            loads = [
                k.broadcast(k.f32, base, result.at(image)) if one else k.load_part(k.f32, base, result.lanes, result.at(image))
                for result in results
            ]
            other = _joined(k, loads)
            value = BINARY[step.op](k, other, value) if step.swapped else BINARY[step.op](k, value, other)
        return _parted(k, value, len(results))


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
    """The output and the operands of its epilogue: addresses that move together, each by the strides of its own image."""

    images: tuple[Image, ...]
    addresses: tuple[Value, ...]

    @staticmethod
    def of(y: Image, epilogue: Epilogue, address: Value, operands: Sequence[Value]) -> Places:
        """The output first."""
        return Places((y, *epilogue.operands), (address, *operands))

    def move(self, k: Function, by: Callable[[Image], Operand]) -> Places:
        """Every address moved by that many elements of its image."""
        pairs = zip(self.images, self.addresses, strict=True)
        return Places(self.images, tuple(k.offset(address, by(image)) for image, address in pairs))

    def store(self, k: Function, epilogue: Epilogue, results: Sequence[Result]) -> None:
        """Finish vectors of results and write them."""
        (y, *_), (address, *others) = self.images, self.addresses
        for some in _by_powers(results, epilogue.together(k.isa)):
            for result, value in zip(some, epilogue.finish(k, some, others), strict=True):
                k.store_part(value, address, result.stored, result.at(y))


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


def kernel_name(stem: str, key: object, isa: Isa, words: Iterable[str] = ()) -> str:
    """`<stem>__<isa>_<words>_<digest>`, a symbol of at most NAME_CHARACTERS characters.

    stem: type, operation and tile. key: all that decides the code. words: for readers, as many as there is room for.
    """
    digest = hashlib.sha256(repr((key, isa.key)).encode()).hexdigest()[:DIGEST_DIGITS]
    name = f"{stem}__{isa.name}"
    for word in words:
        if len(name) + len(word) + len(digest) + 2 > NAME_CHARACTERS:
            break
        name = f"{name}_{word}"
    return f"{name}_{digest}"
