"""What a GPU can do, measured: `python -m kernels.cuda.probe [--json] [--device N]`.

Peaks are those of instructions without memory, bandwidths those of plain loops. Every figure is the median of repeated runs, with
how it was measured. The GPU's settings stay as they are; with each peak comes the clock at which it was reached.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from kernels.cuda import probe_kernels as source
from kernels.cuda.driver import Attribute, Context, Device, Driver, Event, Function, Memory, Stream
from kernels.cuda.errors import CudaError
from kernels.cuda.ptx import PtxTarget, compile_ptx, find_target
from kernels.errors import EdgewiseError
from kernels.native.code.cache import CodeCache, Source
from kernels.native.target.host import llvm_version
from kernels.record import record

Unit = Literal["FLOP/s", "OP/s", "B/s", "ns", "Hz"]

_CLOCK = "the first thread's cycles over its nanoseconds, in the last run of that peak"
_BARRIER_ROUNDS = 10_000
_LAUNCHES = 1_000
TRANSFER_BYTES = 256 << 20
NOISE_BYTES = 64 << 20
_MODULE_VERSION = Path("/proc/driver/nvidia/version")


@record
class Figure:
    """One measured number.

    value: the median of the repeats. spread_percent: how far these lie apart, relative to it: the largest less the smallest, and
    from ten repeats on the 90th percentile less the 10th.
    """

    value: float
    unit: Unit
    repeats: int
    spread_percent: float
    method: str
    statistic: str = "median"


@record
class GpuProfile:
    """A GPU as data: what its driver says, and what was measured. figures: by name, such as bf16_mma or barrier_256."""

    name: str
    capability: tuple[int, int]
    processors: int
    clock_hz: float
    memory_clock_hz: float
    memory_bus_bits: int
    memory_bytes: int
    l2_bytes: int
    shared_bytes_per_processor: int
    shared_bytes_per_block: int
    registers_per_processor: int
    threads_per_processor: int
    driver: str
    llvm: str
    measured_at: str
    figures: dict[str, Figure] = field(default_factory=dict)


@record
class Effort:
    """How long to measure: each of `repeats` runs lasts about `window_ns`."""

    window_ns: float = 10e6
    repeats: int = 10


def summarise(samples: Sequence[float], unit: Unit, method: str) -> Figure:
    """Summarise repeated samples in one figure."""
    middle = statistics.median(samples)
    low, high = min(samples), max(samples)
    if len(samples) >= 10:
        deciles = statistics.quantiles(samples, n=10, method="inclusive")
        low, high = deciles[0], deciles[-1]
    return Figure(middle, unit, len(samples), 100 * (high - low) / middle if middle else 0, method)


def describe(device: Device, driver: Driver) -> GpuProfile:
    """Return what the driver says of a GPU, without figures."""
    ask = device.attribute
    return GpuProfile(
        name=device.name,
        capability=device.capability,
        processors=ask(Attribute.PROCESSORS),
        clock_hz=ask(Attribute.CLOCK_KHZ) * 1e3,
        memory_clock_hz=ask(Attribute.MEMORY_CLOCK_KHZ) * 1e3,
        memory_bus_bits=ask(Attribute.MEMORY_BUS_BITS),
        memory_bytes=device.memory_bytes,
        l2_bytes=ask(Attribute.L2_BYTES),
        shared_bytes_per_processor=ask(Attribute.SHARED_BYTES_PER_PROCESSOR),
        shared_bytes_per_block=ask(Attribute.SHARED_BYTES_PER_BLOCK),
        registers_per_processor=ask(Attribute.REGISTERS_PER_PROCESSOR),
        threads_per_processor=ask(Attribute.THREADS_PER_PROCESSOR),
        driver=_driver_text(driver),
        llvm=llvm_version(),
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _driver_text(driver: Driver) -> str:
    """The version of the kernel module, where the system tells it, and that of CUDA."""
    cuda = "CUDA {}.{}".format(*driver.version)
    try:
        found = re.search(r"\s(\d+\.\d+(?:\.\d+)?)\s", _MODULE_VERSION.read_text())
    except OSError:
        found = None
    return f"{found[1]}, {cuda}" if found else cuda


def probe(device: Device, driver: Driver, cache: CodeCache | None = None, effort: Effort | None = None) -> GpuProfile:
    """Measure a GPU, in about 10 s. Raises the errors of `kernels.cuda.errors`."""
    profile = describe(device, driver)
    with device.open() as context:
        bench = Bench(context, find_target(device.capability), cache, effort or Effort())
        for part in (measure_arithmetic, measure_memory, measure_barriers, measure_launches, measure_transfers):
            profile.figures.update(part(bench))
    return profile


class Bench:
    """Compiles and times kernels on one stream of a context."""

    def __init__(self, context: Context, target: PtxTarget, cache: CodeCache | None, effort: Effort) -> None:
        self.context, self.target, self.cache, self.effort = context, target, cache, effort
        self.stream: Stream = context.stream()
        self.processors = context.device.attribute(Attribute.PROCESSORS)
        self._start: Event = context.event()
        self._end: Event = context.event()

    def function(self, module: str, name: str, text: Callable[[], str]) -> Function:
        """Compile a module and return a kernel of it."""
        ptx = compile_ptx(Source.of_kernel(f"probe_{module}", text), self.target, self.cache)
        return self.context.load(ptx).function(name)

    def time_ns(self, work: Callable[[], object], before: Callable[[], object] = lambda: None) -> float:
        """Time work on the stream once, by the GPU's own events. before: put on the stream ahead of it, and not timed."""
        before()
        self.stream.record(self._start)
        work()
        self.stream.record(self._end)
        self._end.synchronize()
        return self._end.elapsed_ns(self._start)

    def times_ns(self, work: Callable[[], object], before: Callable[[], object] = lambda: None) -> list[float]:
        """Time work as often as the effort says, after one run that does not count."""
        self.time_ns(work, before)
        return [self.time_ns(work, before) for _ in range(self.effort.repeats)]

    def calibrate(self, work: Callable[[int], object]) -> int:
        """Return the number of turns that makes `work(turns)` last about as long as the effort says."""
        turns = 1
        while (elapsed_ns := min(self.time_ns(partial(work, turns)) for _ in range(2))) < self.effort.window_ns / 10:
            turns *= 2
        return max(1, round(turns * self.effort.window_ns / elapsed_ns))

    def waits_ns(self, work: Callable[[], object]) -> list[float]:
        """Time work on the host's clock, each time with a wait until the stream is done."""
        samples = []
        for _ in range(20 * self.effort.repeats):
            start = time.perf_counter_ns()
            work()
            self.stream.synchronize()
            samples.append(float(time.perf_counter_ns() - start))
        return samples[self.effort.repeats :]


