"""Products and convolutions on an NVIDIA GPU: every tile and number of slices, beside PyTorch where it is installed.

    python -m bench.gpu_products [--precisions bf16,fp32] [--batches 1,32] [--json FILE]

Shapes are those of resnet50, vit_b_16 and bert-base. A time is the median of five launches of a graph of many calls, so it holds
what starting a kernel in a graph takes, and data that fits stays in the L2 cache. PyTorch's calls are captured and timed in the
same way, before and after ours; for convolutions they add no bias and no activation, ours do both.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import ml_dtypes
import numpy as np

from kernels.cuda.driver import Context, Driver, Memory, Stream
from kernels.cuda.emit.epilogue import UNCHANGED
from kernels.cuda.families.candidates import candidates
from kernels.cuda.families.problem import Cut, Problem, Window
from kernels.cuda.families.product_work import Precision
from kernels.cuda.program import Addresses, Kernels, Launch
from kernels.expression import FLOAT, Apply, Expression

RELU = Expression((FLOAT,), (Apply("relu", (0,)),))
REPEATS = 5
MANY_FLOPS = 2e10  # from where a graph holds fewer calls


def shapes(batch: int) -> Iterator[tuple[str, Problem]]:
    """Yield the shapes, by name."""
    for size, inner, outer in ((56, 64, 256), (28, 128, 512), (14, 256, 1024), (7, 512, 2048)):
        pixels = batch * size * size
        yield f"conv 1x1 {size} {inner}→{outer}", Problem(pixels, outer, inner)
        yield f"conv 1x1 {size} {outer}→{inner}", Problem(pixels, inner, outer)
        window = Window(batch, size, size, inner, (3, 3), padding=(1, 1, 1, 1))
        yield f"conv 3x3 {size} {inner}→{inner}", Problem.convolution(window, inner)
    first = Window(batch, 224, 224, 4, (7, 7), (2, 2), (3, 3, 3, 3))
    yield "conv 7x7/2 224 4→64", Problem.convolution(first, 64)
    for rows, columns, depth in ((197, 768, 768), (197, 3072, 768), (197, 768, 3072), (128, 768, 768)):
        yield f"product {rows}·{batch}×{depth}×{columns}", Problem(batch * rows, columns, depth)


@dataclass(frozen=True)
class Run:
    """A kernel's time. ns: of a call."""

    ns: float
    cut: Cut


class Bench:
    """What times kernels on a GPU."""

    def __init__(self, context: Context) -> None:
        self.context, self.stream, self.kernels = context, context.stream(), Kernels(context)

    def time_launch(self, launch: Launch, addresses: Addresses, calls: int) -> float:
        """Return the nanoseconds of a launch, of `calls` in a graph."""
        self.kernels.function(launch.kernel)
        return self.time(lambda stream: self.kernels.launch(launch, addresses, stream), calls)

    def time(self, work: Callable[[Stream], None], calls: int) -> float:
        """Return the nanoseconds of a call, of `calls` in a graph."""
        with self.stream.capture() as graph:
            for _ in range(calls):
                work(self.stream)
        start, end, found = self.context.event(), self.context.event(), []
        graph.launch(self.stream)
        for _ in range(REPEATS):
            self.stream.record(start)
            graph.launch(self.stream)
            self.stream.record(end)
            end.synchronize()
            found.append(end.elapsed_ns(start) / calls)
        graph.close()
        return statistics.median(found)

    def random(self, elements: int, dtype: np.dtype[Any]) -> Memory:
        """Return memory with normally distributed numbers."""
        memory = self.context.allocate(elements * dtype.itemsize)
        memory.write(np.random.default_rng(0).standard_normal(elements, np.float32).astype(dtype))
        return memory

    def best(self, precision: Precision, problem: Problem) -> list[Run]:
        """Time every candidate, and return the fastest first."""
        runs: list[Run] = []
        dtype = {"bf16": np.dtype(ml_dtypes.bfloat16), "fp16": np.dtype(np.float16)}.get(precision, np.dtype(np.float32))

        pixels = problem.m if problem.window is None else problem.window.batch * problem.window.height * problem.window.width
        x, w = self.random(pixels * problem.strides[0], dtype), self.random(problem.n * problem.k, dtype)
        bias = self.random(problem.n, np.dtype(np.float32))
        y = self.context.allocate(4 * problem.m * problem.n)
        expression = UNCHANGED if problem.window is None else RELU
        for cut in candidates(precision, problem, self.context.device, bias=True, expression=expression):
            partial, counters = self.context.allocate(max(4, cut.partial_bytes)), self.context.allocate(max(4, cut.counter_bytes))
            counters.fill(0)
            launch = cut.launch(**{name: name for name in cut.needs})
            addresses = {"x": x, "w": w, "y": y, "bias": bias, "partial": partial, "counters": counters}
            runs.append(Run(self.time_launch(launch, addresses, calls_of(problem)), cut))
            partial.close()
            counters.close()
        return sorted(runs, key=lambda run: run.ns)


