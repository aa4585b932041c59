"""Compiling many modules at once, on threads.

A module is compiled without Python's lock and without llvmlite's (`kernels.native.code.compile`), so that threads compile side by
side, and modules are emitted while others are compiled.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from kernels.confinement import usable_cpus
from kernels.native.code.cache import CodeCache, Compiled, Source, entry_key
from kernels.native.code.dump import dump_modules
from kernels.native.target.isa import Isa

_FIRST_PACE_S = 0.25 / 400_000  # a character of IR, before anything was compiled
_END = 1  # in place of minus the length of a text, so that it comes after all texts


def generate(ir: str, isa: Isa, *, count_spills: bool = False) -> Compiled:
    """Compile one module in this thread. LLVM is loaded here, when there is something to compile."""
    from kernels.native.code import compile as compiler  # noqa: PLC0415

    return compiler.generate(ir, isa, count_spills=count_spills)


@dataclass(slots=True)
class Pace:
    """Ends a batch of modules in time. fits: whether a module that takes so many seconds may be started. The time of a module is
    estimated from those before it, in seconds a character of IR, so a machine that is busy with other work is accounted for."""

    fits: Callable[[float], bool]
    characters: int = 0
    seconds: float = 0.0

    def allows(self, characters: int) -> bool:
        """Whether a module of that many characters may be begun."""
        return self.fits(characters * (self.seconds / self.characters if self.characters else _FIRST_PACE_S))

    def took(self, characters: int, seconds: float) -> None:
        """Note how long a module took. Threads may call this at once; a lost update does no harm."""
        self.characters += characters
        self.seconds += seconds


def compile_all(
    modules: Sequence[Source],
    isa: Isa,
    *,
    count_spills: bool = False,
    cache: CodeCache | None = None,
    threads: int | None = None,
) -> list[Compiled]:
    """Compile every module, in order: from the cache where it has them, the rest on that many threads (default: one a core).

    Raises CompileError when LLVM refuses one.
    """
    found = compile_some(modules, isa, None, count_spills=count_spills, cache=cache, threads=threads)
    return [compiled for compiled in found if compiled is not None]  # each is: only a pace leaves any out


def compile_some(
    modules: Sequence[Source],
    isa: Isa,
    pace: Pace | None,
    *,
    count_spills: bool = False,
    cache: CodeCache | None = None,
    threads: int | None = None,
) -> list[Compiled | None]:
    """Compile the modules that `pace` leaves time for (None: all); None in place of the others. Compiled code is cached.

    Raises CompileError when LLVM refuses one.
    """
    dump_modules(modules, isa)
    keys = [entry_key(module, isa) for module in modules]
    known: dict[bytes, Compiled] = {}
    for key in dict.fromkeys(keys):
        found = cache.get(key) if cache else None
        if found and not (count_spills and found.spills is None):
            known[key] = found
    missing = {key: module for key, module in zip(keys, modules, strict=True) if key not in known}
    batch = _Batch(isa, count_spills, pace)
    batch.compile(list(missing.values()), usable_cpus() if threads is None else threads)
    fresh = {key: batch.done[at] for at, key in enumerate(missing) if at in batch.done}
    if cache:
        for key, compiled in fresh.items():
            cache.put(key, compiled)
    return [known.get(key) or fresh.get(key) for key in keys]


class _Batch:
    """The modules of one call: those to compile, and the code of those that are done, by their numbers.

    Of the modules that are emitted, the largest is compiled next, so that no core ends on a long one alone.
    """

    def __init__(self, isa: Isa, count_spills: bool, pace: Pace | None) -> None:
        self.isa, self.count_spills, self.pace = isa, count_spills, pace
        self.done: dict[int, Compiled] = {}
        self._todo: queue.PriorityQueue[tuple[int, int, str]] = queue.PriorityQueue()  # minus the length, number, text
        self._failed = False

    def compile(self, modules: Sequence[Source], threads: int) -> None:
        """Emit all modules in this thread, while others compile them; then compile here too. Raises CompileError."""
        others = max(min(threads, len(modules)) - 1, 0)
        with ThreadPoolExecutor(others or 1, "edgewise-compile") as workers:
            helping = [workers.submit(self._work) for _ in range(others)]
            try:
                self._emit(modules)
            finally:
                for _ in range(others + 1):
                    self._todo.put((_END, 0, ""))
            self._work()
        for one in helping:
            one.result()

    def _emit(self, modules: Sequence[Source]) -> None:
        try:
            for number, module in enumerate(modules):
                text = module.text()
                self._todo.put((-len(text), number, text))
        except BaseException:
            self._failed = True
            raise

    def _work(self) -> None:
        """Compile what is emitted, until nothing is left, one has failed or the pace leaves no time."""
        try:
            while (job := self._todo.get())[0] != _END and not self._failed:
                _, number, text = job
                if self.pace is None or self.pace.allows(len(text)):
                    self._compile(number, text)
        except BaseException:
            self._failed = True
            raise

    def _compile(self, number: int, text: str) -> None:
        began_s = time.monotonic()
        self.done[number] = generate(text, self.isa, count_spills=self.count_spills)
        if self.pace is not None:
            self.pace.took(len(text), time.monotonic() - began_s)