@record
class _Peak:
    """A kernel of arithmetic. shapes: threads of a block and blocks on a processor, of which the fastest counts."""

    name: str
    unit: Unit
    text: Callable[[], str]
    work: Callable[[int], int]
    shapes: tuple[tuple[int, int], ...]
    shared_bytes: Callable[[int], int] | None  # dynamic, of a block of so many threads
    method: str


def _peaks(target: PtxTarget) -> Iterator[_Peak]:
    yield _Peak(
        "fp32_fma",
        "FLOP/s",
        source.fma_f32,
        lambda threads: threads * source.FMA_FLOPS,
        ((256, 2), (512, 1), (512, 2), (1024, 1)),
        None,
        f"fma.rn.f32, {source.FMA_CHAINS} independent chains a thread",
    )
    for name, products in source.PRODUCTS.items():
        unit: Unit = "OP/s" if products.result == "i32" else "FLOP/s"
        yield _Peak(
            f"{name}_mma",
            unit,
            partial(source.mma_sync, products),
            partial(source.mma_work, products),
            ((128, 1), (128, 2), (256, 1), (256, 2), (512, 1), (512, 2)),
            None,
            f"mma.sync m16n8k{products.depth} {products.kind}, operands in registers, random",
        )
        if target.cpu == "sm_90a":
            yield _Peak(
                f"{name}_wgmma",
                unit,
                partial(source.wgmma, products),
                partial(source.wgmma_work, products),
                ((128, 1), (128, 2), (256, 1), (384, 1)),
                source.wgmma_bytes,
                f"wgmma m64n256k{products.depth} {products.kind}, operands in shared memory, random",
            )


