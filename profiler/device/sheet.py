"""Device profiles of remote machines, entered by hand from a data sheet. Every number is marked as entered or derived.

Only what plans need is required: cores, caches, memory, a peak rate and a memory bandwidth. Other numbers are derived from these,
and each names its rule. An agent on the machine replaces all of it with measurements.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Final

import orjson
from pydantic import Field, ValidationError

from kernels.precision import Precision
from profiler.device.measure import Figure, Source, Unit
from profiler.device.probe.bandwidth import PATTERNS, Bandwidth
from profiler.device.probe.overheads import Conditions, Overheads, Stability
from profiler.device.probe.peaks import Peak
from profiler.device.probe.teams import TeamCost
from profiler.device.profile import DeviceProfile
from profiler.device.topology import Cache, CacheKind, Cluster, Confinement, Hardware, NumaNode, Record
from profiler.errors import ProfileFormatError

GEMM_SHARE: Final = 0.85  # share of the peak that a BLAS is assumed to reach
CACHE_FACTORS: Final = {1: 16.0, 2: 8.0, 3: 4.0}  # assumed ratio of cache to memory bandwidth of one core, by level
OVERHEADS_NS: Final = {
    "timer_resolution": 50.0,
    "timer_call": 50.0,
    "native_call": 500.0,
    "numpy_call": 1000.0,
    "thread_handoff": 10_000.0,
}
TEAM_START_NS: Final = 2000.0
BARRIER_NS: Final = 200.0

_Rate = Annotated[float, Field(gt=0, le=1e18, allow_inf_nan=False)]
_Text = Annotated[str, Field(min_length=1, max_length=200)]


class SheetCache(Record):
    """One kind of cache: its size, and how many there are."""

    level: int = Field(ge=1, le=8)
    kind: CacheKind = "unified"
    nbytes: int = Field(gt=0, le=1 << 40)
    shared_by: int = Field(default=1, ge=1, le=65_536)


class SheetPeak(Record):
    """An arithmetic rate on that many threads."""

    precision: Precision = "fp32"
    isa: str = Field(default="unknown", max_length=50)
    threads: int = Field(ge=1, le=65_536)
    ops_per_s: _Rate


class SheetBandwidth(Record):
    """A transfer rate of a level on that many threads."""

    level: str = Field(default="DRAM", pattern=r"^(L[1-8]|DRAM)$")
    threads: int = Field(ge=1, le=65_536)
    bytes_per_s: _Rate


class Sheet(Record):
    """A machine as it is entered. method: the source of the numbers (a data sheet, a published benchmark)."""

    sheet_version: Annotated[int, Field(ge=1, le=1)]
    vendor: _Text
    model: _Text
    architecture: Annotated[str, Field(min_length=1, max_length=50)]
    system: Annotated[str, Field(max_length=50)] = "Linux"
    isa: Annotated[tuple[Annotated[str, Field(max_length=50)], ...], Field(max_length=1000)] = ()
    physical_cores: int = Field(ge=1, le=65_536)
    logical_cores: int | None = Field(default=None, ge=1, le=65_536)
    memory_bytes: int = Field(gt=0, le=1 << 60)
    caches: Annotated[tuple[SheetCache, ...], Field(max_length=64)] = ()
    peaks: Annotated[tuple[SheetPeak, ...], Field(min_length=1, max_length=1000)]
    bandwidths: Annotated[tuple[SheetBandwidth, ...], Field(min_length=1, max_length=1000)]
    method: Annotated[str, Field(min_length=1, max_length=500)]


def read_profile(text: bytes) -> DeviceProfile:
    """Read a profile in JSON, or a sheet. Raises ProfileFormatError, naming the first field that breaks the schema."""
    try:
        found = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise ProfileFormatError(f"device profile: not JSON, {error}") from None
    if not isinstance(found, dict) or "sheet_version" not in found:
        return DeviceProfile.from_json(text)
    try:
        return from_sheet(Sheet.model_validate_json(text))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "the document"
        raise ProfileFormatError(f"device sheet: {first['msg']} ({where})") from None


def from_sheet(sheet: Sheet) -> DeviceProfile:
    """Make a profile of a sheet. Raises ProfileFormatError for contradictory core counts, or where a needed rate is missing."""
    logical = sheet.logical_cores or sheet.physical_cores
    if logical < sheet.physical_cores:
        raise ProfileFormatError(f"device sheet: logical_cores is {logical}, need at least physical_cores {sheet.physical_cores}")
    for name, levels in (("DRAM bandwidth", [b for b in sheet.bandwidths if b.level == "DRAM"]), ("fp32 peak", _fp32(sheet))):
        if not levels:
            raise ProfileFormatError(f"device sheet: it has no {name}, which every plan needs")
    maker = _Maker(sheet)
    return DeviceProfile(
        hardware=_hardware(sheet, logical),
        confinement=Confinement(affinity=logical),
        conditions=Conditions(memory_available_bytes=sheet.memory_bytes, os_release="", python="", numpy="", blas="", llvm=""),
        peaks=(*maker.peaks(), *maker.gemms()),
        bandwidths=maker.bandwidths(),
        overheads=Overheads(**{name: maker.assumed(value) for name, value in OVERHEADS_NS.items()}),
        teams=tuple(
            TeamCost(threads=n, start=maker.assumed(TEAM_START_NS), barrier=maker.assumed(BARRIER_NS if n > 1 else 1.0))
            for n in sorted({1, sheet.physical_cores})
        ),
        stability=Stability(jitter=maker.assumed(0.0), drift_percent=0.0),
        probed_at=maker.now,
        probe_seconds=0.0,
    )


class _Maker:
    """Makes the figures of a profile from one sheet."""

    def __init__(self, sheet: Sheet) -> None:
        self.sheet, self.now = sheet, datetime.now(UTC)

    def figure(self, value: float, unit: Unit, source: Source, method: str) -> Figure:
        return Figure(
            value=value,
            unit=unit,
            statistic="max",
            repeats=1,
            spread_percent=0,
            method=method[:1000],
            measured_at=self.now,
            source=source,
        )

    def assumed(self, nanoseconds: float) -> Figure:
        return self.figure(nanoseconds, "ns", "derived", "typical of measured machines, nothing was entered")

    def peaks(self) -> list[Peak]:
        """Return the entered peaks; a precision with one thread count gets the other end in proportion to the threads."""
        found: list[Peak] = []
        for item in self.sheet.peaks:
            unit: Unit = "OP/s" if item.precision == "int8" else "FLOP/s"
            rate = self.figure(item.ops_per_s, unit, "entered", self.sheet.method)
            common = {"kind": "instruction", "precision": item.precision, "isa": item.isa}
            found.append(Peak.model_validate({**common, "threads": item.threads, "rate": rate}))
            for threads in self._missing(item.threads, [p.threads for p in self.sheet.peaks if p.precision == item.precision]):
                how = f"{item.ops_per_s:.4g} on {item.threads} threads, in proportion"
                derived = self.figure(item.ops_per_s * threads / item.threads, unit, "derived", how)
                found.append(Peak.model_validate({**common, "threads": threads, "rate": derived}))
        return found

    def gemms(self) -> list[Peak]:
        """Derive the rates of BLAS from the fp32 peaks."""
        how = f"{GEMM_SHARE} of the instruction peak"
        return [
            Peak(
                kind="gemm",
                precision="fp32",
                isa="blas",
                threads=peak.threads,
                rate=self.figure(GEMM_SHARE * peak.rate.value, "FLOP/s", "derived", how),
            )
            for peak in self.peaks()
            if peak.precision == "fp32"
        ]

    def bandwidths(self) -> tuple[Bandwidth, ...]:
        """Return the entered bandwidths for every pattern; those of other caches are derived from memory's rate on one core."""
        rates: dict[tuple[str, int], tuple[float, Source, str]] = {
            (item.level, item.threads): (item.bytes_per_s, "entered", self.sheet.method) for item in self.sheet.bandwidths
        }
        dram = {threads: rate for (level, threads), (rate, _, __) in rates.items() if level == "DRAM"}
        for threads in (1, self.sheet.physical_cores):
            nearest = min(dram, key=lambda count, wanted=threads: (abs(count - wanted), count))  # type: ignore[misc]
            how = f"that of {nearest} threads: memory is shared"
            rates.setdefault(("DRAM", threads), (dram[nearest], "derived", how))
        one_core = rates["DRAM", 1][0] if ("DRAM", 1) in rates else min(dram.values())
        for cache in self.sheet.caches:
            if cache.kind == "instruction" or any(level == f"L{cache.level}" for level, _ in list(rates)):
                continue
            factor = CACHE_FACTORS.get(cache.level, 2.0)
            for threads in {1, self.sheet.physical_cores}:
                how = f"{factor:g} times memory's rate on a core, times {threads} threads"
                rates[f"L{cache.level}", threads] = (factor * one_core * threads, "derived", how)
        return tuple(
            Bandwidth(
                level=level,
                pattern=pattern,
                threads=threads,
                working_set_bytes=1,
                rate=self.figure(rate, "B/s", source, how),
            )
            for (level, threads), (rate, source, how) in sorted(rates.items())
            for pattern in PATTERNS
        )

    def _missing(self, threads: int, entered: list[int]) -> list[int]:
        wanted = [count for count in (1, self.sheet.physical_cores) if count not in entered]
        return wanted if threads == min(entered) else []


def _fp32(sheet: Sheet) -> list[SheetPeak]:
    return [peak for peak in sheet.peaks if peak.precision == "fp32"]


def _hardware(sheet: Sheet, logical: int) -> Hardware:
    caches = tuple(
        Cache(
            level=cache.level,
            kind=cache.kind,
            nbytes=cache.nbytes,
            shared_by=min(cache.shared_by, logical),
            instances=max(1, logical // cache.shared_by),
            source="entered",
        )
        for cache in sheet.caches
    )
    return Hardware(
        vendor=sheet.vendor,
        model=sheet.model,
        architecture=sheet.architecture,
        system=sheet.system,
        llvm_cpu="",
        isa=tuple(sorted(sheet.isa)),
        physical_cores=sheet.physical_cores,
        logical_cores=logical,
        clusters=(Cluster(cores=sheet.physical_cores, logical=logical),),
        caches=tuple(sorted(caches, key=lambda cache: (cache.level, cache.kind))),
        memory_bytes=sheet.memory_bytes,
        numa=(NumaNode(node=0, logical=logical, memory_bytes=sheet.memory_bytes),),
    )
