"""Fixed costs (reading the clock, calling native code or numpy, waking a thread), and how steady the machine is."""

from __future__ import annotations

import ctypes
import platform
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import psutil
from pydantic import Field

from kernels.confinement import cgroup_folders, read_text
from profiler.device.measure import Effort, Figure, summarise
from profiler.device.probe.loops import Compiled
from profiler.device.probe.peaks import aligned_bytes
from profiler.device.quiet import Quietness, Watch
from profiler.device.topology import Record

_CALLS = 200  # timed together, so that reading the clock is a small part


class Overheads(Record):
    """Fixed costs in nanoseconds.

    timer_resolution: smallest step of the clock seen. timer_call: reading it. native_call: an empty native function through
    ctypes. numpy_call: a ufunc on one element. thread_handoff: waking another Python thread and hearing back, halved.
    """

    timer_resolution: Figure
    timer_call: Figure
    native_call: Figure
    numpy_call: Figure
    thread_handoff: Figure


class Stability(Record):
    """How much the time of one loop varied.

    jitter: spread of many short runs of one loop (0 is a quiet machine). drift_percent: how much slower (+) or faster (−) that
    loop ran at the end of the probe than at its beginning. steal_percent: CPU time that the hypervisor gave to other machines,
    None where the system does not tell. throttled: times the cgroup's CPU quota stopped the process meanwhile. quietness: whether
    other work used the machine.
    """

    jitter: Figure
    drift_percent: float
    steal_percent: float | None = None
    throttled: int | None = Field(default=None, ge=0)
    quietness: Quietness = Quietness()


class Conditions(Record):
    """The state of the machine while it was probed; no part of the fingerprint."""

    governor: str | None = Field(default=None, max_length=50)
    load_average: float | None = Field(default=None, ge=0)
    temperature_celsius: float | None = None
    memory_available_bytes: int = Field(ge=0)
    os_release: str = Field(max_length=200)
    python: str = Field(max_length=50)
    numpy: str = Field(max_length=50)
    blas: str = Field(max_length=200)
    llvm: str = Field(max_length=50)


def measure_overheads(compiled: Compiled, effort: Effort) -> Overheads:
    """Measure every fixed cost, which takes about `effort.window_s` × `effort.repeats` × 5 in all."""
    nothing, memory = compiled.nothing(), aligned_bytes(64).ctypes.data
    one = np.ones(1, np.float32)
    return Overheads(
        timer_resolution=_timer_resolution(effort),
        timer_call=_per_call(time.perf_counter_ns, "time.perf_counter_ns()", effort),
        native_call=_per_call(lambda: nothing(0, memory), "an empty native function of two arguments through ctypes", effort),
        numpy_call=_per_call(lambda: np.multiply(one, one, out=one), "numpy.multiply of one float32 into place", effort),
        thread_handoff=_thread_handoff(effort),
    )


def _timer_resolution(effort: Effort) -> Figure:
    ends = time.perf_counter_ns() + round(effort.window_s * 1e9)
    steps: list[float] = []
    last = time.perf_counter_ns()
    while last < ends or not steps:
        now = time.perf_counter_ns()
        if now > last:
            steps.append(now - last)
        last = now
    return summarise(steps, "ns", "min", "smallest difference of consecutive time.perf_counter_ns()")


def _per_call(call: Callable[[], object], what: str, effort: Effort) -> Figure:
    samples: list[float] = []
    ends = time.perf_counter_ns() + round(effort.window_s * effort.repeats * 1e9)
    while not samples or time.perf_counter_ns() < ends:
        start = time.perf_counter_ns()
        for _ in range(_CALLS):
            call()
        samples.append((time.perf_counter_ns() - start) / _CALLS)
    return summarise(samples, "ns", "median", f"{what}, {_CALLS} calls timed together, the loop included")


def _thread_handoff(effort: Effort) -> Figure:
    ask, answer, stop = threading.Semaphore(0), threading.Semaphore(0), threading.Event()

    def echo() -> None:
        while True:
            ask.acquire()
            if stop.is_set():
                return
            answer.release()

    other = threading.Thread(target=echo, daemon=True)
    other.start()
    samples: list[float] = []
    ends = time.perf_counter_ns() + round(effort.window_s * effort.repeats * 1e9)
    while not samples or time.perf_counter_ns() < ends:
        start = time.perf_counter_ns()
        ask.release()
        answer.acquire()
        samples.append((time.perf_counter_ns() - start) / 2)
    stop.set()
    ask.release()
    other.join()
    return summarise(samples, "ns", "median", "semaphore round trip between two Python threads, halved")


class StabilityWatch:
    """Times one arithmetic loop at the beginning and at the end of a probe, and watches the machine in between.

    threads: that the probe keeps busy at most.
    """

    def __init__(self, compiled: Compiled, effort: Effort, threads: int, root: Path = Path("/")) -> None:
        self._watch = Watch(threads)
        self._function = compiled.peak(compiled.peaks[0])
        self._memory = aligned_bytes(3 * 64)
        self._turns = ctypes.c_int64(20_000)
        self._runs = max(10, effort.repeats * 4)
        self._root = root
        self._steal_start = _steal_and_total()
        self._throttled_start = _throttled(root)
        self._first = self._sample()

    def finish(self) -> Stability:
        """Time the loop again and compare."""
        last = self._sample()
        steal = None
        now = _steal_and_total()
        if now is not None and self._steal_start is not None and now[1] > self._steal_start[1]:
            steal = 100 * (now[0] - self._steal_start[0]) / (now[1] - self._steal_start[1])
        throttled = _throttled(self._root)
        before, after = statistics.median(self._first), statistics.median(last)
        return Stability(
            jitter=summarise(
                [*self._first, *last], "ns", "median", "the same arithmetic loop, half before and half after the probe"
            ),
            drift_percent=100 * (after - before) / before,
            steal_percent=steal,
            throttled=None if throttled is None or self._throttled_start is None else throttled - self._throttled_start,
            quietness=self._watch.seen(),
        )

    def _sample(self) -> Sequence[float]:
        samples: list[float] = []
        for _ in range(self._runs):
            start = time.perf_counter_ns()
            self._function(self._turns, self._memory.ctypes.data)
            samples.append(time.perf_counter_ns() - start)
        return samples


def _steal_and_total() -> tuple[float, float] | None:
    times = psutil.cpu_times()
    return (times.steal, sum(times)) if hasattr(times, "steal") else None


def _throttled(root: Path) -> int | None:
    """Return `nr_throttled` of the process' cgroup and those above it together, v2 or v1; None where none tells."""
    lines = [
        line.split() for folder in cgroup_folders(root, "cpu") for line in (read_text(folder / "cpu.stat") or "").splitlines()
    ]
    found = [int(count) for key, count in lines if key == "nr_throttled"]
    return sum(found) if found else None


def read_conditions(blas: str, llvm_version: str, root: Path = Path("/")) -> Conditions:
    """Governor, load, temperature, free memory and software versions, as far as the system tells."""
    governor = root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"
    sensors = psutil.sensors_temperatures() if hasattr(psutil, "sensors_temperatures") else {}
    temperatures = [reading.current for readings in sensors.values() for reading in readings if reading.current > 0]
    return Conditions(
        governor=governor.read_text().strip() if governor.is_file() else None,
        load_average=psutil.getloadavg()[0],
        temperature_celsius=max(temperatures, default=None),
        memory_available_bytes=psutil.virtual_memory().available,
        os_release=f"{platform.system()} {platform.release()}"[:200],
        python=platform.python_version(),
        numpy=np.__version__,
        blas=blas[:200],
        llvm=llvm_version,
    )
