"""Small loops in LLVM IR that saturate one resource each: the arithmetic units, or one level of the memory hierarchy.

They are emitted as text with explicit vectors and only code-generated, never optimised, so that a loop does exactly what is
written here: no load is hoisted, no accumulator merged. Peak loops keep enough independent accumulators to cover latency ×
issue width of every core known to the author (4 cycles × 4 pipes) within the register file of the ISA.
"""

from __future__ import annotations

import ctypes
import functools
import platform
from dataclasses import dataclass
from typing import Any, Literal

from kernels.cost import FLOPS_PER_MAC
from kernels.native.target.host import host

Precision = Literal["fp32", "fp64", "bf16", "int8"]

ALIGNMENT_BYTES = 64
UNROLL = 8  # vectors per loop turn of the bandwidth kernels
OPERAND_BYTES = 3 * ALIGNMENT_BYTES  # a peak loop reads two operand vectors and stores one: each at most 64 bytes


@dataclass(frozen=True, slots=True)
class PeakKernel:
    """One arithmetic loop: `symbol(turns, operands)`.

    isa: what it stands for in plans ("avx512", "avx2", "neon" …). precision: fp32 | fp64 | bf16 | int8.
    vector: its LLVM vector type. step: the IR of one multiply–accumulate with {acc}, {a}, {b} and {out} to fill in.
    macs: multiply–accumulates in one step. accumulators: independent chains. instruction: for the record.
    declaration: the intrinsic that the step calls, if any.
    """

    isa: str
    precision: Precision
    vector: str
    step: str
    macs: int
    accumulators: int
    instruction: str
    declaration: str = ""

    @property
    def symbol(self) -> str:
        """Name of the native function."""
        return f"peak_{self.precision}_{self.isa.replace('-', '_')}"

    @property
    def operations_per_turn(self) -> int:
        """Scalar multiplications and additions in one loop turn."""
        return FLOPS_PER_MAC * self.macs * self.accumulators


def _chains(registers: int) -> int:
    """Accumulators that fit beside two operands, and hide 4 cycles × 3 (16 registers) or × 4 pipes and more (32)."""
    return 24 if registers == 32 else 12


def _fma(isa: str, precision: Precision, bits: int, registers: int) -> PeakKernel:
    element, suffix = ("float", "f32") if precision == "fp32" else ("double", "f64")
    lanes = bits // (32 if precision == "fp32" else 64)
    vector, intrinsic = f"<{lanes} x {element}>", f"@llvm.fma.v{lanes}{suffix}"
    step = f"{{out}} = call {vector} {intrinsic}({vector} {{acc}}, {vector} {{a}}, {vector} {{b}})"
    declare = f"declare {vector} {intrinsic}({vector}, {vector}, {vector})"
    return PeakKernel(isa, precision, vector, step, lanes, _chains(registers), "fma", declare)


def _mul_add(isa: str, precision: Precision) -> PeakKernel:
    """A core without fused multiply–add: one multiplication and one addition."""
    element, lanes = ("float", 4) if precision == "fp32" else ("double", 2)
    vector = f"<{lanes} x {element}>"
    step = f"{{out}}_m = fmul {vector} {{acc}}, {{a}}\n  {{out}} = fadd {vector} {{out}}_m, {{b}}"
    return PeakKernel(isa, precision, vector, step, lanes, 12, "mul+add")


def _x86_dot(isa: str, precision: Precision, lanes: int, macs: int, registers: int, assembly: str) -> PeakKernel:
    """An instruction that accumulates dot products of short elements into 32-bit lanes, as inline assembly.

    Assembly, because the signatures of these intrinsics changed between the LLVM versions that llvmlite has shipped.
    """
    vector = f"<{lanes} x {'float' if precision == 'bf16' else 'i32'}>"
    step = f'{{out}} = call {vector} asm "{assembly}", "=v,v,v,0"({vector} {{a}}, {vector} {{b}}, {vector} {{acc}})'
    instruction = assembly.split(" $", maxsplit=1)[0].replace("{{vex}} ", "")
    return PeakKernel(isa, precision, vector, step, macs, _chains(registers), instruction)


def _arm_dot(isa: str, precision: Precision, macs: int, instruction: str) -> PeakKernel:
    """The same on Arm, as the intrinsic."""
    vector, short, suffix = (
        ("<4 x float>", "<8 x bfloat>", "") if precision == "bf16" else ("<4 x i32>", "<16 x i8>", ".v4i32.v16i8")
    )
    intrinsic = f"@llvm.aarch64.neon.{instruction}{suffix}"
    casts = "\n  ".join(f"{{out}}_{x} = bitcast {vector} {{{x}}} to {short}" for x in "ab")
    call = f"{{out}} = call {vector} {intrinsic}({vector} {{acc}}, {short} {{out}}_a, {short} {{out}}_b)"
    declare = f"declare {vector} {intrinsic}({vector}, {short}, {short})"
    return PeakKernel(isa, precision, vector, f"{casts}\n  {call}", macs, _chains(32), instruction, declare)


