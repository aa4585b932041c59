"""Link small programs for a team of threads and run them on a thread pool."""

import numpy as np

from kernels.native.code.library import Library
from kernels.native.emit.builder import Module
from kernels.native.emit.types import I64, PTR
from kernels.native.memory.buffers import aligned
from kernels.native.run.runtime import barrier, runtime_ir
from kernels.native.target.isa import host_isa
from tests.kernels.native.compiled import object_code

SIGNATURE = {"arguments": PTR, "thread": I64, "threads": I64, "team": PTR}
WORDS = 16  # i64 words in a line of 128 bytes


class Program:
    """A linked program, and the memory of `words` i64 that it works on. The first words are the program's counters."""

    def __init__(self, body, words):
        isa = host_isa()
        module = Module(isa)
        with module.function("program", SIGNATURE) as (k, *arguments):
            body(k, *arguments)
        self.library = Library([object_code(module.text, isa), object_code(runtime_ir(isa), isa)], ["program"])
        self.memory = aligned(words * 8).view(np.int64)

    def run(self, pool, threads, counters=0):
        zeroed = self.memory[:counters] if counters else None
        pool.run(self.library.address("program"), self.memory.ctypes.data, threads, zeroed)


def lockstep(steps):
    """Return a body in which every thread writes the step's number to its line, and after a barrier reads the other lines.

    Word 0 counts the lines that hold another number.
    """

    def body(k, memory, thread, threads, team):
        with k.loop("step", 1, steps + 1) as step:
            k.store(step, memory, (thread + 1) * WORDS)
            barrier(k, team)
            with k.loop("other", 0, threads) as other:
                seen = k.load(I64, memory, (other + 1) * WORDS)
                with k.when(k.compare("ne", seen, step)):
                    k.fetch_add(memory, 1)
            barrier(k, team)

    return body
