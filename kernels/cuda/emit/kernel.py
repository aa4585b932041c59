"""A kernel as an object, and how the threads of a launch share its work.

A kernel's name says all that its code depends on; the sizes and addresses of a problem are in its descriptor.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from ctypes import sizeof
from typing import Protocol

from kernels.cuda.emit.builder import (
    GPU,
    GpuModule,
    await_previous,
    exchange,
    load_shared,
    meet,
    prefetch,
    shared_base,
    special,
    start_next,
    store_shared,
)
from kernels.cuda.emit.descriptor import AHEAD, AHEAD_LINES, LINE_BYTES, Descriptor, Fields
from kernels.expression import Expression
from kernels.native.emit.builder import Function, Value
from kernels.native.emit.names import name_expression
from kernels.native.emit.types import F32, I1, I32, I64

WARP = 32
Combine = Callable[[Value, Value], Value]


class Kernel(Protocol):
    """Code that a GPU runs. Two of one name have the same code."""

    @property
    def name(self) -> str:
        """The kernel's name: what it computes and how."""

    @property
    def threads(self) -> int:
        """Threads of a block."""

    @property
    def shared_bytes(self) -> int:
        """Dynamic shared memory of a block."""

    def emit(self) -> str:
        """Return the IR of a module with this kernel alone."""


def kernel_name(words: Iterable[str], expression: Expression) -> str:
    """Return a kernel's name of words, and of the operations and a hash of its expression. Empty words are left out."""
    parts = list(filter(None, words))
    if expression.steps:
        parts += [*name_expression(expression), hashlib.sha256(repr(expression).encode()).hexdigest()[:12]]
    return "_".join(parts)


def emit_kernel(
    kernel: Kernel, kind: type[Descriptor], body: Callable[[Fields], None], *, waits: bool = False, cluster: int = 1
) -> str:
    """Return the IR of a kernel whose code `body` emits. kind: what it is told when it is launched.

    waits: the body itself waits for the launches before, and reads nothing until then that they may write. cluster: blocks that
    read one another's shared memory, a divisor of every launch's blocks.
    """
    module = GpuModule(GPU)
    with module.kernel(kernel.name, sizeof(kind), kernel.threads, cluster) as (k, structure):
        fields = Fields(k, structure, kind)
        start_next(k)
        _fetch_ahead(fields, kernel.threads)
        if not waits:
            await_previous(k)
        body(fields)
    return module.text


def _fetch_ahead(fields: Fields, threads: int) -> None:
    """Emit the start of fetching into L2 what a later launch will read: weights, which no launch writes."""
    k, base = fields.k, fields.address(AHEAD)
    with share_among_threads(k, fields.number(AHEAD_LINES), threads) as line:
        prefetch(k, base + k.convert("zext", line, I64) * LINE_BYTES, k.const(I1, 1))


@contextmanager
def share(k: Function, count: Value, first: Value, stride: Value) -> Iterator[Value]:
    """Run the body for first, first + stride, … below `count`."""
    left = k.select(k.compare("lt", first, count), count - first, k.const(I32, 0))
    turns = k.binary("udiv", left + stride - 1, stride)
    with k.fold("chunk", 0, k.convert("zext", turns, I64), 1, (first,)) as chunks:
        (chunk,) = chunks.values
        yield chunk
        chunks.values = [chunk + stride]


def share_among_blocks(k: Function, count: Value) -> AbstractContextManager[Value]:
    """Run the body for the chunks of this block; blocks take them in turn."""
    return share(k, count, special(k, "ctaid.x"), special(k, "nctaid.x"))


def share_among_threads(k: Function, count: Value, threads: int) -> AbstractContextManager[Value]:
    """Run the body for the items of this thread; all threads of the launch take them in turn."""
    first = special(k, "ctaid.x") * threads + special(k, "tid.x")
    return share(k, count, first, special(k, "nctaid.x") * threads)


def combine_lanes(k: Function, value: Value, combine: Combine, width: int = WARP) -> Value:
    """Combine a float32 of `width` neighbouring threads; each gets the result, all the same bits."""
    apart = width // 2
    while apart:
        value = combine(value, exchange(k, value, apart))
        apart //= 2
    return value


def combine_block(k: Function, value: Value, combine: Combine, identity: float, threads: int) -> Value:
    """Combine a float32 of all threads of a block; each gets the result. Uses the first 128 bytes of shared memory."""
    thread, base = special(k, "tid.x"), shared_base(k)
    value, warps = combine_lanes(k, value, combine), threads // WARP
    with k.when(k.compare("eq", thread & (WARP - 1), 0), "leader"):
        store_shared(k, base + k.shift("lshr", thread, 5) * 4, value)
    meet(k)
    lane = thread & (WARP - 1)
    inside = k.compare("lt", lane, warps)
    read = k.convert("bitcast", load_shared(k, base + k.select(inside, lane, k.const(I32, 0)) * 4), F32)
    read = k.select(inside, read, k.const(F32, identity))
    meet(k)
    return combine_lanes(k, read, combine)