def peak_kernels(machine: str, features: frozenset[str]) -> tuple[PeakKernel, ...]:
    """Every arithmetic loop that a CPU with these LLVM feature names can run; empty precisions are simply absent.

    Args: machine: as `platform.machine()` says, e.g. "x86_64", "aarch64". features: enabled LLVM target features.
    """
    kernels: list[PeakKernel] = []
    precisions: tuple[Precision, ...] = ("fp32", "fp64")
    if machine.lower() in ("x86_64", "amd64"):
        if "avx2" in features and "fma" in features:
            kernels += [_fma("avx2", precision, 256, 16) for precision in precisions]
        else:
            kernels += [_mul_add("sse2", precision) for precision in precisions]
        if "avxvnni" in features:
            kernels.append(_x86_dot("avxvnni", "int8", 8, 32, 16, "{{vex}} vpdpbusd $2, $1, $0"))
        if "avx512f" in features:
            kernels += [_fma("avx512", precision, 512, 32) for precision in precisions]
        if "avx512vnni" in features:
            kernels.append(_x86_dot("avx512vnni", "int8", 16, 64, 32, "vpdpbusd $2, $1, $0"))
        if "avx512bf16" in features:
            kernels.append(_x86_dot("avx512bf16", "bf16", 16, 32, 32, "vdpbf16ps $2, $1, $0"))
    elif machine.lower() in ("aarch64", "arm64"):
        kernels += [_fma("neon", precision, 128, 32) for precision in precisions]
        if "dotprod" in features:
            kernels.append(_arm_dot("neon-dotprod", "int8", 16, "sdot"))
        if "i8mm" in features:
            kernels.append(_arm_dot("neon-i8mm", "int8", 32, "smmla"))
        if "bf16" in features:
            kernels.append(_arm_dot("neon-bf16", "bf16", 16, "bfmmla"))
    else:
        kernels += [_fma("generic", precision, 128, 16) for precision in precisions]
    return tuple(kernels)


def vector_bits(machine: str, features: frozenset[str]) -> int:
    """Width of the widest load these features allow: what the bandwidth kernels use."""
    if "avx512f" in features:
        return 512
    return 256 if machine.lower() in ("x86_64", "amd64") and "avx" in features else 128


def peak_ir(kernel: PeakKernel) -> str:
    """IR of `void symbol(i64 turns, ptr operands)`: `turns` loop turns of `accumulators` steps."""
    vector, chains = kernel.vector, range(kernel.accumulators)
    body = "\n  ".join(kernel.step.format(acc=f"%acc{i}", a="%a", b="%b", out=f"%next{i}") for i in chains)
    add = "fadd" if "float" in vector or "double" in vector else "add"
    fold = "\n  ".join(f"%sum{i} = {add} {vector} {f'%sum{i - 1}' if i > 1 else '%next0'}, %next{i}" for i in chains[1:])
    phis = "\n  ".join(f"%acc{i} = phi {vector} [%a, %entry], [%next{i}, %loop]" for i in chains)
    return f"""
define void @{kernel.symbol}(i64 %turns, ptr %operands) #0 {{
entry:
  %pb = getelementptr i8, ptr %operands, i64 {ALIGNMENT_BYTES}
  %ps = getelementptr i8, ptr %operands, i64 {2 * ALIGNMENT_BYTES}
  %a = load {vector}, ptr %operands, align 64
  %b = load {vector}, ptr %pb, align 64
  br label %loop
loop:
  %turn = phi i64 [0, %entry], [%turn1, %loop]
  {phis}
  {body}
  %turn1 = add i64 %turn, 1
  %more = icmp ult i64 %turn1, %turns
  br i1 %more, label %loop, label %done
done:
  {fold}
  store {vector} %sum{chains[-1]}, ptr %ps, align 64
  ret void
}}"""


def _streaming_ir(symbol: str, body: str, phis: str, done: str, step_bytes: int, *, last: str = "") -> str:
    """A loop over `nbytes` (a multiple of step_bytes) of memory, done `passes` times."""
    return f"""
define void @{symbol}(i64 %passes, i64 %nbytes, ptr %x, ptr %y, ptr %z) #0 {{
entry:
  br label %pass
pass:
  %p = phi i64 [0, %entry], [%p1, %next]
  br label %loop
loop:
  %at = phi i64 [0, %pass], [%at1, %loop]
  {phis}
  {body}
  %at1 = add i64 %at, {step_bytes}
  %more = icmp ult i64 %at1, %nbytes
  br i1 %more, label %loop, label %next
next:
  {last}
  %p1 = add i64 %p, 1
  %again = icmp ult i64 %p1, %passes
  br i1 %again, label %pass, label %done
done:
  {done}
  ret void
}}"""


