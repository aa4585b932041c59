"""The native run-time that programs stand on: workers, the start and end of a run, and the barrier, as LLVM IR.

Everything waits the same way: on a 32-bit word that changes, with the number of sleepers in the word behind it. A waiter spins
a bounded number of times and then sleeps in the kernel (futex), so that more threads than cores make progress and idle workers
cost nothing. A thread that changes the word wakes sleepers only if there are any. Both sides access word and sleepers with
sequential consistency: either the waiter sees the new word, or the waker sees the sleeper.

Memory, in lines of 128 bytes since processors fetch lines in pairs:

    mailbox, one a worker:   0 word  4 sleepers  8 team  16 thread number (i64)  24 stop (i32)  28 spins (i32)
    team, one a run:         0 word "done"  4 sleepers  |  128 arrived at the barrier  |  256 word "generation"  260 sleepers
                             |  384 program  392 arguments  400 threads (i64)  408 spins (i32)  |  512 workers not done yet

A program is `void program(ptr arguments, i64 thread, i64 threads, ptr team)`. Its objects are linked with `runtime_ir`'s, and it
may call `void edgewise_barrier(ptr team)`, which every thread of the team must reach equally often.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from kernels.native.emit.builder import Function, Operand, Value
from kernels.native.emit.types import I8, I32, I64, PTR, VOID
from kernels.native.memory.buffers import LINE_BYTES
from kernels.native.target.isa import Isa

MAILBOX_BYTES = LINE_BYTES
TEAM_BYTES = 5 * LINE_BYTES
MAILBOX = {"team": 8, "thread": 16, "stop": 24, "spins": 28}  # byte offsets
TEAM = {"program": 384, "arguments": 392, "threads": 400, "spins": 408}

_FUTEX_NUMBER = {"x86_64": 202, "aarch64": 98}
_PAUSE = {
    "x86_64": ("declare void @llvm.x86.sse2.pause()", "call void @llvm.x86.sse2.pause()"),
    "aarch64": ("declare void @llvm.aarch64.hint(i32)", "call void @llvm.aarch64.hint(i32 1)"),
}

_MXCSR_FTZ_DAZ, _FPCR_FZ = 0x8040, 1 << 24  # bits of the control registers

_FUTEX = """\
declare i64 @syscall(i64, ...)
define internal void @sleep(ptr %word, i32 %old) #0 {
  call i64 (i64, ...) @syscall(i64 NUMBER, ptr %word, i64 128, i32 %old, ptr null, ptr null, i64 0)
  ret void
}
define internal void @wake(ptr %word) #0 {
  call i64 (i64, ...) @syscall(i64 NUMBER, ptr %word, i64 129, i32 2147483647, ptr null, ptr null, i64 0)
  ret void
}
"""

_COMMON = """\
; Return once the word is no longer `old`.
define internal void @wait(ptr %word, i32 %old, i32 %spins) #0 {
entry:
  %sleepers = getelementptr i8, ptr %word, i64 4
  br label %look
look:
  %turn = phi i32 [ 0, %entry ], [ %turn.next, %again ]
  %now = load atomic i32, ptr %word acquire, align 4
  %changed = icmp ne i32 %now, %old
  br i1 %changed, label %end, label %stay
stay:
  %patient = icmp ult i32 %turn, %spins
  br i1 %patient, label %spin, label %doze
spin:
  PAUSE
  %turned = add i32 %turn, 1
  br label %again
doze:
  %q0 = atomicrmw add ptr %sleepers, i32 1 seq_cst
  call void @sleep(ptr %word, i32 %old)
  %q1 = atomicrmw sub ptr %sleepers, i32 1 seq_cst
  br label %again
again:
  %turn.next = phi i32 [ %turned, %spin ], [ %turn, %doze ]
  br label %look
end:
  ret void
}

; Change the word and wake the threads that sleep on it.
define internal void @signal(ptr %word, i32 %new) #0 {
entry:
  %sleepers = getelementptr i8, ptr %word, i64 4
  store atomic i32 %new, ptr %word seq_cst, align 4
  %asleep = load atomic i32, ptr %sleepers seq_cst, align 4
  %none = icmp eq i32 %asleep, 0
  br i1 %none, label %end, label %call
