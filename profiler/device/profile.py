"""A device profile: a machine's hardware, limits and measured rates. `probe` measures this machine.

The profile is data: it is stored, sent between machines and compared, so it validates itself when it is read back. Every
measured number carries its unit, method, time, repeats and spread (`profiler.device.measure.Figure`). Planning asks it through
`peak_ops_per_s` and `bandwidth_bytes_per_s`.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal

from pydantic import AwareDatetime, Field, ValidationError

from kernels.confinement import free_memory_bytes, within_quota
from kernels.native.target.host import llvm_version
from kernels.precision import Precision
from profiler.device.measure import Effort, Figure, PinnedThreads
from profiler.device.probe.bandwidth import PATTERNS, Bandwidth, Pattern, measure_bandwidth, working_sets
from profiler.device.probe.loops import compile_for_host
from profiler.device.probe.overheads import Conditions, Overheads, Stability, StabilityWatch, measure_overheads, read_conditions
from profiler.device.probe.peaks import FLOAT_DTYPES, Peak, blas_threads, measure_gemm_peak, measure_instruction_peak
from profiler.device.probe.teams import TeamCost, measure_team
from profiler.device.topology import (
    Confinement,
    Hardware,
    Record,
    core_cpus,
    installed_memory_gib,
    read_confinement,
    read_hardware,
)
from profiler.errors import MeasurementError, ProfileFormatError

SCHEMA_VERSION: Final = 1
FULL_S: Final = 8.0
Progress = Callable[[int, int, str], None]


class DeviceProfile(Record):
    """A machine's hardware, the limits on this process, and measured rates and costs.

    hardware, confinement: read from the system. conditions: its state meanwhile. peaks, bandwidths, overheads, teams,
    stability: measured; or entered and derived, for a machine that is not here (`profiler.device.sheet`). probed_at,
    probe_seconds: when, and how long it took.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    hardware: Hardware
    confinement: Confinement
    conditions: Conditions
    peaks: tuple[Peak, ...] = Field(max_length=10_000)
    bandwidths: tuple[Bandwidth, ...] = Field(max_length=10_000)
    overheads: Overheads
    teams: tuple[TeamCost, ...] = Field(default=(), max_length=10_000)
    stability: Stability
    probed_at: AwareDatetime
    probe_seconds: float = Field(ge=0)

    @property
    def fingerprint(self) -> str:
        """`fingerprint_of` its hardware."""
        return fingerprint_of(self.hardware)

    @property
    def name(self) -> str:
        """A name for people: the CPU's model and its number of cores."""
        return f"{self.hardware.model}, {self.hardware.physical_cores} cores"

    @property
    def usable_cores(self) -> int:
        """Physical cores this process can keep busy, under its affinity and cgroup quota: the default thread count."""
        return usable_cores(self.hardware, self.confinement)

    @property
    def figures(self) -> tuple[Figure, ...]:
        """Every number with its provenance."""
        overheads = (getattr(self.overheads, name) for name in Overheads.model_fields)
        teams = (figure for team in self.teams for figure in (team.start, team.barrier))
        rates = (*(peak.rate for peak in self.peaks), *(found.rate for found in self.bandwidths))
        return (*rates, *overheads, *teams, self.stability.jitter)

    def outdated(self, now: Confinement) -> str:
        """Return why this machine must be measured again; "" where the profile still holds."""
        if any(figure.source != "measured" for figure in self.figures):
            return "its numbers were not all measured"
        cores = usable_cores(self.hardware, now)
        return f"{cores} cores may be used, {self.usable_cores} were measured" if cores > self.usable_cores else ""

    @property
    def memory_limit_bytes(self) -> int:
        """Memory that this process may use: the installed memory, or its cgroup's limit if that is less."""
        return min(self.hardware.memory_bytes, self.confinement.cgroup_memory_bytes or self.hardware.memory_bytes)

    def peak_ops_per_s(
        self, precision: Precision = "fp32", threads: int = 1, kind: Literal["instruction", "gemm"] = "instruction"
    ) -> float:
        """Return the highest arithmetic rate of any ISA at a precision: FLOP/s, or for int8 operations a second.

        Between two measured thread counts it is interpolated; beyond the largest it stays, and is not extrapolated.
        Raises: MeasurementError where nothing of that precision was measured.
        """
        rates: dict[int, float] = {}
        for peak in self.peaks:
            if (peak.precision, peak.kind) == (precision, kind):
                rates[peak.threads] = max(rates.get(peak.threads, 0), peak.rate.value)
        return _interpolate(rates, threads, f"no {kind} peak of {precision}")

    def bandwidth_bytes_per_s(self, level: str = "DRAM", threads: int = 1, pattern: Pattern = "triad") -> float:
        """Return the transfer rate of a level, all threads together; interpolated like `peak_ops_per_s`."""
        rates = {b.threads: b.rate.value for b in self.bandwidths if (b.level, b.pattern) == (level, pattern)}
        return _interpolate(rates, threads, f"no {pattern} bandwidth of {level}")

    def capacities_bytes(self, threads: int = 1) -> dict[str, int]:
        """Return the bytes that each measured cache level holds for threads spread over the cores, the innermost level first."""
        most = max((b.threads for b in self.bandwidths), default=1)
        measured = {b.level for b in self.bandwidths if b.threads >= min(threads, most)}
        capacities = {}
        for level in range(1, 9):
            cache = self.hardware.data_cache(level)
            if cache is not None and f"L{level}" in measured:
                cores_beside = max(1, cache.shared_by * self.hardware.physical_cores // self.hardware.logical_cores)
                capacities[f"L{level}"] = cache.nbytes * min(cache.instances, math.ceil(threads / cores_beside))
        return capacities

    def level_of(self, working_set_bytes: int, threads: int = 1) -> str:
        """Return the innermost measured level that holds a whole working set spread over `threads` threads."""
        fitting = (level for level, nbytes in self.capacities_bytes(threads).items() if working_set_bytes <= nbytes)
        return next(fitting, "DRAM")

    def least_transfer_ns(self, nbytes: int, threads: int = 1, footprint_bytes: int | None = None) -> float:
        """Return the least time in which `nbytes` can be moved: each level serves what it can hold, at its fastest pattern.

        footprint_bytes: size of the memory that is touched, less than `nbytes` where data is read and then overwritten.
        """
        spent_ns, given = 0.0, 0.0
        times = nbytes / footprint_bytes if footprint_bytes else 1.0  # each byte that a level holds is moved
        for level, capacity in {**self.capacities_bytes(threads), "DRAM": nbytes}.items():
            part = max(0.0, min(nbytes, capacity * times) - given)
            if part:
                spent_ns += 1e9 * part / max(self.bandwidth_bytes_per_s(level, threads, pattern) for pattern in PATTERNS)
                given += part
        return spent_ns

    def to_json(self) -> str:
        """Serialise to JSON; `from_json` reads an equal profile."""
        return self.model_dump_json()

    @staticmethod
    def from_json(text: str | bytes) -> DeviceProfile:
        """Read a profile from an untrusted source. Raises ProfileFormatError, naming the first field that breaks the schema."""
        try:
            return DeviceProfile.model_validate_json(text)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(map(str, first["loc"])) or "the document"
            raise ProfileFormatError(f"device profile: {first['msg']} ({where})") from None


def fingerprint_of(what: Hardware) -> str:
    """Return 16 hexadecimal digits that identify a machine and stay the same from boot to boot.

    They are a hash of vendor, model, ISA, cores, clusters, caches, installed memory (rounded), architecture and system; not of
    frequency, limits, versions or measurements.
    """
    identity = {
        "vendor": what.vendor,
        "model": what.model,
        "isa": sorted(what.isa),
        "cores": [what.physical_cores, what.logical_cores],
        "clusters": sorted([c.cores, c.logical] for c in what.clusters),
        "caches": [[c.level, c.kind, c.nbytes, c.shared_by, c.instances] for c in what.caches],
        "memory_gib": installed_memory_gib(what.memory_bytes),
        "os": [what.system, what.architecture],
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def probe(seconds: float = FULL_S, progress: Progress | None = None, root: Path = Path("/")) -> DeviceProfile:
    """Describe and measure this machine.

    Args:    seconds: about how long to measure; 1 gives a rough picture, the default a good one. progress: called with
             (measurements done, in all, what comes next). root: where to read the system's description.
    Raises:  MeasurementError when `seconds` is not between 0.1 and 600.
    """
    if not 0.1 <= seconds <= 600:
        raise MeasurementError(f"probe: seconds is {seconds}, need 0.1 … 600")
    started = time.perf_counter()
    hardware, confinement = read_hardware(root), read_confinement(root)
    compiled = compile_for_host()
    cpus = core_cpus(root)
    counts = thread_counts(usable_cores(hardware, confinement))
    memory_bytes = free_memory_bytes(root)
    sets = {threads: working_sets(hardware, threads, memory_bytes) for threads in counts}

    steps = (
        sum(len(compiled.peaks) + len(FLOAT_DTYPES) + len(PATTERNS) * len(sets[threads]) for threads in counts) + 5 + len(counts)
    )
    repeats = 3 if seconds < 3 else 5
    effort = Effort(window_s=seconds / steps / (repeats + 1.5), repeats=repeats)  # 1.5: calibration and memory
    meter = _Meter(steps, progress)

    _warm_up(seconds / 50)
    watch = StabilityWatch(compiled, effort, max(counts))
    peaks: list[Peak] = []
    bandwidths: list[Bandwidth] = []
    for threads in counts:
        with PinnedThreads(threads, cpus) as team:
            for loop in compiled.peaks:
                meter.next(f"{loop.precision} {loop.name} peak, {threads} threads")
                peaks.append(measure_instruction_peak(compiled, loop, team, effort))
            for working_set in sets[threads]:
                for pattern in PATTERNS:
                    meter.next(f"{working_set.level} {pattern} bandwidth, {threads} threads")
                    bandwidths.append(measure_bandwidth(compiled, pattern, working_set, team, effort))
        for precision in FLOAT_DTYPES:
            meter.next(f"{precision} matrix product, {threads} threads")
            peaks.append(measure_gemm_peak(precision, threads, effort))
    meter.next("call and thread overheads")
    overheads = measure_overheads(compiled, effort)
    teams: list[TeamCost] = []
    for threads in counts:
        meter.next(f"native team of {threads} threads")
        teams += measure_team(threads, effort)
    stability = watch.finish()
    meter.finish()
    return DeviceProfile(
        hardware=hardware,
        confinement=confinement,
        conditions=read_conditions(blas_threads()[0], f"llvmlite {llvm_version()}", root),
        peaks=_distinct(peaks),
        bandwidths=tuple(bandwidths),
        overheads=overheads,
        teams=tuple(teams),
        stability=stability,
        probed_at=stability.jitter.measured_at,
        probe_seconds=time.perf_counter() - started,
    )


def thread_counts(cores: int) -> tuple[int, ...]:
    """Return the thread counts to measure: one, half of the cores and all of them."""
    return tuple(sorted({1, max(1, cores // 2), cores}))


def usable_cores(hardware: Hardware, confinement: Confinement) -> int:
    """Return how many physical cores of a machine a process can keep busy under its affinity and quota; at least one."""
    threads_per_core = max(1, hardware.logical_cores // hardware.physical_cores)
    cores = confinement.cores or math.ceil(confinement.affinity / threads_per_core)
    return within_quota(min(hardware.physical_cores, cores), confinement.cgroup_cpus)


def _interpolate(rates: dict[int, float], threads: int, missing: str) -> float:
    if not rates:
        raise MeasurementError(f"device profile: {missing} was measured, choose one that was, or probe again")
    if threads in rates:
        return rates[threads]
    below = max((count for count in rates if count < threads), default=min(rates))
    above = min((count for count in rates if count > threads), default=max(rates))
    if below == above:
        return rates[below]
    return rates[below] + (rates[above] - rates[below]) * (threads - below) / (above - below)


def _distinct(peaks: list[Peak]) -> tuple[Peak, ...]:
    """Keep one peak for each thread count: a BLAS that ignores the requested count reports the one it used, perhaps twice."""
    found: dict[tuple[str, str, str, int], Peak] = {}
    for peak in peaks:
        key = (peak.kind, peak.precision, peak.isa, peak.threads)
        if key not in found or peak.rate.value > found[key].rate.value:
            found[key] = peak
    return tuple(found.values())


def _warm_up(seconds: float) -> None:
    """Let the clock frequency rise before measuring."""
    ends = time.perf_counter() + seconds
    while time.perf_counter() < ends:
        sum(range(1000))


class _Meter:
    """Counts measurements for a progress bar."""

    def __init__(self, steps: int, progress: Progress | None) -> None:
        self._steps, self._progress, self._done = steps, progress, 0

    def next(self, what: str) -> None:
        if self._progress is not None:
            self._progress(self._done, self._steps, what)
        self._done += 1

    def finish(self) -> None:
        if self._progress is not None:
            self._progress(self._steps, self._steps, "done")
