"""The roofline of a trace: the distance of each step from the rates of the device.

A step that computes F FLOPs and moves B bytes takes at least max(F ÷ peak, B ÷ bandwidth) seconds: its roof. As a rate that is
min(peak, intensity · bandwidth) (Williams, Waterman, Patterson 2009, CACM 52(4)). The bandwidth is that of the innermost levels
of memory that hold the step's B bytes, for the fastest pattern measured there, so that it is an upper bound; memory that is
written over after it was read counts once. Bytes are each input and output once, arithmetic is that of the chosen algorithm. A
step faster than its roof is therefore a contradiction, and the point says what is probably wrong.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from graph.ir import CONTROL_FLOW
from graph.run.executor import VIEW
from kernels.cost import FLOPS_PER_MAC
from kernels.precision import Precision
from kernels.record import record
from kernels.registry import find
from profiler.counting.counts import OpProfile
from profiler.device.profile import DeviceProfile
from profiler.run.trace import OpTrace, Trace

TOLERANCE_PERCENT = 5.0  # a step may beat a measured roof by the noise of the two measurements
MIN_CLOCK_STEPS = 20
PARTIAL_READS = frozenset({"Gather", "GatherElements", "GatherND", "Slice", "Split", "ScatterND", "ScatterElements"})

_PRECISIONS: dict[str, Precision] = {"float64": "fp64", "bfloat16": "bf16", "int8": "int8", "uint8": "int8"}
Bound = Literal["compute", "memory"]


@record
class RooflinePoint:
    """One step and its roof.

    flops, moved_bytes, intensity: as executed. precision: of the peak that it is compared with. level: the innermost memory that
    holds its bytes. roof_ns: the least time it could take; attainable_flops_per_s: the rate at that time. measured_ns: median,
    at least a step of the clock.
    achieved_flops_per_s, achieved_bytes_per_s: at that median. roof_percent: roof_ns / measured_ns. bound: the side of the roof
    that limits it. wasted_ns: measured_ns − roof_ns, at least 0. contradiction: why it may be faster than its roof, "" where it
    is not.
    """

    name: str
    op: str
    precision: Precision
    level: str
    flops: int
    moved_bytes: int
    intensity: float
    peak_flops_per_s: float
    bandwidth_bytes_per_s: float
    attainable_flops_per_s: float
    roof_ns: float
    measured_ns: float
    achieved_flops_per_s: float
    achieved_bytes_per_s: float
    roof_percent: float
    bound: Bound
    wasted_ns: float
    contradiction: str = ""


@record
class Roofline:
    """All steps that do work, in execution order, on a device with a number of threads.

    skipped: steps without a roof: not counted, views of memory, or too short for the clock. wasted_ns, roof_ns: sums over the
    points.
    """

    device: str
    threads: int
    points: tuple[RooflinePoint, ...]
    skipped: tuple[str, ...]

    @property
    def roof_ns(self) -> float:
        """The least time of all points one after another."""
        return sum(point.roof_ns for point in self.points)

    @property
    def wasted_ns(self) -> float:
        """Time in excess of the roof, over all points."""
        return sum(point.wasted_ns for point in self.points)

    def most_wasted(self) -> tuple[RooflinePoint, ...]:
        """Return the points, those with most time in excess of their roof first."""
        return tuple(sorted(self.points, key=lambda point: -point.wasted_ns))


def roofline(measured: Trace, device: DeviceProfile, threads: int = 1) -> Roofline:
    """Place every step of a trace under the roof of a device.

    Args:   threads: of the traced executor.
    Raises: MeasurementError when the device's profile lacks a peak or bandwidth that is needed.
    """
    points, skipped = [], []
    for row in measured.ops:
        if row.cost is None or not row.cost.counted or row.algorithm == VIEW or not row.cost.moved_bytes:
            skipped.append(row.name)
            continue
        point = _place(row, row.cost, device, threads)
        if point is None:
            skipped.append(row.name)
        else:
            points.append(point)
    return Roofline(device.fingerprint, threads, tuple(points), tuple(skipped))


def _place(row: OpTrace, cost: OpProfile, device: DeviceProfile, threads: int) -> RooflinePoint | None:
    """Place a step under the roof; None where it seems to be above, and both are too short for the clock to compare them."""
    precision = precision_of(cost)
    flops = FLOPS_PER_MAC * row.executed_macs + cost.other_flops
    moved_bytes = cost.moved_bytes if row.op not in PARTIAL_READS else 2 * cost.write_bytes
    footprint_bytes = moved_bytes - _overwritten_bytes(cost)
    level = device.level_of(footprint_bytes, threads)
    peak = device.peak_ops_per_s(precision, threads)
    compute_ns, memory_ns = 1e9 * flops / peak, device.least_transfer_ns(moved_bytes, threads, footprint_bytes)
    bandwidth = 1e9 * moved_bytes / memory_ns
    roof_ns = max(compute_ns, memory_ns)
    clock_ns = max(device.overheads.timer_resolution.value, device.overheads.timer_call.value, 1.0)
    measured_ns = max(row.durations.p50_ns, clock_ns)
    if measured_ns < roof_ns < MIN_CLOCK_STEPS * clock_ns:
        return None
    bound: Bound = "compute" if compute_ns >= memory_ns else "memory"
    percent = 100 * roof_ns / measured_ns
    return RooflinePoint(
        name=row.name,
        op=row.op,
        precision=precision,
        level=level,
        flops=flops,
        moved_bytes=moved_bytes,
        intensity=flops / moved_bytes,
        peak_flops_per_s=peak,
        bandwidth_bytes_per_s=bandwidth,
        attainable_flops_per_s=min(peak, flops / moved_bytes * bandwidth),
        roof_ns=roof_ns,
        measured_ns=measured_ns,
        achieved_flops_per_s=1e9 * flops / measured_ns,
        achieved_bytes_per_s=1e9 * moved_bytes / measured_ns,
        roof_percent=percent,
        bound=bound,
        wasted_ns=max(0.0, measured_ns - roof_ns),
        contradiction=_contradiction(percent, bound, level, device),
    )


def _overwritten_bytes(cost: OpProfile) -> int:
    """Return the bytes that an elementwise op may write over its input, which take no memory of their own."""
    written = cost.output_specs[0] if cost.output_specs else None
    if written is None or cost.op in CONTROL_FLOW or not find(cost.op).elementwise:
        return 0
    read = (spec for at, spec in enumerate(cost.input_specs) if at not in cost.constant_inputs)
    return written.nbytes if any(spec == written for spec in read) else 0


def precision_of(cost: OpProfile) -> Precision:
    """Return the precision whose peak an op is compared with: its first input's; types without a peak (float16) count as fp32."""
    first = next((spec for spec in cost.input_specs if spec is not None), None)
    return "fp32" if first is None else _PRECISIONS.get(np.dtype(first.dtype).name, "fp32")


def _contradiction(percent: float, bound: Bound, level: str, device: DeviceProfile) -> str:
    if percent <= 100 + TOLERANCE_PERCENT:
        return ""
    if device.stability.quietness.level == "busy":
        return "peak: the device was busy with other work when it was measured, measure it again"
    if bound == "memory":
        return f"counting: not all counted bytes are moved, or they come from a level inside {level}"
    return "peak: the device's measured peak is too low, or counting: the algorithm skips arithmetic"
