from __future__ import annotations

import re

import llvmlite.binding as llvm
import numpy as np
import pytest

from kernels.native.target.host import Host, host
from profiler.device.probe.bandwidth import PATTERNS
from profiler.device.probe.loops import (
    OPERAND_BYTES,
    UNROLL,
    PeakLoop,
    compile_for_host,
    emit_loops,
    link,
    peak_loops,
    streaming_isa,
    target_machine,
)
from profiler.device.probe.peaks import aligned_bytes

X86 = ("avx", "avx2", "fma", "avxvnni", "avx512f", "avx512vl", "avx512bw", "avx512vnni", "avx512bf16")
ARM = ("neon", "dotprod", "i8mm", "bf16")
TARGETS = {
    "avx512": ("x86_64-unknown-linux-gnu", Host("x86_64", "", X86)),
    "avx2": ("x86_64-unknown-linux-gnu", Host("x86_64", "", ("avx", "avx2", "fma"))),
    "sse2": ("x86_64-unknown-linux-gnu", Host("x86_64", "", ("sse2",))),
    "neon": ("aarch64-unknown-linux-gnu", Host("aarch64", "", ARM)),
    "riscv": ("riscv64-unknown-linux-gnu", Host("riscv64", "", ("f", "d"))),
}


@pytest.fixture(scope="module")
def compiled():
    return compile_for_host()


def loops_for(here: Host) -> tuple[PeakLoop, ...]:
    """Return the target's loops, without those in inline assembly if this host's LLVM cannot parse the target's assembly."""
    return tuple(loop for loop in peak_loops(here) if loop.unit.depth == 1 or here.arch != "x86_64" or here.arch == host().arch)


def assembly_of(triple: str, here: Host) -> str:
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    llvm.initialize_native_asmparser()
    module = link(emit_loops(here, loops_for(here), triple))
    return target_machine(triple, "", ",".join(f"+{name}" for name in sorted(here.features))).emit_assembly(module)


def function_body(assembly: str, symbol: str) -> list[str]:
    start = assembly.index(f"\n{symbol}:")
    return assembly[start : assembly.index(".size", start)].splitlines()


@pytest.mark.parametrize("target", ["avx512", "avx2", "neon"])
def test_peak_loop_is_its_chains_and_nothing_spilled(target):
    triple, here = TARGETS[target]
    assembly = assembly_of(triple, here)
    for loop in loops_for(here):
        body = function_body(assembly, loop.symbol)
        mnemonic = {"fma": r"(vfmadd\w+|fmla|fmadd)"}.get(loop.unit.instruction, loop.unit.instruction)
        steps = [line for line in body if re.search(rf"\b{mnemonic}\b", line)]
        assert len(steps) == loop.accumulators, loop.symbol
        assert not [line for line in steps if "(%rsp)" in line or "[sp" in line], loop.symbol


@pytest.mark.parametrize("target", TARGETS)
def test_module_compiles_for(target):
    assert "nothing:" in assembly_of(*TARGETS[target])


def units_of(here: Host) -> list[tuple[str, str]]:
    return [(loop.name, loop.precision) for loop in peak_loops(here)]


def test_peak_loops_follow_the_features():
    assert units_of(Host("x86_64", "", ("avx2", "fma"))) == [("avx2", "fp32"), ("avx2", "fp64")]
    assert units_of(Host("x86_64", "", ())) == [("sse2", "fp32"), ("sse2", "fp64")]
    assert units_of(Host("riscv64", "", ())) == [("generic", "fp32"), ("generic", "fp64")]


