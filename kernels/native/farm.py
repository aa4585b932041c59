"""Compiling many modules at once, in processes of their own.

llvmlite takes one lock around every call, so threads do not compile in parallel; processes do. They are started as plain
commands, not by `multiprocessing`: a program that uses Edgewise needs no `if __name__ == "__main__"`, and no lock that
another thread holds is ever copied. The caller compiles too, so a worker that dies costs time only.
"""

from __future__ import annotations

import contextlib
import json
import queue
import struct
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO

from kernels.log import warn
from kernels.native.cache import CodeCache, Compiled, Source, entry_key
from kernels.native.errors import CompileError
from kernels.native.isa import Isa, available_cores

SMALL_CHARACTERS = 400_000  # of IR: about 0.25 s of compiling, what starting a process costs
_SIZE = struct.Struct("<q")
_START = "import sys; sys.path.insert(0, sys.argv[1]); from kernels.native.farm import serve; serve()"


def generate(ir: str, isa: Isa, *, count_spills: bool = False) -> Compiled:
    """Compile one module in this process, which loads LLVM: only where there is something to compile."""
    from kernels.native import compile as compiler  # noqa: PLC0415

    return compiler.generate(ir, isa, count_spills=count_spills)


def compile_all(
    modules: Sequence[Source],
    isa: Isa,
    *,
    count_spills: bool = False,
    cache: CodeCache | None = None,
    processes: int | None = None,
) -> list[Compiled]:
    """Compile every module, in order: from the cache where it has them, the rest on `processes` cores (default: all).

    Raises CompileError when LLVM refuses one.
    """
    keys = [entry_key(module, isa) for module in modules]
    known: dict[bytes, Compiled] = {}
    for key in dict.fromkeys(keys):
        found = cache.get(key) if cache else None
        if found and not (count_spills and found.spills is None):
            known[key] = found
    missing = {key: module for key, module in zip(keys, modules, strict=True) if key not in known}
    texts = [module.text() for module in missing.values()]
    fresh = dict(zip(missing, _compile(texts, isa, count_spills, processes), strict=True))
    if cache:
        for key, compiled in fresh.items():
            cache.put(key, compiled)
    return [known.get(key) or fresh[key] for key in keys]


def _compile(modules: list[str], isa: Isa, count_spills: bool, processes: int | None) -> list[Compiled]:
    """The largest first, so that no core ends on a long one alone."""
    cores = available_cores() if processes is None else processes
    small = processes is None and sum(map(len, modules)) < SMALL_CHARACTERS
    others = 0 if small else min(cores, len(modules)) - 1
    batch = _Batch(modules, isa, count_spills)
    threads = [threading.Thread(target=batch.drive_worker, name="edgewise-compile", daemon=True) for _ in range(others)]
    for thread in threads:
        thread.start()
    try:
        batch.work_here()
    finally:
        for thread in threads:
            thread.join()
    batch.work_here()  # what a worker that died had taken
    return batch.results()


class _Batch:
    """The modules still to compile, and those that are."""

    def __init__(self, modules: list[str], isa: Isa, count_spills: bool) -> None:
        self.modules, self.isa, self.count_spills = modules, isa, count_spills
        self._done: dict[int, Compiled] = {}
        self._error: CompileError | None = None
        self._todo: queue.SimpleQueue[int] = queue.SimpleQueue()
        for n in sorted(range(len(modules)), key=lambda n: -len(modules[n])):
            self._todo.put(n)

    def _take(self) -> int | None:
        if self._error:
            return None
        try:
            return self._todo.get_nowait()
        except queue.Empty:
            return None

    def work_here(self) -> None:
        while (n := self._take()) is not None:
            try:
                self._done[n] = generate(self.modules[n], self.isa, count_spills=self.count_spills)
            except CompileError as error:
                self._error = error

    def drive_worker(self) -> None:
        """Feed one worker process until nothing is left; hand back what it holds when it dies."""
        root = str(Path(__file__).parents[2])
        command = [sys.executable, "-P", "-c", _START, root]
        try:
            worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # noqa: S603  our own command
        except OSError as error:
            warn("compile worker not started", reason=str(error))
            return
        n = None
        with worker:
            if worker.stdin is None or worker.stdout is None:  # never: both are pipes
                raise CompileError("compile worker: it has no pipes")
            try:
                while (n := self._take()) is not None:
                    job = {"ir": self.modules[n], "isa": asdict(self.isa), "count_spills": self.count_spills}
                    _write(worker.stdin, json.dumps(job).encode())
                    self._accept(n, _read(worker.stdout))
            except (OSError, EOFError) as error:
                warn("compile worker died", reason=str(error))
                if n is not None:
                    self._todo.put(n)
            finally:
                worker.kill()
                with contextlib.suppress(BrokenPipeError):  # a worker that died leaves what it never read
                    worker.stdin.close()

    def _accept(self, n: int, answer: bytes) -> None:
        head, _, code = answer.partition(b"\n")
        said = json.loads(head)
        if "error" in said:
            self._error = CompileError(said["error"])
        else:
            self._done[n] = Compiled(code, said["spills"])

    def results(self) -> list[Compiled]:
        if self._error:
            raise self._error
        return [self._done[n] for n in range(len(self.modules))]


def serve() -> None:
    """The worker process: compile what comes in on standard input until it ends."""
    while True:
        try:
            job = json.loads(_read(sys.stdin.buffer))
        except EOFError:
            return
        isa = Isa(**{**job["isa"], "requires": tuple(job["isa"]["requires"])})
        try:
            compiled = generate(job["ir"], isa, count_spills=job["count_spills"])
            answer = json.dumps({"spills": compiled.spills}).encode() + b"\n" + compiled.code
        except CompileError as error:
            answer = json.dumps({"error": str(error)}).encode() + b"\n"
        _write(sys.stdout.buffer, answer)


def _write(stream: IO[bytes], data: bytes) -> None:
    stream.write(_SIZE.pack(len(data)) + data)
    stream.flush()


def _read(stream: IO[bytes]) -> bytes:
    head = stream.read(_SIZE.size)
    if len(head) < _SIZE.size:
        raise EOFError("stream ended")
    (size,) = _SIZE.unpack(head)
    data = stream.read(size)
    if len(data) < size:
        raise EOFError("stream ended")
    return data
