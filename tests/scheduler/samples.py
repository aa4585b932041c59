"""Make plans, measurements and reports by hand."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from profiler.report.document import Check, ModelFacts, Op, Report, Setup, Totals
from scheduler.build import Build
from scheduler.plan import Candidate, Constraints, InputShape, Plan, PlanStep, ThreadOption
from scheduler.store import Here, Measurement
from scheduler.strategy import Strategy
from tests.profiler.devices import device

DEVICE = device()
BUILD = Build("0.1.0+test", {"Conv": "c0ffee00", "Relu": "beef0000", "Gemm": "dead0000"})
HERE = Here(DEVICE.fingerprint, BUILD)
MODEL = hashlib.sha256(b"model").hexdigest()
ROWS = Strategy("numpy", "rows", "fp32", 2)


def key(signature: str) -> str:
    return hashlib.sha256(signature.encode()).hexdigest()


def measurement(signature: str = "Conv(f32[1])", **changes: Any) -> Measurement:
    fields: dict[str, Any] = {
        "device_fingerprint": DEVICE.fingerprint,
        "engine_build": BUILD.id,
        "kernel_source": BUILD.kernel_source("Conv"),
        "op": "Conv",
        "signature": signature,
        "signature_key": key(signature),
        "strategy": ROWS,
        "executed_macs": 1000,
        "other_flops": 10,
        "moved_bytes": 4000,
        "samples": 10,
        "min_ns": 90.0,
        "p50_ns": 100.0,
        "p90_ns": 120.0,
        "mean_ns": 105.0,
        "std_ns": 8.0,
        "measured_us": 1_700_000_000_000_000,
    }
    return Measurement(**{**fields, **changes})


def step(node: str = "conv", op: str = "Conv", **changes: Any) -> PlanStep:
    text = f"{op}(f32[1,3,8,8])"
    fields: dict[str, Any] = {
        "node": node,
        "op": op,
        "signature": text,
        "signature_key": key(text),
        "kernel_source": BUILD.kernel_source(op),
        "strategy": ROWS,
        "macs": 1000,
        "executed_macs": 500,
        "other_flops": 10,
        "moved_bytes": 4000,
        "level": "L1",
        "predicted_ns": 100.0,
        "low_ns": 50.0,
        "high_ns": 200.0,
        "measured": False,
        "bound_by": "compute",
        "candidates": (
            Candidate(strategy=ROWS, predicted_ns=100.0, low_ns=50.0, high_ns=200.0, verdict="chosen"),
            Candidate(strategy=Strategy("numpy", "slow", "fp32", 2), predicted_ns=150.0, verdict="slower", reason="1.5 ×"),
            Candidate(strategy=Strategy("numpy", "bf", "bf16", 2), verdict="refused", reason="no kernel"),
        ),
        "why": "the only one that fits",
    }
    return PlanStep(**{**fields, **changes})


def plan(**changes: Any) -> Plan:
    fields: dict[str, Any] = {
        "model_digest": MODEL,
        "model_name": "tiny.onnx",
        "device_fingerprint": DEVICE.fingerprint,
        "device_name": DEVICE.name,
        "engine_build": BUILD.id,
        "objective": "latency",
        "constraints": Constraints(),
        "inputs": (InputShape(name="x", dtype="float32", shape=(1, 3, 8, 8)),),
        "threads": 2,
        "precision": "fp32",
        "steps": (step("conv"), step("relu", "Relu")),
        "predicted_ns": 200.0,
        "low_ns": 100.0,
        "high_ns": 400.0,
        "memory_bytes": 3000,
        "arena_bytes": 1000,
        "param_bytes": 2000,
        "error_estimate": 1e-6,
        "thread_options": (
            ThreadOption(threads=2, replicas=1, predicted_ns=200.0, memory_bytes=3000, throughput_per_s=5e6, verdict="chosen"),
        ),
        "why": "2 threads are the fastest",
    }
    return Plan(**{**fields, **changes})


def run_op(index: int = 0, name: str = "", **changes: Any) -> Op:
    """Return one op of a report. changes: fields to replace or add; the op is timed if it has a `p50_ns`."""
    counts = dict.fromkeys(("read_bytes", "write_bytes", "param_bytes", "live_bytes"), 100)
    fields: dict[str, Any] = {
        **counts,
        "index": index,
        "name": name or f"conv{index}",
        "op": "Conv",
        "origins": (name or f"conv{index}",),
        "inputs": ("x",),
        "outputs": ("y",),
        "output": "float32[1,8]",
        "macs": 1000,
        "executed_macs": 1000,
        "flops": 2010,
        "moved_bytes": 4000,
        "intensity": 0.5,
        "share_percent": 10.0,
        "counted": True,
    }
    return Op(**{**fields, **changes})


def report(ops: Sequence[Op] = (), *, wall_p50_ns: float | None = None, model: str = MODEL, **setup: Any) -> Report:
    """Return a static report, or a trace on DEVICE if a wall time in ns is given. setup: fields of the trace's setup."""
    how: dict[str, Any] = {
        "device": DEVICE.fingerprint,
        "device_name": DEVICE.name,
        "threads": 2,
        "precision": "fp32",
        "backend": "auto",
        "plan_id": "default",
        "engine_build": BUILD.id,
        "runs": 10,
        "warmup": 3,
        "measured_us": 1_700_000_000_000_000,
    }
    counts = (
        "params",
        "initializer_elements",
        "param_bytes",
        "read_bytes",
        "write_bytes",
        "peak_activation_bytes",
        "arena_bytes",
    )
    totals: dict[str, Any] = {**dict.fromkeys(counts, 0), "params_note": "", "other_flops": 0, "coverage_percent": 100.0}
    totals |= {name: sum(getattr(op, name) for op in ops) for name in ("macs", "flops", "executed_macs")}
    if wall_p50_ns is not None:
        totals |= {"wall_p50_ns": wall_p50_ns, "wall_p90_ns": 1.01 * wall_p50_ns, "first_ns": 10 * wall_p50_ns}
    return Report(
        kind="static" if wall_p50_ns is None else "trace",
        model=ModelFacts(name="tiny.onnx", digest=model, inputs={"x": "float32[1,3,8,8]"}, outputs={}),
        setup=None if wall_p50_ns is None else Setup(**{**how, **setup}),
        totals=Totals(**totals),
        ops=tuple(ops),
        values=(),
        check=Check(ok=True),
    )
