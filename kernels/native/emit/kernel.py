"""Emitted kernels as the programs see them that call them: a function, its arguments, and work cut into chunks."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import field
from types import MappingProxyType

import numpy as np

from kernels.native.code.cache import Source
from kernels.native.emit.builder import Function, Module, Value
from kernels.native.emit.types import I64, PTR, Type
from kernels.native.memory.buffers import aligned
from kernels.native.target.isa import Isa
from kernels.record import record
from kernels.size import Sizes
from kernels.spec import Array

NAME_CHARACTERS = 96  # at most; file systems and linkers take 255
# Hexadecimal. The 579 kernels of 11 architectures on AVX2 make 12,062 pairs that differ in the digest alone; a code cache that is
# full (13,000 kernels) then holds two kernels of one name with a probability of 2e-8. With 8 digits it would be 1e-3.
DIGEST_DIGITS = 12
SCRATCH = "scratch"  # the argument that is memory of the calling thread's own, of no defined content
Bounds = tuple[Value, Value]  # the first chunk, and one after the last
SIGNATURE: Mapping[str, Type] = {"arguments": PTR, "scratch": PTR, "begin": I64, "end": I64}


@record
class Table:
    """Words that follow from sizes, and are read by a kernel that serves every shape.

    make: a pure function of the sizes. sizes: what it is called with.
    """

    make: Callable[..., Sequence[int]]
    sizes: tuple[int, ...]

    def at(self, sizes: Sizes) -> Table:
        """Return the table for some values of its sizes."""
        return Table(self.make, sizes.all(self.sizes))

    @property
    def words(self) -> Array:
        """The words (int64), shared by all tables that are equal. They are never written."""
        return _made(self.make, self.sizes)


@functools.lru_cache(1024)
def _made(make: Callable[..., Sequence[int]], sizes: tuple[int, ...]) -> Array:
    words = make(*sizes)
    memory = aligned(8 * max(len(words), 1)).view(np.int64)
    memory[: len(words)] = words
    memory.flags.writeable = False
    return memory


@record
class NativeKernel:
    """A kernel computes the chunks [begin, end) of its work in one call; chunks are independent, so any thread may take any.

    It is `void name(ptr arguments, ptr scratch, i64 begin, i64 end)`. `arguments` points to a word of 8 bytes for each of
    `arguments`, an address: "x" input, "w" packed weights, "b" packed bias, "r0", "r1"… operands of the epilogue (each may be
    y), "y" output; other kernels have others. Behind these lie the addresses of the `tables`, then the `numbers`, one word each.

    name: symbol, unique for what it computes and how: the same name is the same code. emit: makes a module that exports it; where
    the code is known by its name it is never called. chunks: all of its work.
    scratch_bytes: of the argument "scratch", which every thread has its own of, 128-byte aligned.
    numbers: sizes and strides that the code reads when it runs, so that it serves other ones too. tables: more of them, by name.
    """

    name: str
    emit: Callable[[], str]
    chunks: int
    arguments: tuple[str, ...]
    scratch_bytes: int = 0
    numbers: tuple[int, ...] = ()
    tables: Mapping[str, Table] = field(default_factory=dict, hash=False)

    def at(self, sizes: Sizes) -> NativeKernel:
        """Return the kernel with values for all sizes; its code stays."""
        tables = {name: table.at(sizes) for name, table in self.tables.items()}
        return NativeKernel(
            self.name, self.emit, sizes.of(self.chunks), self.arguments, sizes.of(self.scratch_bytes),
            sizes.all(self.numbers), tables,
        )  # fmt: skip

    @property
    def ir(self) -> str:
        """The IR of the module that exports the kernel's function."""
        return self.emit()

    @property
    def source(self) -> Source:
        """The source for the compiler, which emits the module only where no code of that name is cached."""
        return Source.of_kernel(self.name, self.emit)


def emitted(
    isa: Isa,
    name: str,
    arguments: Sequence[str],
    chunks: int,
    body: Callable[[Function, Mapping[str, Value], Mapping[str, Value], Bounds], None],
    numbers: Mapping[str, int] = MappingProxyType({}),
    tables: Mapping[str, Table] = MappingProxyType({}),
    scratch_bytes: int = 0,
) -> NativeKernel:
    """Return a kernel whose code reads sizes and strides when it runs, and serves every shape.

    body: takes the builder, the addresses of arguments and tables by name, the numbers by name, and the chunks' begin and end.
    Neither numbers nor what tables hold may decide what it emits.
    """

    def emit() -> str:
        module = Module(isa)
        with module.function(name, SIGNATURE) as (k, *values):
            words, scratch, begin, end = values
            pointers = _pointers(k, (*arguments, *tables), words, scratch)
            read = {each: k.load(I64, words, len(pointers) + at) for at, each in enumerate(numbers)}
            body(k, pointers, read, (begin, end))
        return module.text

    return NativeKernel(name, emit, chunks, tuple(arguments), scratch_bytes, tuple(numbers.values()), tables)


def _pointers(k: Function, arguments: Sequence[str], words: Value, scratch: Value) -> dict[str, Value]:
    """Emit the loads of the addresses that a kernel is given, and return them by name."""
    return {name: scratch if name == SCRATCH else k.load(PTR, words, at) for at, name in enumerate(arguments)}


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
