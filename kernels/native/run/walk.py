"""The native loop that runs a program: a table of calls, walked by every thread of a team.

    denormals count as 0 from here on, until the end
    where the run is timed: wait until all threads are there
    for each step of the table:  do this thread's share of the chunks, then help with the others'
                                 if the step has a barrier: wait until it and those before it are done

A program is data, so this loop is compiled once for an instruction set, and a new model compiles no code of its own. All words
are of 8 bytes. The table begins with the header, whose words HEADER names; a step has the words that STEP names.
"""

from __future__ import annotations

from collections.abc import Mapping

from kernels.native.emit.builder import Function, Module, Value
from kernels.native.emit.types import I8, I32, I64, PTR
from kernels.native.memory.buffers import LINE_BYTES
from kernels.native.run.runtime import await_done, denormals_as_zero, finish, shares
from kernels.native.target.isa import Isa

ENTRY = "edgewise_walk"
# steps, step_count: the table. counters: a line for each step and thread, then one for each step, then one, zeroed before a run.
# scratch, scratch_bytes: of each thread. times, times_bytes: of each thread, three words a step: before the work, after it (as
# before, where the thread found none), and where it goes on; times is 0 where no clock is read. stop: address of a 32-bit word;
# from the moment that it is not 0, steps do no work.
HEADER: Mapping[str, int] = {
    name: at
    for at, name in enumerate(
        ("steps", "step_count", "counters", "scratch", "scratch_bytes", "times", "times_bytes", "stop")
    )
}  # fmt: skip
# function: address of a kernel. arguments: address of its words. chunks: all of its work. grain: chunks taken at a time.
# barrier: not 0 where a thread goes on only when this step is done, and all before it.
STEP: Mapping[str, int] = {name: at for at, name in enumerate(("function", "arguments", "chunks", "grain", "barrier"))}


def walk_ir(isa: Isa) -> str:
    """Return the IR of `void edgewise_walk(ptr table, i64 thread, i64 threads, ptr team)`, to be linked with the run-time."""
    module = Module(isa)
    with module.function(ENTRY, {"table": PTR, "thread": I64, "threads": I64, "team": PTR}) as (k, *arguments):
        table, thread, threads, team = arguments
        steps, counters, times, stop = (k.load(PTR, table, HEADER[name]) for name in ("steps", "counters", "times", "stop"))
        count, scratch_bytes, times_bytes = (
            k.load(I64, table, HEADER[name]) for name in ("step_count", "scratch_bytes", "times_bytes")
        )
        scratch = k.offset(k.load(PTR, table, HEADER["scratch"]), thread * scratch_bytes, I8)
        mine, is_timed = k.offset(times, thread * times_bytes, I8), k.is_not_null(times)
        finished = k.offset(counters, threads * (count * LINE_BYTES), I8)
        first, made = (k.op(f"alloca {I64.text}", PTR, name) for name in ("first", "made"))  # step to wait for; chunks made
        k.store(k.const(I64, 0), first)
        with k.when(is_timed, "timed"):
            there = k.offset(finished, count * LINE_BYTES, I8)
            finish(k, team, there, 1, threads)
            await_done(k, team, there, threads, stop)
        with denormals_as_zero(k), k.loop("step", 0, count) as n:
            step, stamps = k.offset(steps, n * len(STEP), I64), k.offset(mine, n * 3, I64)
            _stamp(k, is_timed, stamps, 0)
            k.store(k.const(I64, 0), made)
            with k.when(k.compare("eq", k.load_shared(I32, stop), 0), "work"):
                function, words = (k.load(PTR, step, STEP[name]) for name in ("function", "arguments"))
                chunks, grain = (k.load(I64, step, STEP[name]) for name in ("chunks", "grain"))
                counter = k.offset(counters, n * LINE_BYTES, I8)
                with shares(k, counter, count * LINE_BYTES, thread, threads, chunks, grain) as (begin, end):
                    k.call_at(function, words, scratch, begin, end)
                    k.store(k.load(I64, made) + (end - begin), made)
                with k.when(k.compare("ne", k.load(I64, made), 0), "some"):
                    finish(k, team, k.offset(finished, n * LINE_BYTES, I8), k.load(I64, made), chunks)
            _stamp(k, is_timed, stamps, 1)
            with k.when(is_timed & k.compare("eq", k.load(I64, made), 0), "none"):
                k.store(k.load(I64, stamps), stamps, 1)
            with k.when(k.compare("ne", k.load(I64, step, STEP["barrier"]), 0), "meet"):
                with k.loop("awaited", k.load(I64, first), n + 1) as m:
                    total = k.load(I64, k.offset(steps, m * len(STEP), I64), STEP["chunks"])
                    await_done(k, team, k.offset(finished, m * LINE_BYTES, I8), total, stop)
                k.store(n + 1, first)
            _stamp(k, is_timed, stamps, 2)
    return module.text


def _stamp(k: Function, is_timed: Value, stamps: Value, index: int) -> None:
    """Emit a reading of the clock into a word, where the run is timed."""
    counter = "llvm.readcyclecounter" if k.isa.arch == "x86_64" else "llvm.readsteadycounter"
    with k.when(is_timed, "stamp"):
        k.store(k.call(counter, I64), stamps, index)
