"""Whether this machine was quiet while something was measured, or busy with other work, and what shows it.

A `Watch` begins before a measurement, and says after it what it saw. A time that was taken on a busy machine is as much that of
the queue for a core as that of the code: it is measured again, or not stored (`when_busy`). Each sign has two limits. From the
first on, the machine was *disturbed*: the fastest of several runs still holds, and their spread says how well. From the second on
it was *busy*.

Signs: the share of time that this process' threads could run and waited for a core (the scheduler's own account, on Linux), cores
that other processes used, CPU time that the hypervisor gave to other machines, a fixed piece of arithmetic before and after, and
how far the median of the measured runs lies above the fastest.
"""

from __future__ import annotations

import hashlib
import os
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal, cast, get_args

import psutil

from kernels.record import record
from profiler.device.topology import Record, core_cpus
from profiler.errors import MachineBusyError, MeasurementError

if sys.platform != "win32":
    import resource

Level = Literal["quiet", "disturbed", "busy"]
LEVELS: Final[tuple[Level, ...]] = get_args(Level)
WhenBusy = Literal["refuse", "store"]

WHEN_BUSY: Final = "EDGEWISE_WHEN_BUSY"
LIMITS: Final = {  # sign: shares of the time that are lost from which on a machine is disturbed, and busy
    "waiting": (0.08, 0.20),
    "load": (0.10, 0.30),
    "steal": (0.02, 0.15),
    "loop": (0.15, 0.45),
    "runs": (0.30, 0.60),
}
LEAST_S: Final = 0.3  # of a watch whose load and steal say anything: the system counts them in steps of 10 ms
LEAST_RUNS: Final = 5
LEAST_RUN_NS: Final = 50_000.0  # shorter runs vary by the steps of the clock and by single interrupts
_LOOP_BYTES: Final = bytes(1 << 16)
_LOOP_TURNS: Final = 100


class Quietness(Record):
    """What a watch saw. reasons: the signs above their limits, the worst first. lost: share of the time, by the worst sign."""

    level: Level = "quiet"
    reasons: tuple[str, ...] = ()
    lost: float = 0.0

    @property
    def text(self) -> str:
        """One sentence: "the machine was busy: other processes used 1.9 of 2 cores"; "" where it was quiet."""
        return f"the machine was {self.level}: {'; '.join(self.reasons)}" if self.reasons else ""

    def or_worse(self, other: Quietness) -> Quietness:
        """Return the worse of two."""
        return max(self, other, key=lambda each: (LEVELS.index(each.level), each.lost))


def when_busy() -> WhenBusy:
    """Return what to do with times taken on a busy machine, as EDGEWISE_WHEN_BUSY says.

    "refuse", the default: measure again, then store nothing. "store": store them at once, with a mark.
    Raises: MeasurementError for any other value.
    """
    value = os.environ.get(WHEN_BUSY) or "refuse"
    if value in get_args(WhenBusy):
        return cast("WhenBusy", value)
    raise MeasurementError(f"{WHEN_BUSY}: {value!r} is refused, need one of {', '.join(get_args(WhenBusy))}")


def refused(seen: Quietness | None) -> bool:
    """Return whether times taken meanwhile are to be measured again, and not to be stored. None: the machine was not watched."""
    return seen is not None and seen.level == "busy" and when_busy() == "refuse"


def require_quiet(what: str, seen: Quietness | None) -> None:
    """Raise MachineBusyError where times taken meanwhile are refused. what: was measured, for the message."""
    if seen is not None and refused(seen):
        raise MachineBusyError(
            f"{what}: {seen.text}; nothing was stored, measure again when the other work has ended"
            f" (or with {WHEN_BUSY}=store, which stores such times with a mark)"
        )


@record
class Counters:
    """What the system has counted so far, in seconds.

    own: CPU time of this process. waited: time that its threads could run and had no core; None where the system does not say.
    interrupted: times that a thread had to give up its core. busy, stolen: CPU time of all processes, and of other machines on
    the same host, on the CPUs that this process may use; at a lower priority than this process' counts as idle.
    """

    at: float
    own: float
    waited: float | None
    interrupted: int
    busy: float
    stolen: float
    cpus: int

    @staticmethod
    def now() -> Counters:
        """Read the counters."""
        own = os.times()
        allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
        every = [times for cpu, times in enumerate(psutil.cpu_times(percpu=True)) if allowed is None or cpu in allowed]
        names = ("user", "system", "irq", "softirq", *(("nice",) if hasattr(os, "nice") and os.nice(0) > 0 else ()))
        return Counters(
            at=time.monotonic(),
            own=own.user + own.system,
            waited=_waited_s(),
            interrupted=0 if sys.platform == "win32" else resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw,
            busy=sum(getattr(times, name, 0.0) for times in every for name in names),
            stolen=sum(getattr(times, "steal", 0.0) for times in every),
            cpus=len(every),
        )