call:
  call void @wake(ptr %word)
  br label %end
end:
  ret void
}

; The last thread to arrive opens the barrier for the others; the generation tells one barrier from the next.
define void @edgewise_barrier(ptr %team) #0 {
entry:
  %threads.at = getelementptr i8, ptr %team, i64 400
  %arrived = getelementptr i8, ptr %team, i64 128
  %generation = getelementptr i8, ptr %team, i64 256
  %threads = load i32, ptr %threads.at, align 4
  %alone = icmp ule i32 %threads, 1
  br i1 %alone, label %end, label %arrive
arrive:
  %old = load atomic i32, ptr %generation acquire, align 4
  %before = atomicrmw add ptr %arrived, i32 1 acq_rel
  %count = add i32 %before, 1
  %new = add i32 %old, 1
  %last = icmp eq i32 %count, %threads
  br i1 %last, label %open, label %stand
open:
  store atomic i32 0, ptr %arrived monotonic, align 4
  call void @signal(ptr %generation, i32 %new)
  ret void
stand:
  %spins.at = getelementptr i8, ptr %team, i64 408
  %spins = load i32, ptr %spins.at, align 4
  call void @wait(ptr %generation, i32 %old, i32 %spins)
  ret void
end:
  ret void
}

define internal void @perform(ptr %team, i64 %thread) #0 {
  %program.at = getelementptr i8, ptr %team, i64 384
  %arguments.at = getelementptr i8, ptr %team, i64 392
  %threads.at = getelementptr i8, ptr %team, i64 400
  %program = load ptr, ptr %program.at, align 8
  %arguments = load ptr, ptr %arguments.at, align 8
  %threads = load i64, ptr %threads.at, align 8
  call void %program(ptr %arguments, i64 %thread, i64 %threads, ptr %team)
  ret void
}

; A worker's life: wait for mail, run its share, say so; until told to stop.
define void @edgewise_worker(ptr %box) #0 {
entry:
  %team.at = getelementptr i8, ptr %box, i64 8
  %thread.at = getelementptr i8, ptr %box, i64 16
  %stop.at = getelementptr i8, ptr %box, i64 24
  %spins.at = getelementptr i8, ptr %box, i64 28
  br label %idle
idle:
  %seen = phi i32 [ 0, %entry ], [ %mail, %work ], [ %mail, %last ]
  %spins = load atomic i32, ptr %spins.at monotonic, align 4
  call void @wait(ptr %box, i32 %seen, i32 %spins)
  %mail = load atomic i32, ptr %box acquire, align 4
  %stop = load atomic i32, ptr %stop.at monotonic, align 4
  %stops = icmp ne i32 %stop, 0
  br i1 %stops, label %end, label %work
work:
  %team = load ptr, ptr %team.at, align 8
  %thread = load i64, ptr %thread.at, align 8
  call void @perform(ptr %team, i64 %thread)
  %left.at = getelementptr i8, ptr %team, i64 512
  %left = atomicrmw sub ptr %left.at, i32 1 acq_rel
  %is.last = icmp eq i32 %left, 1
  br i1 %is.last, label %last, label %idle
last:
  %done = load atomic i32, ptr %team monotonic, align 4
  %done.next = add i32 %done, 1
  call void @signal(ptr %team, i32 %done.next)
  br label %idle
end:
  ret void
}

; Send mail to one worker.
define void @edgewise_post(ptr %box) #0 {
  %mail = load atomic i32, ptr %box monotonic, align 4
  %next = add i32 %mail, 1
  call void @signal(ptr %box, i32 %next)
  ret void
}

; Run the team's program on this thread and on one worker per mailbox; return when all are done. Counters start at zero.
define void @edgewise_run(ptr %team, ptr %boxes, i64 %workers, ptr %counters, i64 %counter.bytes) #0 {
entry:
  call void @llvm.memset.p0.i64(ptr align 8 %counters, i8 0, i64 %counter.bytes, i1 false)
  %done = load atomic i32, ptr %team acquire, align 4
  %alone = icmp eq i64 %workers, 0
  br i1 %alone, label %single, label %start