def bandwidth_ir(bits: int) -> str:
    """IR of `read`, `copy`, `update` and `triad`, each `void (i64 passes, i64 nbytes per array, ptr x, ptr y, ptr z)`.

    read loads x (and stores one vector to z at the end of a pass, so that the loads have a use); copy stores x to y;
    update stores −x to x; triad stores x + 3·y to z, in float32. `nbytes` is a multiple of UNROLL vectors.
    """
    lanes, width = bits // 32, bits // 8
    vector, integers = f"<{lanes} x float>", f"<{lanes} x i32>"
    slots = range(UNROLL)

    def address(array: str, slot: int) -> str:
        return (
            f"%o{array}{slot} = add i64 %at, {slot * width}\n  "
            f"%p{array}{slot} = getelementptr i8, ptr %{array}, i64 %o{array}{slot}"
        )

    def load(array: str, slot: int, kind: str) -> str:
        return f"{address(array, slot)}\n  %{array}{slot} = load {kind}, ptr %p{array}{slot}, align {width}"

    def store(array: str, slot: int, value: str) -> str:
        return f"{address(array, slot)}\n  store {vector} {value}, ptr %p{array}{slot}, align {width}"

    read_body = "\n  ".join(f"{load('x', i, integers)}\n  %or{i} = or {integers} %acc{i}, %x{i}" for i in slots)
    read_phis = "\n  ".join(f"%acc{i} = phi {integers} [zeroinitializer, %pass], [%or{i}, %loop]" for i in slots)
    fold = "\n  ".join(f"%f{i} = or {integers} {f'%f{i - 1}' if i > 1 else '%or0'}, %or{i}" for i in range(1, UNROLL))
    keep = f"{fold}\n  store {integers} %f{UNROLL - 1}, ptr %z, align {width}"
    copy_body = "\n  ".join(f"{load('x', i, vector)}\n  {store('y', i, f'%x{i}')}" for i in slots)
    update_body = "\n  ".join(
        f"{load('x', i, vector)}\n  %u{i} = fneg {vector} %x{i}\n  store {vector} %u{i}, ptr %px{i}, align {width}" for i in slots
    )
    three = f"<{', '.join(['float 3.0'] * lanes)}>"
    triad_body = "\n  ".join(
        f"{load('x', i, vector)}\n  {load('y', i, vector)}\n  "
        f"%m{i} = fmul {vector} %y{i}, {three}\n  %t{i} = fadd {vector} %x{i}, %m{i}\n  {store('z', i, f'%t{i}')}"
        for i in slots
    )
    step = UNROLL * width
    return "\n".join(
        (
            _streaming_ir("read", read_body, read_phis, "", step, last=keep),
            _streaming_ir("copy", copy_body, "", "", step),
            _streaming_ir("update", update_body, "", "", step),
            _streaming_ir("triad", triad_body, "", "", step),
        )
    )


def module_ir(kernels: tuple[PeakKernel, ...], bits: int) -> str:
    """One module with every peak loop, the bandwidth loops and `nothing`, whose cost is the cost of a call."""
    declares = sorted({kernel.declaration for kernel in kernels if kernel.declaration})
    nothing = "define void @nothing(i64 %turns, ptr %operands) #0 {\n  ret void\n}"
    attributes = f'attributes #0 = {{ nounwind "prefer-vector-width"="{bits}" }}'
    return "\n".join((*declares, *map(peak_ir, kernels), bandwidth_ir(bits), nothing, attributes))


@dataclass(frozen=True, slots=True)
class Compiled:
    """The compiled loops. The engine owns the code: it lives as long as this object."""

    peaks: tuple[PeakKernel, ...]
    bits: int
    engine: Any

    def peak(self, kernel: PeakKernel) -> Any:
        """Native `void (i64 turns, ptr operands)`; ctypes releases the GIL around it."""
        return self._function(kernel.symbol, ctypes.c_int64, ctypes.c_void_p)

    def streaming(self, pattern: str) -> Any:
        """Native `void (i64 passes, i64 nbytes, ptr x, ptr y, ptr z)` for a bandwidth pattern."""
        return self._function(pattern, ctypes.c_int64, ctypes.c_int64, *[ctypes.c_void_p] * 3)

    def nothing(self) -> Any:
        """A native function that returns at once."""
        return self._function("nothing", ctypes.c_int64, ctypes.c_void_p)

    def _function(self, symbol: str, *types: Any) -> Any:
        return ctypes.CFUNCTYPE(None, *types)(self.engine.get_function_address(symbol))


def host_features() -> frozenset[str]:
    """LLVM names of the target features that this CPU and its operating system enable."""
    return frozenset(host().features)


def target_machine(triple: str, cpu: str, features: str) -> Any:
    """An LLVM target machine at full code generation effort."""
    import llvmlite.binding as llvm  # noqa: PLC0415  who only asks for names does not load it

    return llvm.Target.from_triple(triple).create_target_machine(cpu=cpu, features=features, opt=3)


@functools.cache
def compile_for_host() -> Compiled:
    """Compile every loop this machine can run; once per process."""
    import llvmlite.binding as llvm  # noqa: PLC0415

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    llvm.initialize_native_asmparser()
    features, machine = host_features(), platform.machine()
    kernels, bits = peak_kernels(machine, features), vector_bits(machine, features)
    module = llvm.parse_assembly(module_ir(kernels, bits))
    module.verify()
    target = target_machine(llvm.get_process_triple(), llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten())
    engine = llvm.create_mcjit_compiler(module, target)
    engine.finalize_object()
    return Compiled(kernels, bits, engine)
