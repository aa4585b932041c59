"""Make reports of real runs."""

from __future__ import annotations

import numpy as np
import onnx

from graph.formats.onnx.reader import read
from graph.native.engine import Native
from graph.passes.optimise import optimise
from graph.run.executor import Executor
from graph.shapes import bind
from profiler.counting.counts import profile
from profiler.report.document import Report, Setup
from profiler.report.makers import trace_report
from profiler.run.trace import trace
from tests.profiler.devices import device

SETUP = {
    "device_name": "Test",
    "precision": "fp32",
    "backend": "auto",
    "plan_id": "default",
    "engine_build": "b",
    "measured_us": 1,
}


def traced(made: onnx.ModelProto, batch: int, native: Native | None, *, threads: int = 2) -> Report:
    loaded = read(made)
    ready = optimise(loaded.graph, bind(loaded.graph, dims={"batch": batch}))
    executor = Executor(ready.graph, ready.specs, threads=threads, backend=native)
    feeds = {port.name: np.ones(ready.specs[port.name].shape, np.float32) for port in ready.graph.inputs}
    measured = trace(executor, feeds, runs=3, warmup=1)
    on = device()
    setup = Setup(**SETUP, device=on.fingerprint, threads=threads, runs=3, warmup=1)
    predicted = {step.node.name: 10.0 for step in executor.steps}
    return trace_report(profile(loaded, dims={"batch": batch}), executor, measured, setup, on, predicted)
