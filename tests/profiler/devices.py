"""Make a device profile by hand, for tests that need known numbers."""

from __future__ import annotations

from datetime import UTC, datetime

from profiler.device.measure import Figure, Unit
from profiler.device.probe.bandwidth import PATTERNS, Bandwidth
from profiler.device.probe.overheads import Conditions, Overheads, Stability
from profiler.device.probe.peaks import Peak
from profiler.device.profile import DeviceProfile
from profiler.device.topology import Cache, Cluster, Confinement, Hardware, NumaNode

WHEN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def figure(value: float, unit: Unit) -> Figure:
    return Figure(value=value, unit=unit, statistic="max", repeats=5, spread_percent=1.5, method="by hand", measured_at=WHEN)


def hardware(**changes: object) -> Hardware:
    """Return hardware with four cores, eight threads and two clusters of 8 MiB L3 each. changes: fields to replace."""
    fields: dict[str, object] = {
        "vendor": "AuthenticTest",
        "model": "Test 9000",
        "architecture": "x86_64",
        "system": "Linux",
        "llvm_cpu": "znver4",
        "isa": ("avx2", "avx512f", "fma"),
        "physical_cores": 4,
        "logical_cores": 8,
        "clusters": (Cluster(cores=2, logical=4), Cluster(cores=2, logical=4)),
        "caches": (
            Cache(level=1, kind="data", nbytes=32 << 10, line_bytes=64, ways=8, shared_by=2, instances=4, source="sysfs"),
            Cache(level=1, kind="instruction", nbytes=32 << 10, shared_by=2, instances=4, source="sysfs"),
            Cache(level=2, kind="unified", nbytes=1 << 20, shared_by=2, instances=4, source="sysfs"),
            Cache(level=3, kind="unified", nbytes=8 << 20, shared_by=4, instances=2, source="sysfs"),
        ),
        "memory_bytes": 16_400_000_000,
        "numa": (NumaNode(node=0, logical=8, memory_bytes=16_400_000_000),),
    }
    return Hardware.model_validate({**fields, **changes})


def device(**changes: object) -> DeviceProfile:
    """Return a device of 100 GFLOP/s per core. Per core, L1 has 400 GB/s, L2 200, L3 100 and DRAM 20; all cores get 40 from DRAM.

    changes: fields to replace.
    """
    instruction = [
        Peak(kind="instruction", precision="fp32", isa=isa, threads=n, rate=figure(rate * n, "FLOP/s"))
        for n in (1, 4)
        for isa, rate in (("avx2", 50e9), ("avx512", 100e9))
    ]
    gemm = [Peak(kind="gemm", precision="fp32", isa="blas", threads=1, rate=figure(80e9, "FLOP/s"))]
    speeds = {"L1": (400e9, 1600e9), "L2": (200e9, 800e9), "L3": (100e9, 400e9), "DRAM": (20e9, 40e9)}
    bandwidths = [
        Bandwidth(level=level, pattern=pattern, threads=n, working_set_bytes=1 << 20, rate=figure(rate, "B/s"))
        for level, rates in speeds.items()
        for n, rate in zip((1, 4), rates, strict=True)
        for pattern in PATTERNS
    ]
    ns = figure(50, "ns")
    fields: dict[str, object] = {
        "hardware": hardware(),
        "confinement": Confinement(affinity=8),
        "conditions": Conditions(
            memory_available_bytes=8 << 30, os_release="Linux 6", python="3.11.0", numpy="2.2.0", blas="b", llvm="20.1.0"
        ),
        "peaks": (*instruction, *gemm),
        "bandwidths": tuple(bandwidths),
        "overheads": Overheads(timer_resolution=ns, timer_call=ns, native_call=ns, numpy_call=ns, thread_handoff=ns),
        "stability": Stability(jitter=ns, drift_percent=0.5),
        "probed_at": WHEN,
        "probe_seconds": 8.0,
    }
    return DeviceProfile.model_validate({**fields, **changes})