class Watch:
    """Watches the machine from its making on.

    Args: threads: that the measurement keeps busy. loop: time the fixed arithmetic too. after: the watch before this one. Where
          it began a moment ago, load and steal are judged from there on, since the system counts them in steps.
    """

    def __init__(self, threads: int, *, loop: bool = True, after: Watch | None = None) -> None:
        self._threads = threads
        self._loop = _loop_ns() if loop else []
        self._began = self._earlier = Counters.now()
        if after is not None and self._began.at - after._earlier.at < 2 * LEAST_S:
            self._earlier = after._earlier

    def seen(self, runs_ns: Sequence[float] = ()) -> Quietness:
        """Return what was seen until now. runs_ns: of the measured runs, which all did the same."""
        now = Counters.now()
        after = _loop_ns() if self._loop else []
        return judge(self._earlier, self._began, now, self._threads, len(core_cpus()), [*self._loop, *after], runs_ns)


def await_quiet(threads: int, seconds: float) -> Quietness:
    """Wait until other processes leave that many cores free, at most that long. Returns what was seen last.

    It takes LEAST_S on a quiet machine, and no time where times of a busy one are stored.
    """
    ends = time.monotonic() + seconds
    while True:
        if when_busy() == "store":
            return Quietness()
        watch = Watch(threads, loop=False)
        time.sleep(LEAST_S)
        if not refused(seen := watch.seen()) or time.monotonic() >= ends:
            return seen


def judge(
    earlier: Counters,
    began: Counters,
    ended: Counters,
    threads: int,
    cores: int,
    loop_ns: Sequence[float],
    runs_ns: Sequence[float],
) -> Quietness:
    """Judge what readings of the counters, the fixed arithmetic and the measured runs say.

    Args: earlier: from when on load and steal are judged, which need LEAST_S. began, ended: of the measurement. threads: that it
          kept busy. cores: that this process may use.
    """
    seconds = ended.at - earlier.at
    signs: list[tuple[str, float, str]] = []
    if began.waited is not None and ended.waited is not None:
        waited = max(0.0, ended.waited - began.waited)
        share = waited / max(ended.own - began.own + waited, 1e-9)
        times = ended.interrupted - began.interrupted
        said = f"its threads waited for a core {share:.0%} of the time and were interrupted {times} times"
        signs.append(("waiting", share, said))
    if seconds >= LEAST_S:
        others = max(0.0, ended.busy - earlier.busy - (ended.own - earlier.own)) / seconds
        missing = max(0.0, threads + others - cores) / threads
        signs.append(("load", missing, f"other processes used {min(others, cores):.1f} of {cores} cores"))
        stolen = (ended.stolen - earlier.stolen) / (seconds * ended.cpus)
        signs.append(("steal", stolen, f"the hypervisor gave {stolen:.0%} of the CPU time to other machines"))
    if loop_ns:
        times_slower = statistics.fmean(loop_ns) / min(loop_ns)
        signs.append(("loop", 1 - 1 / times_slower, f"a fixed loop took {times_slower:.1f} times its fastest run on average"))
    if len(runs_ns) >= LEAST_RUNS and min(runs_ns) >= LEAST_RUN_NS:
        slower = statistics.median(runs_ns) / min(runs_ns)
        signs.append(("runs", 1 - 1 / slower, f"the median run took {slower:.1f} times the fastest"))
    return _verdict(signs)


def _verdict(signs: Sequence[tuple[str, float, str]]) -> Quietness:
    above = sorted(
        ((sum(share >= limit for limit in LIMITS[name]), share, said) for name, share, said in signs), key=lambda sign: sign[:2]
    )[::-1]
    reasons = tuple(said for reached, _, said in above if reached)
    return Quietness(level=LEVELS[above[0][0]], reasons=reasons, lost=above[0][1]) if reasons else Quietness()


def _waited_s(root: Path = Path("/proc/self/task")) -> float | None:
    """Return how long this process' threads have waited in the run queues of the system; None where it does not say."""
    total, found = 0, False
    for path in root.glob("*/schedstat"):
        try:
            total += int(path.read_text().split()[1])
            found = True
        except (OSError, IndexError):  # the thread has ended
            continue
    return total / 1e9 if found else None


def _loop_ns() -> list[float]:
    """Time the fixed arithmetic: a hash of 64 KiB, which no cache, weight or other thread of this process has a part in."""
    taken: list[float] = []
    for _ in range(_LOOP_TURNS):
        began = time.perf_counter_ns()
        hashlib.sha256(_LOOP_BYTES).digest()
        taken.append(time.perf_counter_ns() - began)
    return taken
