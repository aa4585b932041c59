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
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from kernels.log import warn
from kernels.native.code.cache import CodeCache, Compiled, Source, entry_key
from kernels.native.code.dump import dump_modules
from kernels.native.errors import CompileError
from kernels.native.target.isa import Isa, available_cores, find_isa

SMALL_CHARACTERS = 400_000  # of IR: compiling them takes about 0.25 s, as long as starting a process
_FIRST_PACE_S = 0.25 / SMALL_CHARACTERS  # a character, before anything was compiled
_SIZE = struct.Struct("<q")
_START = "import sys; sys.path.insert(0, sys.argv[1]); from kernels.native.code.farm import serve; serve()"


def generate(ir: str, isa: Isa, *, count_spills: bool = False) -> Compiled:
    """Compile one module in this process. LLVM is loaded here, when there is something to compile."""
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
    processes: int | None = None,
) -> list[Compiled]:
    """Compile every module, in order: from the cache where it has them, the rest on `processes` cores (default: all).

    Raises CompileError when LLVM refuses one.
    """
    found = compile_some(modules, isa, None, count_spills=count_spills, cache=cache, processes=processes)
    return [compiled for compiled in found if compiled is not None]  # each is: only a pace leaves any out


def compile_some(
    modules: Sequence[Source],
    isa: Isa,
    pace: Pace | None,
    *,
    count_spills: bool = False,
    cache: CodeCache | None = None,
    processes: int | None = None,
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
    texts = [module.text() for module in missing.values()]
    done = _compile(texts, isa, count_spills, processes, pace)
    fresh = {key: done[at] for at, key in enumerate(missing) if at in done}
    if cache:
        for key, compiled in fresh.items():
            cache.put(key, compiled)
    return [known.get(key) or fresh.get(key) for key in keys]


def _compile(modules: list[str], isa: Isa, count_spills: bool, processes: int | None, pace: Pace | None) -> dict[int, Compiled]:
    """The largest first, so that no core ends on a long one alone."""
    cores = available_cores() if processes is None else processes
    small = processes is None and sum(map(len, modules)) < SMALL_CHARACTERS
    others = 0 if small else min(cores, len(modules)) - 1
    batch = _Batch(modules, isa, count_spills, pace)
    threads = [threading.Thread(target=batch.drive_worker, name="edgewise-compile", daemon=True) for _ in range(others)]
    for thread in threads:
        thread.start()
    try:
        batch.work_here()
    finally:
        for thread in threads:
            thread.join()
    batch.work_here()  # modules that a worker held when it died
    return batch.results()


class _Batch:
    """The modules of one call: those to compile, and the code of those that are done."""

    def __init__(self, modules: list[str], isa: Isa, count_spills: bool, pace: Pace | None) -> None:
        self.modules, self.isa, self.count_spills, self.pace = modules, isa, count_spills, pace
        self._done: dict[int, Compiled] = {}
        self._error: CompileError | None = None
        self._todo: queue.SimpleQueue[int] = queue.SimpleQueue()
        for n in sorted(range(len(modules)), key=lambda n: -len(modules[n])):
            self._todo.put(n)

    def _take(self) -> int | None:
        if self._error:
            return None
        try:
            n = self._todo.get_nowait()
        except queue.Empty:
            return None
        return n if self.pace is None or self.pace.allows(len(self.modules[n])) else None

    def _keep(self, n: int, compiled: Compiled, began_s: float) -> None:
        self._done[n] = compiled
        if self.pace is not None:
            self.pace.took(len(self.modules[n]), time.monotonic() - began_s)

    def work_here(self) -> None:
        while (n := self._take()) is not None:
            began_s = time.monotonic()
            try:
                self._keep(n, generate(self.modules[n], self.isa, count_spills=self.count_spills), began_s)
            except CompileError as error:
                self._error = error

    def drive_worker(self) -> None:
        """Feed one worker process until no module is left; a module that it held when it died goes back to the queue."""
        root = str(Path(__file__).parents[3])
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
                    began_s = time.monotonic()
                    job = {"ir": self.modules[n], "isa": _isa_to_json(self.isa), "count_spills": self.count_spills}
                    _write(worker.stdin, json.dumps(job).encode())
                    self._accept(n, _read(worker.stdout), began_s)
            except (OSError, EOFError) as error:
                warn("compile worker died", reason=str(error))
                if n is not None:
                    self._todo.put(n)
            finally:
                worker.kill()
                with contextlib.suppress(BrokenPipeError):  # a worker that died has not read everything
                    worker.stdin.close()

    def _accept(self, n: int, answer: bytes, began_s: float) -> None:
        head, _, code = answer.partition(b"\n")
        said = json.loads(head)
        if "error" in said:
            self._error = CompileError(said["error"])
        else:
            self._keep(n, Compiled(code, said["spills"]), began_s)

    def results(self) -> dict[int, Compiled]:
        """Return the code by number of module. Raises CompileError when LLVM refused one."""
        if self._error:
            raise self._error
        return self._done


def serve() -> None:
    """Run as worker process: compile modules from standard input until it ends."""
    while True:
        try:
            job = json.loads(_read(sys.stdin.buffer))
        except EOFError:
            return
        try:
            compiled = generate(job["ir"], _isa_from_json(job["isa"]), count_spills=job["count_spills"])
            answer = json.dumps({"spills": compiled.spills}).encode() + b"\n" + compiled.code
        except CompileError as error:
            answer = json.dumps({"error": str(error)}).encode() + b"\n"
        _write(sys.stdout.buffer, answer)


def _isa_to_json(isa: Isa) -> dict[str, str]:
    """Return the fields in which a set of this machine differs from the described one of its name."""
    return {"name": isa.name, "cpu": isa.cpu, "features": isa.features}


def _isa_from_json(data: dict[str, str]) -> Isa:
    return replace(find_isa(data["name"]), cpu=data["cpu"], features=data["features"])


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