single:
  call void @perform(ptr %team, i64 0)
  ret void
start:
  %left.at = getelementptr i8, ptr %team, i64 512
  %workers.32 = trunc i64 %workers to i32
  store atomic i32 %workers.32, ptr %left.at release, align 4
  br label %send
send:
  %n = phi i64 [ 0, %start ], [ %n.next, %send ]
  %box.at = getelementptr ptr, ptr %boxes, i64 %n
  %box = load ptr, ptr %box.at, align 8
  %n.next = add i64 %n, 1
  %team.at = getelementptr i8, ptr %box, i64 8
  %thread.at = getelementptr i8, ptr %box, i64 16
  store ptr %team, ptr %team.at, align 8
  store i64 %n.next, ptr %thread.at, align 8
  call void @edgewise_post(ptr %box)
  %more = icmp ult i64 %n.next, %workers
  br i1 %more, label %send, label %share
share:
  call void @perform(ptr %team, i64 0)
  %spins.at = getelementptr i8, ptr %team, i64 408
  %spins = load i32, ptr %spins.at, align 4
  call void @wait(ptr %team, i32 %done, i32 %spins)
  ret void
}
declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)
"""


def runtime_ir(isa: Isa) -> str:
    """Return the IR that every program is linked with."""
    declaration, pause = _PAUSE[isa.arch]
    sleeping = _FUTEX.replace("NUMBER", str(_FUTEX_NUMBER[isa.arch]))
    target = f'target triple = "{isa.triple}"\nattributes #0 = {{ nounwind "target-cpu"="{isa.cpu}" }}\n'
    return "\n".join((target, declaration, sleeping, _COMMON.replace("PAUSE", pause)))


@contextmanager
def denormals_as_zero(k: Function) -> Iterator[None]:
    """Emit a body in which denormal fp32 and fp64 numbers count as 0, and restore the thread's own mode after it.

    The reasons are in docs/decisions/0004-denormals.md.
    """
    if k.isa.arch == "aarch64":
        mode = k.call("llvm.aarch64.get.fpcr", I64)
        k.call("llvm.aarch64.set.fpcr", VOID, mode | _FPCR_FZ)
        yield
        k.call("llvm.aarch64.set.fpcr", VOID, mode)
        return
    before, inside = (k.op(f"alloca {I32.text}", PTR, name) for name in ("before", "inside"))
    k.call("llvm.x86.sse.stmxcsr", VOID, before)
    k.store(k.load(I32, before) | _MXCSR_FTZ_DAZ, inside)
    k.call("llvm.x86.sse.ldmxcsr", VOID, inside)
    yield
    k.call("llvm.x86.sse.ldmxcsr", VOID, before)


def barrier(k: Function, team: Value) -> None:
    """Emit a barrier: every thread of the team waits for the others, and afterwards sees everything they wrote before it."""
    k.module.declare("edgewise_barrier", VOID, (team.type,))
    k.call("edgewise_barrier", VOID, team)


@contextmanager
def shares(
    k: Function, counters: Value, apart_bytes: Operand, thread: Value, threads: Value, total: Operand, grain: Operand = 1
) -> Iterator[tuple[Value, Value]]:
    """Emit a loop over `total` chunks, [begin, end) of at most `grain` at a time, which a team shares by work stealing.

    A thread takes the chunks of its own share first, which are consecutive, and then helps with the shares of others.

    A step thus finds in its core's cache what that core wrote in the step before, as long as the cores keep pace.
    counters: address of the first thread's i64 for this loop, zeroed before the run; the next thread's is `apart_bytes` behind.
    """
    with k.loop("owner", 0, threads) as turn:
        owner = (thread + turn) % threads
        first, behind = owner * total // threads, (owner + 1) * total // threads
        count = behind - first
        counter = k.offset(counters, owner * apart_bytes, I8)
        with k.repeat("chunk") as leave_if:
            taken = k.fetch_add(counter, grain)
            leave_if(taken >= count)
            begin = first + taken
            end = begin + grain
            yield begin, k.select(end < behind, end, behind)