def time_torch(precision: Precision, problem: Problem, calls: int) -> float | None:
    """Return the nanoseconds of PyTorch's call, or None where PyTorch is not installed."""
    if importlib.util.find_spec("torch") is None:
        return None
    import torch  # type: ignore[import-not-found]
    from torch.nn import functional  # type: ignore[import-not-found]

    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    window = problem.window
    w, bias = (torch.randn(size, device="cuda").to(dtype) for size in ((problem.n, problem.k), (problem.n,)))
    if window is None:
        x = torch.randn(problem.m, problem.k, device="cuda").to(dtype)
    else:
        x = torch.randn(window.batch, window.height, window.width, window.channels, device="cuda").to(dtype).permute(0, 3, 1, 2)
        kernel = w.view(problem.n, *window.kernel, window.channels).permute(0, 3, 1, 2)

    def work() -> None:
        if window is None:
            functional.linear(x, w, bias)
        else:
            functional.conv2d(x, kernel, None, window.strides, window.padding[:2])

    return time_torch_call(work, calls)


def time_torch_call(work: Callable[[], Any], calls: int) -> float:
    """Return the nanoseconds of a call of PyTorch, of `calls` in a graph."""
    import torch

    with torch.cuda.stream(torch.cuda.Stream()):
        work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            work()
    graph.replay()
    found: list[float] = []
    for _ in range(REPEATS):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        found.append(start.elapsed_time(end) * 1e6 / calls)
    return statistics.median(found)


def calls_of(problem: Problem) -> int:
    """Return how many calls a graph holds."""
    return 5 if problem.flops > MANY_FLOPS else 20


def main() -> None:
    """Print a table, and write it as JSON where a file is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precisions", default=",".join(get_args(Precision)))
    parser.add_argument("--batches", default="1,32")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    device = Driver().device()
    with device.open() as context:
        bench = Bench(context)
        print("| precision | shape | batch | µs | TFLOP/s | PyTorch µs | ratio | kernel | slices |")
        print("|---" * 9 + "|")
        for precision in options.precisions.split(","):
            for batch in map(int, options.batches.split(",")):
                for name, problem in shapes(batch):
                    before = time_torch(precision, problem, calls_of(problem))
                    run = bench.best(precision, problem)[0]
                    after = time_torch(precision, problem, calls_of(problem))
                    torch_ns = None if before is None or after is None else (before + after) / 2
                    row = {"precision": precision, "shape": name, "batch": batch, "flops": problem.flops, "ns": run.ns}
                    row |= {"torch_ns": torch_ns, "kernel": run.cut.form.name, "slices": run.cut.slices}
                    rows.append(row)
                    peer = "| |" if torch_ns is None else f"{torch_ns / 1e3:.2f} | {torch_ns / run.ns:.2f} |"
                    speed = f"{run.ns / 1e3:.2f} | {problem.flops / run.ns / 1e3:.1f}"
                    print(
                        f"| {precision} | {name} | {batch} | {speed} | {peer} {run.cut.form.name} | {run.cut.slices} |",
                        flush=True,
                    )
    if options.json:
        options.json.write_text(json.dumps({"device": device.name, "python": sys.version, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
