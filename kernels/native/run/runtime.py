"""The native run-time that programs stand on: workers, the start and end of a run, and waiting for work, as LLVM IR.

Everything waits the same way: on a 32-bit word that changes, with the number of sleepers in the word behind it. A waiter spins
a bounded number of times and then sleeps in the kernel (futex), so that more threads than cores make progress and idle workers
cost nothing. A thread that changes the word wakes sleepers only if there are any. Both sides access word and sleepers with
sequential consistency: either the waiter sees the new word, or the waker sees the sleeper.

Memory, in lines of 128 bytes since processors fetch lines in pairs:

    mailbox, one a worker:   0 word  4 sleepers  8 team  16 thread number (i64)  24 stop (i32)  28 spins (i32)  32 ticket (i32)
    team, one a run:         0 word "done"  4 sleepers  |  128 word "progress"  132 sleepers
                             |  256 program  264 arguments  272 threads (i64)  280 spins (i32)  |  384 workers not done yet

A program is `void program(ptr arguments, i64 thread, i64 threads, ptr team)`. Its objects are linked with `runtime_ir`'s. Threads
wait for work and never for one another: `edgewise_finish` says that some of it is done, `edgewise_await` returns once all is. So
a thread that the system does not run delays a team by the work that it has begun and no more, and a worker that has not woken up
when all work is done is not waited for: its ticket is taken back.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from kernels.native.emit.builder import Function, Operand, Value
from kernels.native.emit.types import I8, I32, I64, PTR, VOID
from kernels.native.memory.buffers import LINE_BYTES
from kernels.native.target.isa import Isa

MAILBOX_BYTES = LINE_BYTES
TEAM_BYTES = 4 * LINE_BYTES
MAILBOX = {"team": 8, "thread": 16, "stop": 24, "spins": 28}  # byte offsets
TEAM = {"program": 256, "arguments": 264, "threads": 272, "spins": 280}

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

; Count work as done, and wake the threads that wait for it once all of it is.
define void @edgewise_finish(ptr %team, ptr %done, i64 %count, i64 %total) #0 {
entry:
  %before = atomicrmw add ptr %done, i64 %count seq_cst
  %after = add i64 %before, %count
  %complete = icmp eq i64 %after, %total
  br i1 %complete, label %look, label %end
look:
  %sleepers.at = getelementptr i8, ptr %team, i64 132
  %sleepers = load atomic i32, ptr %sleepers.at seq_cst, align 4
  %none = icmp eq i32 %sleepers, 0
  br i1 %none, label %end, label %call
call:
  %progress = getelementptr i8, ptr %team, i64 128
  %was = atomicrmw add ptr %progress, i32 1 seq_cst
  call void @wake(ptr %progress)
  br label %end
end:
  ret void
}

; Return once all work is done, or the run is stopped. What the others wrote before they finished is seen then. All of the work
; must have been taken, so that it will be done.
define void @edgewise_await(ptr %team, ptr %done, i64 %total, ptr %stop) #0 {
entry:
  %progress = getelementptr i8, ptr %team, i64 128
  %sleepers = getelementptr i8, ptr %team, i64 132
  %spins.at = getelementptr i8, ptr %team, i64 280
  %spins = load i32, ptr %spins.at, align 4
  br label %look
look:
  %turn = phi i32 [ 0, %entry ], [ %turned, %spin ], [ %turn, %rise ]
  %now = load atomic i64, ptr %done acquire, align 8
  %complete = icmp eq i64 %now, %total
  br i1 %complete, label %end, label %ask
ask:
  %stopped = load atomic i32, ptr %stop monotonic, align 4
  %stops = icmp ne i32 %stopped, 0
  br i1 %stops, label %end, label %stay
stay:
  %patient = icmp ult i32 %turn, %spins
  br i1 %patient, label %spin, label %doze
spin:
  PAUSE
  %turned = add i32 %turn, 1
  br label %look
doze:
  %old = load atomic i32, ptr %progress seq_cst, align 4
  %q0 = atomicrmw add ptr %sleepers, i32 1 seq_cst
  %later = load atomic i64, ptr %done seq_cst, align 8
  %ready = icmp eq i64 %later, %total
  br i1 %ready, label %rise, label %lie
lie:
  call void @sleep(ptr %progress, i32 %old)
  br label %rise
rise:
  %q1 = atomicrmw sub ptr %sleepers, i32 1 seq_cst
  br label %look
end:
  ret void
}

define internal void @perform(ptr %team, i64 %thread) #0 {
  %program.at = getelementptr i8, ptr %team, i64 256
  %arguments.at = getelementptr i8, ptr %team, i64 264
  %threads.at = getelementptr i8, ptr %team, i64 272
  %program = load ptr, ptr %program.at, align 8
  %arguments = load ptr, ptr %arguments.at, align 8
  %threads = load i64, ptr %threads.at, align 8
  call void %program(ptr %arguments, i64 %thread, i64 %threads, ptr %team)
  ret void
}

; A worker's life: wait for mail, take the ticket, run its share, say so; until told to stop. A ticket may have been taken back.
define void @edgewise_worker(ptr %box) #0 {
entry:
  %team.at = getelementptr i8, ptr %box, i64 8
  %thread.at = getelementptr i8, ptr %box, i64 16
  %stop.at = getelementptr i8, ptr %box, i64 24
  %spins.at = getelementptr i8, ptr %box, i64 28
  br label %idle
idle:
  %seen = phi i32 [ 0, %entry ], [ %mail, %begin ], [ %mail, %work ], [ %mail, %last ]
  %spins = load atomic i32, ptr %spins.at monotonic, align 4
  call void @wait(ptr %box, i32 %seen, i32 %spins)
  %mail = load atomic i32, ptr %box acquire, align 4
  %stop = load atomic i32, ptr %stop.at monotonic, align 4
  %stops = icmp ne i32 %stop, 0
  br i1 %stops, label %end, label %begin
begin:
  %ticket.at = getelementptr i8, ptr %box, i64 32
  %ticket = cmpxchg ptr %ticket.at, i32 1, i32 0 acq_rel acquire
  %taken = extractvalue { i32, i1 } %ticket, 1
  br i1 %taken, label %work, label %idle
work:
  %team = load ptr, ptr %team.at, align 8
  %thread = load i64, ptr %thread.at, align 8
  call void @perform(ptr %team, i64 %thread)
  %left.at = getelementptr i8, ptr %team, i64 384
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

; Run the team's program on this thread and on one worker per mailbox; return when all that began are done. Counters start at
; zero.
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
  %left.at = getelementptr i8, ptr %team, i64 384
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
  %ticket.at = getelementptr i8, ptr %box, i64 32
  store atomic i32 1, ptr %ticket.at release, align 4
  call void @edgewise_post(ptr %box)
  %more = icmp ult i64 %n.next, %workers
  br i1 %more, label %send, label %share
share:
  call void @perform(ptr %team, i64 0)
  br label %revoke
revoke:
  %m = phi i64 [ 0, %share ], [ %m.next, %revoke ]
  %revoked = phi i32 [ 0, %share ], [ %revoked.next, %revoke ]
  %late.at = getelementptr ptr, ptr %boxes, i64 %m
  %late = load ptr, ptr %late.at, align 8
  %late.ticket = getelementptr i8, ptr %late, i64 32
  %pair = cmpxchg ptr %late.ticket, i32 1, i32 0 acq_rel acquire
  %got = extractvalue { i32, i1 } %pair, 1
  %got.32 = zext i1 %got to i32
  %revoked.next = add i32 %revoked, %got.32
  %m.next = add i64 %m, 1
  %others = icmp ult i64 %m.next, %workers
  br i1 %others, label %revoke, label %count
count:
  %before = atomicrmw sub ptr %left.at, i32 %revoked.next acq_rel
  %all = icmp eq i32 %before, %revoked.next
  br i1 %all, label %settled, label %stay
settled:
  %any = icmp eq i32 %revoked.next, 0
  br i1 %any, label %stay, label %end
stay:
  %spins.at = getelementptr i8, ptr %team, i64 280
  %spins = load i32, ptr %spins.at, align 4
  call void @wait(ptr %team, i32 %done, i32 %spins)
  br label %end
end:
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


def finish(k: Function, team: Value, done: Value, count: Operand, total: Operand) -> None:
    """Emit that `count` of `total` pieces of work are done. done: address of the i64 that counts them, zeroed before the run."""
    k.module.declare("edgewise_finish", VOID, (PTR, PTR, I64, I64))
    k.call("edgewise_finish", VOID, team, done, k.coerce(count, I64), k.coerce(total, I64))


def await_done(k: Function, team: Value, done: Value, total: Operand, stop: Value) -> None:
    """Emit a wait for all pieces of work, which threads have begun; afterwards this thread sees what they wrote.

    stop: address of a 32-bit word that ends the wait once it is not 0.
    """
    k.module.declare("edgewise_await", VOID, (PTR, PTR, I64, PTR))
    k.call("edgewise_await", VOID, team, done, k.coerce(total, I64), stop)


@contextmanager
def shares(
    k: Function, counters: Value, apart_bytes: Operand, thread: Value, threads: Value, total: Operand, grain: Operand = 1
) -> Iterator[tuple[Value, Value]]:
    """Emit a loop over `total` chunks, [begin, end) of at most `grain` at a time, which a team shares by work stealing.

    A thread takes the chunks of its own share first, which are consecutive, and then helps with the shares of others.

    A step thus finds in its core's cache what that core wrote in the step before, as long as the cores keep pace. Where the loop
    ends, all chunks are taken.
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