def test_peaks_keep_the_names_and_the_order_that_stored_profiles_have():
    assert units_of(Host("x86_64", "", X86)) == [
        ("avx2", "fp32"), ("avx2", "fp64"), ("avxvnni", "int8"), ("avx512", "fp32"), ("avx512", "fp64"),
        ("avx512vnni", "int8"), ("avx512bf16", "bf16"),
    ]  # fmt: skip
    assert units_of(Host("aarch64", "", ARM)) == [
        ("neon", "fp32"), ("neon", "fp64"), ("neon-dotprod", "int8"), ("neon-i8mm", "int8"), ("neon-bf16", "bf16"),
        ("neon-bfdot", "bf16"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arch", "features", "bits"),
    [("x86_64", (), 128), ("x86_64", ("avx",), 256), ("x86_64", ("avx", "avx512f"), 512), ("aarch64", ARM, 128),
     ("riscv64", (), 128)],
)  # fmt: skip
def test_bandwidth_is_measured_with_the_widest_loads_there_are(arch, features, bits):
    assert streaming_isa(Host(arch, "", features)).vector_bits == bits


@pytest.mark.parametrize(
    ("isa", "precision", "operations"),
    [("avx512", "fp32", 24 * 32), ("avx512", "fp64", 24 * 16), ("avx2", "fp32", 12 * 16), ("avx512vnni", "int8", 24 * 128),
     ("avxvnni", "int8", 12 * 64), ("avx512bf16", "bf16", 24 * 64)],
)  # fmt: skip
def test_operations_of_a_turn_by_hand(isa, precision, operations):
    (loop,) = (loop for loop in peak_loops(Host("x86_64", "", X86)) if (loop.name, loop.precision) == (isa, precision))
    assert loop.operations_per_turn == operations


@pytest.mark.parametrize(("isa", "operations"), [("neon-dotprod", 24 * 32), ("neon-i8mm", 24 * 64), ("neon-bf16", 24 * 32)])
def test_operations_of_a_turn_on_arm_by_hand(isa, operations):
    (loop,) = (loop for loop in peak_loops(Host("aarch64", "", ARM)) if loop.name == isa)
    assert loop.operations_per_turn == operations


def test_float_peak_loop_computes_its_recurrence(compiled):
    for loop in compiled.peaks:
        if loop.precision not in ("fp32", "fp64"):
            continue
        dtype = np.float32 if loop.precision == "fp32" else np.float64
        memory = aligned_bytes(OPERAND_BYTES)
        lanes = int(re.match(r"<(\d+)", loop.vector).group(1))
        memory[:128].view(dtype)[:] = 0.5
        compiled.peak(loop)(3, memory.ctypes.data)
        expected = loop.accumulators * 0.9375  # 0.5 -> 0.75 -> 0.875 -> 0.9375
        np.testing.assert_array_equal(memory[128:].view(dtype)[:lanes], expected)


def test_int8_peak_loop_counts_its_products(compiled):
    for loop in compiled.peaks:
        if loop.precision == "int8":
            memory = aligned_bytes(OPERAND_BYTES)
            memory[:64], memory[64:128] = 1, 1
            lanes = int(re.match(r"<(\d+)", loop.vector).group(1))
            compiled.peak(loop)(5, memory.ctypes.data)
            sums = memory[128:].view(np.int32)[:lanes].astype(np.int64)
            start = loop.accumulators * 0x01010101  # the chains start from operand a
            products = loop.accumulators * 5 * loop.isa.macs(loop.unit) // lanes
            np.testing.assert_array_equal(sums, start + products)


@pytest.mark.parametrize("turns", [1, 2, 3])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_streaming_loop_touches_all_of_its_arrays_and_no_more(compiled, pattern, turns):
    step = UNROLL * compiled.bits // 8
    rng = np.random.default_rng(0)
    x, y, z = (aligned_bytes(2 * step + 64) for _ in range(3))
    for array in (x, y, z):
        array.view(np.float32)[:] = rng.standard_normal(array.size // 4)
    before = [array.copy() for array in (x, y, z)]
    compiled.streaming(pattern)(turns, 2 * step, x.ctypes.data, y.ctypes.data, z.ctypes.data)
    expected = {"x": before[0].copy(), "y": before[1].copy(), "z": before[2].copy()}
    if pattern == "copy":
        expected["y"][: 2 * step] = before[0][: 2 * step]
    elif pattern == "update":
        expected["x"].view(np.float32)[: step // 2] *= (-1) ** turns
    elif pattern == "triad":
        expected["z"].view(np.float32)[: step // 2] = (before[0].view(np.float32) + y.view(np.float32) * np.float32(3))[
            : step // 2
        ]
    else:
        width = compiled.bits // 8
        expected["z"][:width] = np.bitwise_or.reduce(before[0][: 2 * step].reshape(-1, width))
    np.testing.assert_array_equal(x, expected["x"])
    np.testing.assert_array_equal(y, expected["y"])
    np.testing.assert_array_equal(z, expected["z"])


def test_host_features_are_names_llvm_knows():
    assert frozenset(host().features) == frozenset(name for name, on in llvm.get_host_cpu_features().items() if on)