def measure_arithmetic(bench: Bench) -> dict[str, Figure]:
    """Measure operations per second, and the clock at which each peak was reached."""
    figures = {}
    with bench.context.allocate(4 * 2048 * bench.processors) as out, bench.context.allocate(16) as clocks:
        for peak in _peaks(bench.target):
            function = bench.function(peak.name, "peak", peak.text)
            found = [_measure_peak(bench, peak, function, shape, out, clocks) for shape in peak.shapes]
            figures[peak.name], figures[f"{peak.name}_clock"] = max(found, key=lambda pair: pair[0].value)
    return figures


def _measure_peak(
    bench: Bench, peak: _Peak, function: Function, shape: tuple[int, int], out: Memory, clocks: Memory
) -> tuple[Figure, Figure]:
    threads, each = shape
    shared_bytes = peak.shared_bytes(threads) if peak.shared_bytes else 0
    if shared_bytes:
        function.allow_shared(shared_bytes)

    def run(turns: int) -> None:
        arguments = (out, clocks, ctypes.c_int32(turns))
        bench.stream.launch(function, arguments, blocks=bench.processors * each, threads=threads, shared_bytes=shared_bytes)

    turns = bench.calibrate(run)
    work = peak.work(threads) * bench.processors * each * turns
    rates = [work / ns * 1e9 for ns in bench.times_ns(partial(run, turns))]
    cycles, elapsed_ns = (int(value) for value in clocks.read(np.zeros(2, np.int64)))
    method = f"{peak.method}; {each} × {threads} threads on each of {bench.processors} processors"
    return summarise(rates, peak.unit, method), summarise([cycles / max(1, elapsed_ns) * 1e9], "Hz", _CLOCK)


