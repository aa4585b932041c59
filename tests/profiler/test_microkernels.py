from __future__ import annotations

import platform
import re

import llvmlite.binding as llvm
import numpy as np
import pytest

from profiler.device.probe.bandwidth import PATTERNS
from profiler.device.probe.loops import (
    OPERAND_BYTES,
    UNROLL,
    PeakKernel,
    compile_for_host,
    host_features,
    module_ir,
    peak_kernels,
    target_machine,
    vector_bits,
)
from profiler.device.probe.peaks import aligned_bytes

X86 = frozenset({"avx", "avx2", "fma", "avxvnni", "avx512f", "avx512vl", "avx512bw", "avx512vnni", "avx512bf16"})
ARM = frozenset({"neon", "dotprod", "i8mm", "bf16"})
TARGETS = {
    "avx512": ("x86_64", "x86_64-unknown-linux-gnu", X86),
    "avx2": ("x86_64", "x86_64-unknown-linux-gnu", frozenset({"avx", "avx2", "fma"})),
    "sse2": ("x86_64", "x86_64-unknown-linux-gnu", frozenset({"sse2"})),
    "neon": ("aarch64", "aarch64-unknown-linux-gnu", ARM),
    "riscv": ("riscv64", "riscv64-unknown-linux-gnu", frozenset({"f", "d"})),
}


@pytest.fixture(scope="module")
def compiled():
    return compile_for_host()


def kernels_for(machine: str, features: frozenset[str]) -> tuple[PeakKernel, ...]:
    """All of them; without inline assembly where this host's LLVM cannot parse the target's."""
    kernels = peak_kernels(machine, features)
    return tuple(k for k in kernels if " asm " not in k.step or machine == platform.machine())


def assembly_of(machine: str, triple: str, features: frozenset[str]) -> str:
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    llvm.initialize_native_asmparser()
    module = llvm.parse_assembly(module_ir(kernels_for(machine, features), vector_bits(machine, features)))
    module.verify()
    return target_machine(triple, "", ",".join(f"+{name}" for name in sorted(features))).emit_assembly(module)


def function_body(assembly: str, symbol: str) -> list[str]:
    start = assembly.index(f"\n{symbol}:")
    return assembly[start : assembly.index(".size", start)].splitlines()


@pytest.mark.parametrize("target", ["avx512", "avx2", "neon"])
def test_peak_loop_is_its_chains_and_nothing_spilled(target):
    machine, triple, features = TARGETS[target]
    assembly = assembly_of(machine, triple, features)
    for kernel in kernels_for(machine, features):
        body = function_body(assembly, kernel.symbol)
        mnemonic = {"fma": r"(vfmadd\w+|fmla|fmadd)"}.get(kernel.instruction, kernel.instruction)
        steps = [line for line in body if re.search(rf"\b{mnemonic}\b", line)]
        assert len(steps) == kernel.accumulators, kernel.symbol
        assert not [line for line in steps if "(%rsp)" in line or "[sp" in line], kernel.symbol


@pytest.mark.parametrize("target", TARGETS)
def test_module_compiles_for(target):
    assert "nothing:" in assembly_of(*TARGETS[target])


def test_peak_kernels_follow_the_features():
    found = {(k.isa, k.precision) for k in peak_kernels("x86_64", frozenset({"avx2", "fma"}))}
    assert found == {("avx2", "fp32"), ("avx2", "fp64")}
    assert {(k.isa, k.precision) for k in peak_kernels("AMD64", frozenset())} == {("sse2", "fp32"), ("sse2", "fp64")}
    assert ("neon-i8mm", "int8") in {(k.isa, k.precision) for k in peak_kernels("arm64", ARM)}


@pytest.mark.parametrize(
    ("isa", "precision", "operations"),
    [("avx512", "fp32", 24 * 32), ("avx512", "fp64", 24 * 16), ("avx2", "fp32", 12 * 16), ("avx512vnni", "int8", 24 * 128),
     ("avxvnni", "int8", 12 * 64), ("avx512bf16", "bf16", 24 * 64)],
)  # fmt: skip
def test_operations_of_a_turn_by_hand(isa, precision, operations):
    (kernel,) = (k for k in peak_kernels("x86_64", X86) if (k.isa, k.precision) == (isa, precision))
    assert kernel.operations_per_turn == operations


def test_float_peak_loop_computes_its_recurrence(compiled):
    for kernel in compiled.peaks:
        if kernel.precision not in ("fp32", "fp64"):
            continue
        dtype = np.float32 if kernel.precision == "fp32" else np.float64
        memory = aligned_bytes(OPERAND_BYTES)
        lanes = int(re.match(r"<(\d+)", kernel.vector).group(1))
        memory[:128].view(dtype)[:] = 0.5
        compiled.peak(kernel)(3, memory.ctypes.data)
        expected = kernel.accumulators * 0.9375  # 0.5 -> 0.75 -> 0.875 -> 0.9375
        np.testing.assert_array_equal(memory[128:].view(dtype)[:lanes], expected)


def test_int8_peak_loop_counts_its_products(compiled):
    for kernel in compiled.peaks:
        if kernel.precision == "int8":
            memory = aligned_bytes(OPERAND_BYTES)
            memory[:64], memory[64:128] = 1, 1
            lanes = int(re.match(r"<(\d+)", kernel.vector).group(1))
            compiled.peak(kernel)(5, memory.ctypes.data)
            sums = memory[128:].view(np.int32)[:lanes].astype(np.int64)
            start = kernel.accumulators * 0x01010101  # the chains start from operand a
            products = kernel.accumulators * 5 * kernel.macs // lanes
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
    assert host_features() == frozenset(name for name, on in llvm.get_host_cpu_features().items() if on)
