"""Run one model on one engine in a process of its own, since the thread pools of several engines would disturb each other.

usage: worker.py ENGINE MODEL THREADS FEEDS.npz       reads commands from stdin and answers each by one line of JSON
    outputs FILE.npz     run once and save the outputs
    burst SECONDS        run for that long, at least three times; the answer is the nanoseconds of every run
    memory               the answer is the peak resident bytes of this process

The worker runs under the interpreter that has the engine installed. It imports Edgewise only if that is the engine.
Every engine is set up as its users would do it for low latency with that many threads.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Feeds = dict[str, np.ndarray]
Run = Callable[[], dict[str, np.ndarray]]


def edgewise(model: str, threads: int, feeds: Feeds) -> tuple[Run, str]:
    """Load Edgewise with its default plan. Return run and version.

    `edgewise:numpy` and `edgewise:native` force a backend, `edgewise:bf16` computes products in that precision.
    """
    import edgewise as engine

    asked = sys.argv[1].partition(":")[2]
    precision: Any = "bf16" if asked == "bf16" else "fp32"
    backend: Any = asked if asked and asked != precision else "auto"
    session = engine.Session(model, threads=threads, precision=precision, backend=backend)
    return lambda: session.run(feeds), engine.__version__


def onnxruntime(model: str, threads: int, feeds: Feeds) -> tuple[Run, str]:
    """Load ONNX Runtime with its CPU provider and all graph optimisations, its default. Return run and version."""
    import onnxruntime as engine

    options = engine.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = engine.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda: dict(zip(names, session.run(None, feeds), strict=True)), engine.__version__


def openvino(model: str, threads: int, feeds: Feeds) -> tuple[Run, str]:
    """Load OpenVINO with a latency hint and fp32, since its default on CPUs with bf16 is bf16. Return run and version.

    `openvino:bf16` may compute in that precision.
    """
    import openvino as engine

    config = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1}
    config["INFERENCE_PRECISION_HINT"] = sys.argv[1].partition(":")[2] or "f32"
    compiled = engine.Core().compile_model(model, "CPU", config)
    request = compiled.create_infer_request()
    names = [next(iter(output.names)) for output in compiled.outputs]

    def run() -> dict[str, np.ndarray]:
        results = request.infer(feeds, share_inputs=True, share_outputs=True)
        return dict(zip(names, results.values(), strict=True))

    return run, engine.__version__


def mnn(model: str, threads: int, feeds: Feeds) -> tuple[Run, str]:
    """Load MNN with fp32. The first use writes the converted model beside the feeds. Return run and version."""
    import subprocess

    import MNN
    import MNN.numpy as mnp
    from MNN import nn

    converted = Path(sys.argv[4]).with_suffix(".mnn")
    if not converted.exists():
        command = [str(Path(sys.executable).with_name("mnnconvert")), "-f", "ONNX", "--modelFile", model]
        subprocess.run([*command, "--MNNModel", str(converted), "--bizCode", "b"], check=True, capture_output=True)
    runtime = nn.create_runtime_manager(({"backend": "CPU", "numThread": threads, "precision": "high"},))
    module = nn.load_module_from_file(str(converted), list(feeds), ["out"], runtime_manager=runtime)
    inputs = []
    for array in feeds.values():
        small = array.astype(np.int32) if array.dtype == np.int64 else array
        variable = mnp.array(small)
        inputs.append(MNN.expr.convert(variable, MNN.expr.NC4HW4) if small.ndim == 4 else variable)
    return lambda: {"out": np.array(module.forward(inputs)[0].read())}, MNN.version()


def ncnn(model: str, threads: int, feeds: Feeds) -> tuple[Run, str]:
    """Load ncnn with fp16 and bf16 off, from a model that pnnx converts. Only for image models. Return run and version."""
    import subprocess

    import ncnn as engine

    folder = Path(sys.argv[4]).with_suffix(".ncnn")
    param = folder / "m.ncnn.param"
    if not param.exists():
        folder.mkdir(exist_ok=True)
        link = folder / "m.onnx"
        link.unlink(missing_ok=True)
        link.symlink_to(Path(model).resolve())
        shape = "[" + ",".join(map(str, next(iter(feeds.values())).shape)) + "]"
        command = [str(Path(sys.executable).with_name("pnnx")), "m.onnx", f"inputshape={shape}", "fp16=0"]
        subprocess.run(command, check=True, capture_output=True, cwd=folder)
    net = engine.Net()
    net.opt.num_threads = threads
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    net.opt.use_bf16_storage = net.opt.use_bf16_packed = False
    net.load_param(str(param))
    net.load_model(str(param.with_suffix(".bin")))
    image = engine.Mat(np.ascontiguousarray(next(iter(feeds.values()))[0]))

    def run() -> dict[str, np.ndarray]:
        extractor = net.create_extractor()
        extractor.input("in0", image)
        return {"out": np.array(extractor.extract("out0")[1])[None]}

    return run, engine.__version__


ENGINES = {"edgewise": edgewise, "onnxruntime": onnxruntime, "openvino": openvino, "mnn": mnn, "ncnn": ncnn}


def burst(run: Run, seconds: float) -> list[int]:
    """Run for that many seconds, at least three times, and return the nanoseconds of every run."""
    times: list[int] = []
    deadline = time.perf_counter_ns() + int(seconds * 1e9)
    while len(times) < 3 or time.perf_counter_ns() < deadline:
        start = time.perf_counter_ns()
        run()
        times.append(time.perf_counter_ns() - start)
    return times


def peak_resident_bytes() -> int:
    """Return this process's peak resident bytes. getrusage would include the memory of the parent at the fork."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def main(engine: str, model: str, threads: str, feeds_path: str) -> None:
    """Import the engine, load the model, run it once, write the engine's version and what that took, then answer commands."""
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # engines print to stdout; replies have a descriptor of their own
    feeds = dict(np.load(feeds_path))
    start, busy = time.perf_counter_ns(), time.process_time_ns()
    run, version = ENGINES[engine.partition(":")[0]](model, int(threads), feeds)
    run()
    taken = {"load_ns": time.perf_counter_ns() - start, "cpu_ns": time.process_time_ns() - busy}
    replies.write(json.dumps({"version": version, **taken}) + "\n")
    for line in sys.stdin:
        command, _, argument = line.strip().partition(" ")
        if command == "outputs":
            np.savez(argument, allow_pickle=False, **run())
            reply: object = "saved"
        elif command == "burst":
            reply = burst(run, float(argument))
        elif command == "memory":
            reply = peak_resident_bytes()
        else:
            raise SystemExit(f"worker: unknown command {command!r}")
        replies.write(json.dumps(reply) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