def measure_memory(bench: Bench) -> dict[str, Figure]:
    """Measure bytes per second from and to memory and L2."""
    l2_bytes = bench.context.device.attribute(Attribute.L2_BYTES)
    large_bytes = min(8 << 30, bench.context.free_bytes() // 4)  # of which L2 holds next to nothing from one pass to the next
    figures = {}
    with bench.context.allocate(large_bytes) as x, bench.context.allocate(large_bytes) as y:
        _fill_with_noise(bench.context, x)
        places = {
            "memory": [large_bytes],
            "l2": [l2_bytes // part for part in (12, 8, 6, 4)],
            "l2_half": [l2_bytes // 2],
        }
        for name in ("read", "copy"):
            function = bench.function("memory", name, source.stream_memory)
            for place, sizes in places.items():
                shapes = [(threads, each) for threads, each in ((512, 1), (512, 2), (1024, 1), (1024, 2))]
                runs = [_measure_stream(bench, function, size, shape, x, y) for size in sizes for shape in shapes]
                figures[f"{place}_{name}"] = max(runs, key=lambda figure: figure.value)
    return figures


def _fill_with_noise(context: Context, memory: Memory) -> None:
    noise = np.random.default_rng(0).integers(0, 256, NOISE_BYTES, np.uint8)
    with context.allocate(noise.nbytes) as block:
        block.write(noise)
        for at in range(0, memory.n_bytes - block.n_bytes + 1, block.n_bytes):
            memory.copy_from(block, at=at)


def _measure_stream(bench: Bench, function: Function, n_bytes: int, shape: tuple[int, int], x: Memory, y: Memory) -> Figure:
    threads, each = shape
    blocks = bench.processors * each
    chunk = source.READ_UNROLL * threads * blocks
    copies = function.name == "copy"
    wanted = n_bytes / (2 if copies and n_bytes < x.n_bytes else 1)  # a copy in L2 keeps both sides there
    parts = max(1, min(round(wanted / 16 / chunk), x.n_bytes // 16 // chunk)) * chunk

    def run(passes: int) -> None:
        arguments = (x, y, ctypes.c_int64(parts), ctypes.c_int32(passes))
        bench.stream.launch(function, arguments, blocks=blocks, threads=threads)

    passes = bench.calibrate(run)
    moved = 16 * parts * passes * (2 if copies else 1)
    method = f"{parts * 16 / 2**20:.0f} MiB, 16 bytes a load, {each} × {threads} threads on each of {bench.processors} processors"
    method += ", bytes read and written" if copies else ""
    return summarise([moved / ns * 1e9 for ns in bench.times_ns(partial(run, passes))], "B/s", method)


def measure_barriers(bench: Bench) -> dict[str, Figure]:
    """Measure a barrier across all processors, one block on each, alone and between steps of work; and those steps as launches.

    In a step, each thread reads 4 bytes that a thread of the next block wrote in the step before, and writes 4 bytes.
    """
    figures = {}
    for kind, way in source.BARRIER_WAYS.items():
        text = partial(source.barriers, kind)
        meet, steps = (bench.function(f"barrier_{kind}", name, text) for name in ("meet", "steps"))
        for threads in (128, 256, 512, 1024):
            method = f"{bench.processors} blocks of {threads} threads, {_BARRIER_ROUNDS:,} in a row, {way}"
            figures[f"barrier_{kind}_{threads}"] = summarise(_barrier_times_ns(bench, meet, threads), "ns", method)
        method = f"a step and a barrier ({way}), {bench.processors} blocks of 256 threads, {_BARRIER_ROUNDS:,} in a row"
        figures[f"step_{kind}"] = summarise(run_steps(bench, steps, 256, _BARRIER_ROUNDS), "ns", method)
    figures["step_graph"] = _measure_step_graph(bench)
    return figures


def _barrier_times_ns(bench: Bench, meet: Function, threads: int) -> list[float]:
    with bench.context.allocate(4) as state:
        arguments = (state, ctypes.c_int32(_BARRIER_ROUNDS))
        samples = bench.times_ns(
            partial(bench.stream.launch, meet, arguments, blocks=bench.processors, threads=threads, cooperative=True),
            partial(state.fill, 0, bench.stream),
        )
    return [ns / _BARRIER_ROUNDS for ns in samples]


def run_steps(bench: Bench, steps: Function, threads: int, rounds: int) -> list[float]:
    """Return the times of `rounds` steps with barriers between, in ns a step.

    Raises CudaError where a block did not see what another wrote before a barrier.
    """
    n_bytes = 4 * threads * bench.processors
    with (
        bench.context.allocate(4 * bench.processors) as state,
        bench.context.allocate(n_bytes) as x,
        bench.context.allocate(n_bytes) as y,
    ):
        arguments = (state, ctypes.c_int32(rounds), x, y)

        def clear() -> None:
            for memory in (state, x, y):
                memory.fill(0, bench.stream)

        samples = bench.times_ns(
            partial(bench.stream.launch, steps, arguments, blocks=bench.processors, threads=threads, cooperative=True), clear
        )
        _check_steps((y if rounds % 2 else x).read(np.zeros(n_bytes // 4, np.int32)), rounds)
    return [ns / rounds for ns in samples]


def _check_steps(found: NDArray[np.int32], rounds: int) -> None:
    if wrong := int((found != rounds).sum()):
        raise CudaError(f"barrier: {wrong} of {found.size} threads read an old value in {rounds} rounds, need none")


def _measure_step_graph(bench: Bench) -> Figure:
    function = bench.function("step", "step", source.step)
    n_bytes = 4 * 256 * bench.processors
    with bench.context.allocate(n_bytes) as x, bench.context.allocate(n_bytes) as y:
        with bench.stream.capture() as graph:
            for n in range(_LAUNCHES):
                bench.stream.launch(function, (y, x) if n % 2 else (x, y), blocks=bench.processors, threads=256)
        samples = bench.times_ns(partial(graph.launch, bench.stream), partial(x.fill, 0, bench.stream))
        _check_steps((y if _LAUNCHES % 2 else x).read(np.zeros(n_bytes // 4, np.int32)), _LAUNCHES)
        graph.close()
    method = f"a step as a launch in a graph of {_LAUNCHES:,}, {bench.processors} blocks of 256 threads"
    return summarise([ns / _LAUNCHES for ns in samples], "ns", method)


def measure_launches(bench: Bench) -> dict[str, Figure]:
    """Measure what it costs to start a kernel that does nothing: in a row, with a wait, and in a graph."""
    empty = bench.function("empty", "empty", lambda: source.EMPTY)
    start = partial(bench.stream.launch, empty, (ctypes.c_int32(0),), blocks=bench.processors, threads=256)
    shape = f"{bench.processors} blocks of 256 threads"
    figures = {}
    for name, launch in (("launch", start), ("launch_cooperative", partial(start, cooperative=True))):
        samples = [ns / _LAUNCHES for ns in bench.times_ns(partial(_repeat, launch, _LAUNCHES))]
        figures[name] = summarise(samples, "ns", f"{_LAUNCHES:,} in a row from Python, {shape}")
        figures[f"{name}_wait"] = summarise(bench.waits_ns(launch), "ns", f"one and a wait, on the host's clock, {shape}")
    for nodes in (1, 60, _LAUNCHES):
        with bench.stream.capture() as graph:
            _repeat(start, nodes)
        run = partial(graph.launch, bench.stream)
        samples = [ns / nodes for ns in bench.times_ns(run)]
        figures[f"graph_{nodes}"] = summarise(samples, "ns", f"a launch in a graph of {nodes:,} in a row, {shape}")
        figures[f"graph_{nodes}_wait"] = summarise(
            bench.waits_ns(run), "ns", f"a graph of {nodes:,} and a wait, on the host's clock"
        )
        graph.close()
    return figures


def _repeat(call: Callable[[], object], times: int) -> None:
    for _ in range(times):
        call()


def measure_transfers(bench: Bench) -> dict[str, Figure]:
    """Measure copies between the host's memory and the GPU's."""
    n_bytes = TRANSFER_BYTES
    figures = {}
    with bench.context.pinned(n_bytes) as host, bench.context.allocate(n_bytes) as memory:
        host.array[:] = np.resize(np.random.default_rng(0).integers(0, 256, 1 << 20, np.uint8), n_bytes)
        small = host.array[:4]
        method = f"{n_bytes >> 20} MiB of pinned memory"
        up = bench.times_ns(lambda: memory.write(host.array, bench.stream))
        down = bench.times_ns(lambda: memory.read(host.array, bench.stream))
        figures["copy_to_gpu"] = summarise([n_bytes / ns * 1e9 for ns in up], "B/s", method)
        figures["copy_to_host"] = summarise([n_bytes / ns * 1e9 for ns in down], "B/s", method)
        method = "4 bytes of pinned memory and a wait, on the host's clock"
        figures["copy_to_gpu_wait"] = summarise(bench.waits_ns(lambda: memory.write(small, bench.stream)), "ns", method)
        figures["copy_to_host_wait"] = summarise(bench.waits_ns(lambda: memory.read(small, bench.stream)), "ns", method)
    return figures


_SCALES: dict[Unit, tuple[float, str]] = {
    "FLOP/s": (1e12, "TFLOP/s"),
    "OP/s": (1e12, "TOP/s"),
    "B/s": (1e9, "GB/s"),
    "ns": (1e3, "µs"),
    "Hz": (1e9, "GHz"),
}


def table(profile: GpuProfile) -> str:
    """Return the profile as a page in Markdown."""
    major, minor = profile.capability
    facts = (
        f"{profile.name}, compute capability {major}.{minor}, {profile.processors} processors at up to "
        f"{profile.clock_hz / 1e9:.2f} GHz, {profile.memory_bytes / 2**30:.0f} GiB, {profile.l2_bytes / 2**20:.0f} MiB of L2, "
        f"{profile.shared_bytes_per_block / 2**10:.0f} KiB of shared memory a block; driver {profile.driver}; "
        f"llvmlite {profile.llvm}; {profile.measured_at[:10]}"
    )
    rows = [facts, "", "| Figure | Median | Spread | Repeats | How |", "|---|---|---|---|---|"]
    for name, figure in profile.figures.items():
        scale, unit = _SCALES[figure.unit]
        value = figure.value / scale
        shown = f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
        rows.append(f"| {name} | {shown} {unit} | {figure.spread_percent:.1f} % | {figure.repeats} | {figure.method} |")
    return "\n".join(rows) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the profile of a GPU; return 1 where there is none, or it fails."""
    parser = argparse.ArgumentParser(prog="python -m kernels.cuda.probe", description="Measure what an NVIDIA GPU can do.")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--device", type=int, default=0, help="number of the GPU, in the driver's order")
    options = parser.parse_args(arguments)
    try:
        driver = Driver()
        profile = probe(driver.device(options.device), driver, CodeCache.default())
    except EdgewiseError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(json.dumps(asdict(profile), indent=2) + "\n" if options.json else table(profile))
    return 0


if __name__ == "__main__":
    sys.exit(main())
