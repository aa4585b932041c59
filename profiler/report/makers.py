"""Making reports from counts and traces."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from graph.ir import Specs
from graph.memory import Held
from graph.run.executor import DYNAMIC, VIEW, Executor
from graph.timing import Slice
from kernels.spec import STRING, Spec
from profiler.counting.counts import OpProfile, Profile
from profiler.device.probe.bandwidth import PATTERNS
from profiler.device.profile import DeviceProfile
from profiler.device.quiet import Quietness
from profiler.report.document import (
    Backend,
    Check,
    LevelRate,
    Missing,
    ModelFacts,
    Op,
    PeakRate,
    Problem,
    Report,
    Roof,
    Setup,
    Timeline,
    Totals,
    Value,
)
from profiler.run.roofline import RooflinePoint, precision_of, roofline
from profiler.run.trace import OpTrace, Trace

CONSTANT = "known before the run"


def static_report(counted: Profile) -> Report:
    """Report the cost of a model as counted, without a run."""
    return Report(
        kind="static",
        model=_facts(counted),
        totals=Totals(
            **_sums(counted.ops),
            **_of_model(counted),
            executed_macs=counted.macs,
            peak_activation_bytes=counted.peak_activation_bytes,
            arena_bytes=counted.arena_bytes,
            coverage_percent=counted.coverage_percent,
        ),
        ops=tuple(_counted_op(op, counted.flops) for op in counted.ops),
        values=tuple(_values(counted.held)),
        uncounted=tuple(Missing(node=found.node, op=found.op, reason=found.reason) for found in counted.uncounted),
        check=Check(ok=True),
    )


def trace_report(
    counted: Profile,
    executor: Executor,
    measured: Trace,
    setup: Setup,
    device: DeviceProfile | None,
    predicted_ns: Mapping[str, float],
    quietness: Quietness | None = None,
) -> Report:
    """Report a traced run: its steps, their times, and their distance from the roofline of the device.

    Args:   counted: the model as imported. executor: the traced one. measured: its trace. setup: how the trace was taken.
            device: that it ran on; None = not measured, the report has no roof. predicted_ns: node name -> predicted time of its
            step; steps that are missing have no prediction. quietness: of the machine meanwhile; None = not watched.
    Raises: MeasurementError where the device's profile lacks a peak or bandwidth that is needed.
    """
    placed = None if device is None else roofline(measured, device, setup.threads)
    points = {} if placed is None else {point.name: point for point in placed.points}
    values = tuple(_values(executor.held))
    live = _live_bytes(values, len(measured.ops))
    steps = [(row, row.cost) for row in measured.ops if row.cost is not None]
    costs = [cost for _, cost in steps]
    known = [predicted_ns.get(row.name) for row in measured.ops]
    return Report(
        kind="trace",
        model=_facts(counted),
        setup=setup,
        totals=Totals(
            **_sums(costs),
            **_of_model(counted),
            executed_macs=sum(row.executed_macs for row in measured.ops),
            peak_activation_bytes=max(live, default=0),
            arena_bytes=executor.memory.arena_bytes,
            coverage_percent=100 * sum(cost.counted for cost in costs) / len(costs) if costs else 100.0,
            wall_p50_ns=measured.wall.p50_ns,
            wall_p90_ns=measured.wall.p90_ns,
            wall_min_ns=measured.wall.min_ns,
            first_ns=measured.wall.first_ns,
            unattributed_ns=measured.wall.p50_ns - sum(row.durations.p50_ns for row in measured.ops),
            predicted_ns=None if None in known else sum(ns for ns in known if ns is not None),
            roof_ns=None if placed is None else placed.roof_ns,
            wasted_ns=None if placed is None else placed.wasted_ns,
        ),
        ops=tuple(
            _traced_op(index, row, cost, executor.specs, points.get(row.name), live[index], predicted_ns.get(row.name))
            for index, (row, cost) in enumerate(steps)
        ),
        values=values,
        timeline=_timeline(measured),
        roof=None if device is None else _roof(device, setup.threads),
        uncounted=tuple(Missing(node=cost.name, op=cost.op, reason=cost.reason) for cost in costs if not cost.counted),
        check=_check(() if placed is None else placed.points),
        quietness=quietness,
    )


def _facts(counted: Profile) -> ModelFacts:
    return ModelFacts(
        name=counted.model,
        digest=counted.digest,
        inputs={name: _text(spec) for name, spec in counted.inputs.items()},
        outputs={name: _text(spec) for name, spec in counted.outputs.items()},
    )


def _sums(ops: Iterable[OpProfile]) -> dict[str, int]:
    running = [op for op in ops if not op.constant]
    names = ("macs", "flops", "other_flops", "read_bytes", "write_bytes")
    return {name: sum(getattr(op, name) for op in running) for name in names}


def _of_model(counted: Profile) -> dict[str, Any]:
    names = ("params", "params_note", "initializer_elements", "param_bytes")
    return {name: getattr(counted, name) for name in names}


def _counted_op(op: OpProfile, total_flops: int) -> Op:
    return Op(
        **_cost(op),
        index=op.index,
        name=op.name,
        op=op.op,
        origins=(op.name,),
        output=_text(op.output_specs[0]) if op.output_specs else "",
        executed_macs=op.macs,
        moved_bytes=op.moved_bytes,
        intensity=op.intensity,
        live_bytes=op.live_bytes,
        share_percent=100 * op.flops / total_flops if total_flops else 0.0,
        reason=CONSTANT if op.constant else op.reason,
    )


def _traced_op(
    index: int,
    row: OpTrace,
    cost: OpProfile,
    specs: Specs,
    point: RooflinePoint | None,
    live_bytes: int,
    predicted_ns: float | None,
) -> Op:
    backend, strategy = ran_as(row.algorithm)
    return Op(
        **_cost(cost),
        index=index,
        name=row.name,
        op=row.op,
        origins=row.origins,
        output=_text(specs.get(cost.output_names[0])) if cost.output_names else "",
        backend=backend,
        strategy=strategy,
        executed_macs=row.executed_macs,
        moved_bytes=0 if backend == "view" else cost.moved_bytes if point is None else point.moved_bytes,
        intensity=cost.intensity if point is None else point.intensity,
        live_bytes=live_bytes,
        p50_ns=row.durations.p50_ns,
        p90_ns=row.durations.p90_ns,
        min_ns=row.durations.min_ns,
        first_ns=row.durations.first_ns,
        share_percent=row.share_percent,
        predicted_ns=predicted_ns,
        roof_ns=None if point is None else point.roof_ns,
        roof_percent=None if point is None else point.roof_percent,
        wasted_ns=None if point is None else point.wasted_ns,
        bound="" if point is None else point.bound,
        level="" if point is None else point.level,
        achieved_flops_per_s=None if point is None else point.achieved_flops_per_s,
        contradiction="" if point is None else point.contradiction,
        reason=cost.reason,
    )


def _cost(op: OpProfile) -> dict[str, Any]:
    """Return the counts of a node as fields of an op."""
    names = ("macs", "flops", "read_bytes", "write_bytes", "param_bytes", "counted")
    return {
        **{name: getattr(op, name) for name in names},
        "inputs": tuple(name for name in op.input_names if name),
        "outputs": tuple(name for name in op.output_names if name),
        "precision": precision_of(op),
    }


def ran_as(algorithm: str) -> tuple[Backend, str]:
    """Return the backend of a step and its strategy."""
    if algorithm == VIEW:
        return "view", VIEW
    if algorithm.startswith("native/"):
        return "native", algorithm
    if algorithm.startswith("cuda/"):
        return "cuda", algorithm
    return "numpy", DYNAMIC if algorithm == DYNAMIC else f"numpy/{algorithm}"


def _values(held: Iterable[Held]) -> Iterable[Value]:
    for item in held:
        where = {"first": item.first, "last": item.last, "offset_bytes": item.offset_bytes}
        yield Value(name=item.name, nbytes=item.nbytes, **where)


def _live_bytes(values: Iterable[Value], ops: int) -> list[int]:
    live = [0] * ops
    for value in values:
        for index in range(value.first, value.last + 1):
            live[index] += value.nbytes
    return live


def _timeline(measured: Trace) -> Timeline:
    threads: list[list[tuple[int, int, int, Any]]] = [[] for _ in range(_threads(measured.slices))]
    for found in measured.slices:
        threads[found.thread].append((found.step, found.start_ns, found.duration_ns, "wait" if found.waits else "work"))
    return Timeline(wall_ns=measured.median_run.wall_ns, threads=tuple(map(tuple, threads)))


def _threads(slices: Sequence[Slice]) -> int:
    return 1 + max((found.thread for found in slices), default=0)


def _roof(device: DeviceProfile, threads: int) -> Roof:
    """Return the peaks and bandwidths that `roofline` uses."""
    precisions = dict.fromkeys(peak.precision for peak in device.peaks if peak.kind == "instruction")
    capacities: dict[str, int | None] = {**device.capacities_bytes(threads), "DRAM": None}
    return Roof(
        device=device.fingerprint,
        threads=threads,
        peaks=tuple(
            PeakRate(precision=precision, flops_per_s=device.peak_ops_per_s(precision, threads)) for precision in precisions
        ),
        bandwidths=tuple(
            LevelRate(
                level=level,
                bytes_per_s=max(device.bandwidth_bytes_per_s(level, threads, pattern) for pattern in PATTERNS),
                capacity_bytes=capacity,
            )
            for level, capacity in capacities.items()
        ),
    )


def _check(points: Iterable[RooflinePoint]) -> Check:
    problems = tuple(
        Problem(name=point.name, op=point.op, roof_percent=point.roof_percent, reason=point.contradiction)
        for point in points
        if point.contradiction
    )
    return Check(ok=not problems, problems=problems)


def _text(spec: Spec | None) -> str:
    """Spell a spec as ONNX does: "float32[1,3,224,224]"; "?" where it is known only at run time."""
    if spec is None:
        return "?"
    dtype = "string" if spec.dtype == STRING else spec.dtype.name
    return f"{dtype}[{','.join(map(str, spec.shape))}]"
