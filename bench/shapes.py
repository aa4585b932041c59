"""Measure which share of the machine's multiply–add peak each convolution and matrix product of a model reaches by itself."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from bench.models import exports_folder
from graph.formats.registry import read
from graph.ir import Node, Specs
from graph.native.calls import Call
from graph.native.engine import Native
from graph.native.facts import Facts
from graph.native.place import Storage
from graph.native.segment import complete_choices, lower
from graph.passes.optimise import optimise
from graph.shapes import bind
from kernels.cost import FLOPS_PER_MAC
from kernels.native.memory.buffers import aligned
from kernels.native.run.program import KernelCall, Program, ProgramCode, Ref
from kernels.native.run.thread_pool import ThreadPool
from kernels.registry import find
from profiler.device.measure import Effort, PinnedThreads
from profiler.device.probe.loops import compile_for_host
from profiler.device.probe.peaks import measure_instruction_peak

SHAPES_OF = ("resnet50", "mobilenet_v2", "vit_b_16")
REPEATS = 8  # how often a program repeats a node's calls, so that the cost of starting a run counts less
LARGE_FLOPS = 50e6  # shapes with fewer FLOPs need not reach the goal
GOAL_PERCENT = 92
TURNS = 10  # turns of every shape


@dataclass(frozen=True, slots=True)
class Shape:
    """One distinct convolution or product. how: its strategy. flops: of the model's arithmetic. times: how often it occurs."""

    text: str
    how: str
    flops: int
    calls: tuple[Call, ...]
    times: int


def shapes_of(name: str, native: Native, threads: int) -> Iterator[Shape]:
    """Yield the distinct convolutions and products of an export as the native backend runs them, in order."""
    model = read(exports_folder() / f"{name}.onnx")
    ready = optimise(model.graph, bind(model.graph))
    _, parts = native.parts(ready.graph, ready.specs, {})
    found: dict[str, list[Shape]] = {}
    facts = Facts(ready.specs, ready.graph.constants, native.isa, threads)
    for part in parts.values():
        choices = complete_choices(part, facts, {})
        lowering = lower(part, facts, native.constants, choices)
        for at, node in enumerate(part.nodes):
            flops = _flops(node, ready.specs)
            if flops:
                text = _text(node, ready.specs)
                how = str(choices[node.name])
                calls = tuple(call for call in lowering.calls if call.node == at)
                found.setdefault(text, []).append(Shape(text, how, flops, calls, 1))
    for alike in found.values():
        yield Shape(alike[0].text, alike[0].how, alike[0].flops, alike[0].calls, len(alike))


def _flops(node: Node, specs: Specs) -> int:
    """Return the FLOPs of a convolution or product, two for each MAC; 0 for other ops."""
    if node.op not in ("Conv", "MatMul", "Gemm"):
        return 0
    op, operands = find(node.op), [specs[name] if name else None for name in node.inputs]
    cost = op.count(operands, op.infer_specs(operands, node.attrs), node.attrs)
    return 0 if cost is None else FLOPS_PER_MAC * cost.macs


def _text(node: Node, specs: Specs) -> str:
    shapes = "×".join(",".join(map(str, spec.shape)) for name in node.inputs[:2] if (spec := specs[name]) is not None)
    strides = node.attrs.get("strides")
    more = f" stride {strides[0]}" if strides and max(strides) > 1 else ""
    group = node.attrs.get("group", 1)
    return f"{node.op} {shapes}{more}" + (f" group {group}" if group > 1 else "")


class Timed:
    """A program of a shape's calls on memory of its own. best_ns: the shape's fastest run so far."""

    def __init__(self, shape: Shape, native: Native, pool: ThreadPool) -> None:
        self.shape, self.best_ns = shape, float("inf")
        storages = list(dict.fromkeys(storage for call in shape.calls for storage, _ in call.arguments.values()))
        slots = {storage: n for n, storage in enumerate(storages)}
        steps = [
            KernelCall(call.kernel, {name: Ref(slots[storage], at) for name, (storage, at) in call.arguments.items()})
            for call in shape.calls
        ] * REPEATS
        self._program = Program(ProgramCode(steps, len(storages), native.isa, cache=native.cache), pool)
        self._memories = [_memory(storage) for storage in storages]
        for slot, memory in enumerate(self._memories):
            self._program.bind(slot, memory)

    def take_turn(self, threads: int, seconds: float) -> None:
        """Run again and again for that many seconds."""
        deadline = time.perf_counter() + seconds
        while time.perf_counter() < deadline:
            began = time.perf_counter_ns()
            self._program.run(threads)
            self.best_ns = min(self.best_ns, (time.perf_counter_ns() - began) / REPEATS)


def _memory(storage: Storage) -> np.ndarray:
    if storage.constant is not None:
        return storage.constant.array
    memory = aligned(storage.nbytes).view(np.float32)
    memory[:] = np.random.default_rng(0).standard_normal(memory.size, np.float32)
    return memory


def fma_peak(threads: int) -> float:
    """Measure the FLOP/s of a loop of independent multiply–adds."""
    compiled = compile_for_host()
    loops = [loop for loop in compiled.peaks if loop.precision == "fp32"]
    with PinnedThreads(threads, sorted(os.sched_getaffinity(0))[:threads]) as team:
        return max(measure_instruction_peak(compiled, loop, team, Effort(0.05, 3)).rate.value for loop in loops)


def compare_shapes(names: list[str], threads: int, seconds: float) -> None:
    """Print the share of the peak that each shape reaches. seconds: for each shape.

    The fastest run of a shape is compared with the fastest peak, and the turns of both are spread over the whole time: other
    work on the same cores can slow a kernel by a third for seconds at a time, while it leaves the peak as it is.
    """
    native, pool, console = Native(), ThreadPool(threads), Console(width=140)
    for name in names:
        timed = [Timed(shape, native, pool) for shape in shapes_of(name, native, threads)]
        peak = 0.0
        for _ in track(range(TURNS), description=f"{name}: shapes", console=Console(stderr=True), transient=True):
            peak = max(peak, fma_peak(threads))
            for one in timed:
                one.take_turn(threads, seconds / TURNS)
        table = Table(
            title=f"{name}: fp32 convolutions and products by themselves, {threads} thread{'s' * (threads > 1)}, "
            f"of {peak / 1e9:.0f} GFLOP/s"
        )
        for column in ("shape", "times", "how", "MFLOP", "µs", "GFLOP/s", "% of peak"):
            table.add_column(column, justify="left" if column in ("shape", "how") else "right")
        below = []
        for one in timed:
            shape, rate = one.shape, one.shape.flops / one.best_ns  # GFLOP/s
            share = 100 * rate / (peak / 1e9)
            if shape.flops >= LARGE_FLOPS and share < GOAL_PERCENT:
                below.append(f"{shape.text} ({share:.0f} %)")
            cells = (f"{shape.flops / 1e6:.1f}", f"{one.best_ns / 1e3:.1f}", f"{rate:.0f}", f"{share:.0f}")
            table.add_row(shape.text, str(shape.times), shape.how.removeprefix("native/"), *cells)
        console.print(table)
        console.print(
            f"shapes of at least {LARGE_FLOPS / 1e6:.0f} MFLOP below {GOAL_PERCENT} % of the peak: {', '.join(below) or 'none'}"
        )
