"""Link small programs for a team of threads and run them on a thread pool."""

import numpy as np

from kernels.native.code.library import Library
from kernels.native.emit.builder import Module
from kernels.native.emit.types import I64, PTR
from kernels.native.memory.buffers import aligned
from kernels.native.run.runtime import await_done, finish, runtime_ir
from kernels.native.target.isa import host_isa
from tests.kernels.native.compiled import object_code

SIGNATURE = {"arguments": PTR, "thread": I64, "threads": I64, "team": PTR}
WORDS = 16  # i64 words in a line of 128 bytes


class Program:
    """A linked program, and the memory of `words` i64 that it works on. The first `zeroed` are zeroed before each run."""

    def __init__(self, body, words, zeroed=0):
        self.zeroed = zeroed
        isa = host_isa()
        module = Module(isa)
        with module.function("program", SIGNATURE) as (k, *arguments):
            body(k, *arguments)
        self.library = Library([object_code(module.text, isa), object_code(runtime_ir(isa), isa)], ["program"])
        self.memory = aligned(words * 8).view(np.int64)

    def run(self, pool, threads):
        begin = self.memory.ctypes.data
        pool.run(self.library.address("program"), begin, threads, (begin, 8 * self.zeroed))


def meet(k, memory, number, threads, team):
    """Emit a wait of every thread for all others. number: of the meeting; its line of memory counts the threads, from 0 on."""
    arrived = k.offset(memory, number * WORDS, I64)
    finish(k, team, arrived, 1, threads)
    await_done(k, team, arrived, threads, k.offset(memory, STOP, I64))


STOP = WORDS - 1  # a word of the first line that is never written


def lockstep(steps, threads):
    """Return a program for up to so many threads: each writes the step's number to its line, meets the others and reads theirs.

    Word 0 counts the lines that hold another number. Two lines a step, behind those of threads, count who came.
    """

    def body(k, memory, thread, threads, team):
        meetings = k.offset(memory, (threads + 1) * WORDS, I64)
        with k.loop("step", 1, steps + 1) as step:
            k.store(step, memory, (thread + 1) * WORDS)
            meet(k, meetings, step * 2 - 2, threads, team)
            with k.loop("other", 0, threads) as other:
                seen = k.load(I64, memory, (other + 1) * WORDS)
                with k.when(k.compare("ne", seen, step)):
                    k.fetch_add(memory, 1)
            meet(k, meetings, step * 2 - 1, threads, team)

    words = (threads + 1 + 2 * steps) * WORDS
    return Program(body, words, words)
