"""Tests that need a GPU. They are skipped, with the reason, on a machine without one."""

import ctypes
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from kernels.cuda import probe_kernels
from kernels.cuda.driver import Driver, FunctionAttribute
from kernels.cuda.errors import CudaError, DeviceMemoryError, GpuUnsupportedError, NoDriverError
from kernels.cuda.probe import Bench, Effort, probe, run_steps
from kernels.cuda.ptx import compile_ptx, find_target
from kernels.native.code.cache import CodeCache, Source
from tests.kernels.cuda.kernels import MISPLACED, SCALE

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def device():
    try:
        return Driver().device()
    except NoDriverError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def context(device):
    with device.open() as context:
        yield context


def load(context, ir):
    return context.load(compile_ptx(Source.of(ir), find_target(context.device.capability), CodeCache.default()))


@pytest.mark.parametrize("cooperative", [False, True])
def test_kernel_computes_on_what_was_copied(context, cooperative):
    n = 10_000
    x = np.random.default_rng(0).standard_normal(n, np.float32)
    with context.allocate(x.nbytes) as memory, context.stream() as stream, load(context, SCALE) as module:
        memory.write(x, stream)
        arguments = (memory, ctypes.c_int32(n), ctypes.c_float(3.0))
        stream.launch(module.function("scale"), arguments, blocks=-(-n // 128), threads=128, cooperative=cooperative)
        y = memory.read(np.empty_like(x), stream)
        stream.synchronize()
    np.testing.assert_array_equal(y, x * np.float32(3))


def test_graph_runs_what_was_captured_each_time(context):
    x = np.ones(128, np.float32)
    with context.allocate(x.nbytes) as memory, context.stream() as stream, load(context, SCALE) as module:
        memory.write(x)
        scale = module.function("scale")
        with stream.capture() as graph:
            for _ in range(3):
                stream.launch(scale, (memory, ctypes.c_int32(128), ctypes.c_float(2.0)), blocks=1, threads=128)
        graph.launch(stream)
        graph.launch(stream)
        stream.synchronize()
        assert (memory.read(x) == 64).all()


def test_graph_survives_what_is_freed_during_its_capture(context):
    x = np.ones(128, np.float32)
    with context.allocate(x.nbytes) as memory, context.stream() as stream, load(context, SCALE) as module:
        memory.write(x)
        other, left_over = load(context, SCALE), context.allocate(1 << 20)
        with stream.capture() as graph:
            other.close()
            left_over.close()
            stream.launch(module.function("scale"), (memory, ctypes.c_int32(128), ctypes.c_float(2.0)), blocks=1, threads=128)
        graph.launch(stream)
        stream.synchronize()
        assert (memory.read(x) == 2).all()


@pytest.mark.parametrize("passes", [1, 3])
def test_streams_of_the_probe_read_and_copy_every_byte(context, passes):
    bench = Bench(context, find_target(context.device.capability), CodeCache.default(), Effort())
    blocks, threads = 2 * bench.processors, 256
    parts = 3 * probe_kernels.READ_UNROLL * blocks * threads
    words = np.random.default_rng(0).integers(0, 2**32, 4 * parts, np.uint32)
    with context.allocate(words.nbytes) as x, context.allocate(words.nbytes) as y:
        x.write(words)
        arguments = (x, y, ctypes.c_int64(parts), ctypes.c_int32(passes))
        for name in ("read", "copy"):
            y.fill(0)
            bench.stream.launch(
                bench.function("memory", name, probe_kernels.stream_memory), arguments, blocks=blocks, threads=threads
            )
            bench.stream.synchronize()
            found = y.read(np.empty(blocks * threads if name == "read" else words.size, np.uint32))
            if name == "copy":
                np.testing.assert_array_equal(found, words)
            else:
                assert np.bitwise_xor.reduce(found) == np.bitwise_xor.reduce(words), "an odd number of passes leaves one"


def test_streams_wait_for_events_and_events_time_them(context):
    with (
        context.allocate(256 << 20) as x,
        context.allocate(256 << 20) as y,
        context.stream() as first,
        context.stream() as second,
    ):
        start, end = context.event(), context.event()
        first.record(start)
        x.fill(7, first)
        first.record(end)
        second.wait(end)
        y.copy_from(x, second)
        second.synchronize()
        assert 5_000 < end.elapsed_ns(start) < 50e6
        assert (y.read(np.empty(1000, np.uint8), at=(256 << 20) - 1000) == 7).all()


def test_pinned_memory_copies_both_ways(context):
    with context.pinned(1 << 20) as host, context.allocate(1 << 20) as memory, context.stream() as stream:
        host.array[:] = np.arange(1 << 20) % 251
        memory.write(host.array, stream)
        copy = memory.read(np.zeros(1 << 20, np.uint8), stream)
        stream.synchronize()
        np.testing.assert_array_equal(copy, host.array)


@pytest.mark.parametrize("kind", probe_kernels.BARRIERS)
@pytest.mark.parametrize("threads", [32, 1024])
def test_barrier_orders_what_blocks_write(context, kind, threads):
    bench = Bench(context, find_target(context.device.capability), CodeCache.default(), Effort(repeats=3))
    run_steps(bench, bench.function(f"barrier_{kind}", "steps", lambda: probe_kernels.barriers(kind)), threads, rounds=5_001)


def test_too_much_memory_is_refused_and_the_context_goes_on(context):
    with pytest.raises(DeviceMemoryError, match="CUDA_ERROR_OUT_OF_MEMORY"):
        context.allocate(1 << 50)
    context.allocate(1 << 20).close()


def test_more_blocks_than_fit_at_once_are_refused(context):
    with load(context, probe_kernels.EMPTY) as module, context.stream() as stream:
        empty = module.function("empty")
        assert empty.blocks_per_processor(1024) == 2
        assert empty.attribute(FunctionAttribute.REGISTERS) > 0
        with pytest.raises(GpuUnsupportedError, match="COOPERATIVE_LAUNCH_TOO_LARGE"):
            stream.launch(empty, (ctypes.c_int32(0),), blocks=100_000, threads=1024, cooperative=True)


def test_broken_ptx_is_refused_with_the_compilers_words(context):
    with pytest.raises(GpuUnsupportedError, match=r"INVALID_PTX.*nonsense"):
        context.load(b".version 8.0\n.target sm_80\n.address_size 64\nnonsense;\n")


def test_missing_kernel_is_refused(context):
    with load(context, SCALE) as module, pytest.raises(CudaError, match="CUDA_ERROR_NOT_FOUND"):
        module.function("other")


def test_illegal_address_loses_the_context(device):
    script = Path(__file__).with_name("kernels.py").read_text() + MISPLACED
    found = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=Path(__file__).parents[3], timeout=120
    )
    assert "GpuLostError" in found.stdout, found.stdout + found.stderr
    assert "CUDA_ERROR_ILLEGAL_ADDRESS" in found.stdout
    assert found.stdout.count("GpuLostError") == 2, "the next call fails as well"


def test_probe_measures_figures_that_a_gpu_can_have(device):
    profile = probe(device, Driver(), CodeCache.default(), Effort(window_ns=1e6, repeats=2))
    assert profile.figures["bf16_mma"].value > profile.figures["fp32_fma"].value > 1e12
    assert profile.figures["l2_read"].value > profile.figures["memory_read"].value > 1e11
    assert 100 < profile.figures["barrier_fence_256"].value < 20_000
