"""Small loops that saturate one resource each: an arithmetic unit, or one level of the memory hierarchy.

The instruction sets of `kernels.native.target.isa` say which units exist, and the loops are emitted with the kernels' builder.
LLVM only generates code and optimises nothing, so that a loop does exactly what is written here: no load is hoisted, no
accumulator merged. Peak loops keep enough independent accumulators to cover latency × issue width of every core
known to the author (4 cycles × 4 pipes) within the register file of the instruction set.
"""

from __future__ import annotations

import ctypes
import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from kernels.cost import FLOPS_PER_MAC
from kernels.native.emit.builder import Function, Module, Value
from kernels.native.emit.types import I8, I32, I64, PTR
from kernels.native.emit.units import accumulator_type, dot
from kernels.native.target.host import Host, host
from kernels.native.target.isa import FMA, MUL_ADD, Isa, Unit, isas_of
from kernels.precision import Precision
from kernels.record import record

ALIGNMENT_BYTES = 64
UNROLL = 8  # vectors per loop turn of the bandwidth loops
OPERAND_BYTES = 3 * ALIGNMENT_BYTES  # a peak loop reads two operand vectors and stores one: each at most 64 bytes


@record
class PeakLoop:
    """One arithmetic loop, `void symbol(i64 turns, ptr operands)`: a unit on full vectors of the first set that has it."""

    isa: Isa
    unit: Unit

    @property
    def name(self) -> str:
        """Its name in device profiles: "avx512", "avxvnni", "neon-i8mm"…"""
        return self.unit.name

    @property
    def precision(self) -> Precision:
        """The type of the factors."""
        return self.unit.precision

    @property
    def symbol(self) -> str:
        """Name of the native function."""
        return f"peak_{self.precision}_{self.name.replace('-', '_')}"

    @property
    def vector(self) -> str:
        """LLVM's name of the accumulators' type."""
        return accumulator_type(self.unit, self.isa).text

    @property
    def accumulators(self) -> int:
        """Independent chains that fit beside two operands, and hide 4 cycles × 3 (16 registers) or × 4 pipes and more (32)."""
        return 24 if self.isa.vector_registers == 32 else 12

    @property
    def operations_per_turn(self) -> int:
        """Scalar multiplications and additions in one loop turn."""
        return FLOPS_PER_MAC * self.isa.macs(self.unit) * self.accumulators


def peak_loops(here: Host) -> tuple[PeakLoop, ...]:
    """Return every arithmetic loop that a processor can run; a precision that it has no unit for is absent.

    Separate multiplications and additions are measured only where there is no fused multiply–add.
    """
    found: dict[Unit, PeakLoop] = {}
    for isa in isas_of(here.arch):
        for unit in isa.units:
            if set(unit.requires) <= set(here.features):
                found.setdefault(unit, PeakLoop(isa, unit))
    fused = any(unit.instruction == FMA for unit in found)
    return tuple(loop for unit, loop in found.items() if not (fused and unit.instruction == MUL_ADD))


def streaming_isa(here: Host) -> Isa:
    """Return the set whose vectors the bandwidth loops use: the widest that the processor can load and store."""
    first, *others = isas_of(here.arch)
    return max((first, *(isa for isa in others if isa.width_feature in here.features)), key=lambda isa: isa.vector_bits)


def emit_loops(here: Host, loops: Sequence[PeakLoop], triple: str) -> list[str]:
    """Return the IR of peak loops, of the bandwidth loops and of an empty function `nothing`, one module for each set in use.

    triple: LLVM's name of the target.
    """
    streaming = streaming_isa(here)
    modules = {isa: Module(replace(isa, triple=triple, cpu=here.cpu)) for isa in isas_of(here.arch)}
    used = {streaming: modules[streaming]}
    for loop in loops:
        used[loop.isa] = modules[loop.isa]
        _emit_peak(modules[loop.isa], loop)
    for pattern, emit in _STREAMS.items():
        _emit_stream(modules[streaming], pattern, emit)
    with modules[streaming].function("nothing", {"turns": I64, "operands": PTR}):
        pass
    return [module.text for module in used.values()]


def _emit_peak(module: Module, loop: PeakLoop) -> None:
    """Emit acc = acc·a + b, or acc + a·b for dot products, in every chain; all start from a, and their sum is stored."""
    unit, kind = loop.unit, accumulator_type(loop.unit, loop.isa)
    with module.function(loop.symbol, {"turns": I64, "operands": PTR}) as (k, *arguments):
        turns, operands = arguments
        a, b = (k.load(kind, k.offset(operands, n * ALIGNMENT_BYTES, I8), align=ALIGNMENT_BYTES) for n in range(2))
        with k.fold("turn", 0, turns, 1, [a] * loop.accumulators) as fold:
            if unit.instruction in (FMA, MUL_ADD):
                fold.values = [k.fma(accumulator, a, b) for accumulator in fold.values]
            else:
                fold.values = [dot(k, unit, accumulator, a, b) for accumulator in fold.values]
        total = functools.reduce(operator.add, fold.values)
        k.store(total, k.offset(operands, 2 * ALIGNMENT_BYTES, I8), align=ALIGNMENT_BYTES)


@record
class _Arrays:
    """The arrays of a bandwidth loop: their addresses, bytes of each, and bytes of one vector."""

    k: Function
    x: Value
    y: Value
    z: Value
    nbytes: Value
    width: int

    def load(self, array: Value, at: Value) -> Value:
        return self.k.load(self.k.f32, self.k.offset(array, at, I8), align=self.width)

    def store(self, value: Value, array: Value, at: Value) -> None:
        self.k.store(value, self.k.offset(array, at, I8), align=self.width)


def _emit_stream(module: Module, pattern: str, emit_pass: Callable[[_Arrays], None]) -> None:
    """Emit `void pattern(i64 passes, i64 nbytes of each array, ptr x, ptr y, ptr z)`; nbytes is a multiple of UNROLL vectors."""
    arguments = {"passes": I64, "nbytes": I64, "x": PTR, "y": PTR, "z": PTR}
    with module.function(pattern, arguments) as (k, *values):
        passes, nbytes, x, y, z = values
        with k.loop("pass", 0, passes):
            emit_pass(_Arrays(k, x, y, z, nbytes, module.isa.vector_bits // 8))


def _emit_read(arrays: _Arrays) -> None:
    """Load x; one vector is stored to z at the end of a pass, so that the loads have a use."""
    k, width = arrays.k, arrays.width
    kind = I32.by(k.isa.lanes)
    with k.fold("at", 0, arrays.nbytes, UNROLL * width, [k.zero(kind)] * UNROLL) as fold:
        fold.values = [
            seen | k.load(kind, k.offset(arrays.x, fold.index + n * width, I8), align=width)
            for n, seen in enumerate(fold.values)
        ]  # fmt: skip
    k.store(functools.reduce(operator.or_, fold.values), arrays.z, align=width)


def _emit_pass(arrays: _Arrays, step: Callable[[_Arrays, Value], None]) -> None:
    """Do one step for every vector."""
    with arrays.k.loop("at", 0, arrays.nbytes, UNROLL * arrays.width) as at:
        for n in range(UNROLL):
            step(arrays, at + n * arrays.width)


def _copy(arrays: _Arrays, at: Value) -> None:
    """y = x."""
    arrays.store(arrays.load(arrays.x, at), arrays.y, at)


def _update(arrays: _Arrays, at: Value) -> None:
    """x = -x."""
    arrays.store(-arrays.load(arrays.x, at), arrays.x, at)


def _triad(arrays: _Arrays, at: Value) -> None:
    """z = x + 3·y."""
    arrays.store(arrays.load(arrays.x, at) + arrays.load(arrays.y, at) * 3.0, arrays.z, at)


_STREAMS: Mapping[str, Callable[[_Arrays], None]] = {
    "read": _emit_read,
    "copy": lambda arrays: _emit_pass(arrays, _copy),
    "update": lambda arrays: _emit_pass(arrays, _update),
    "triad": lambda arrays: _emit_pass(arrays, _triad),
}


@record
class Compiled:
    """The compiled loops. The engine owns the code: it lives as long as this object. bits: of a vector of the bandwidth loops."""

    peaks: tuple[PeakLoop, ...]
    bits: int
    engine: Any

    def peak(self, loop: PeakLoop) -> Any:
        """Native `void (i64 turns, ptr operands)`; ctypes releases the GIL around it."""
        return self._function(loop.symbol, ctypes.c_int64, ctypes.c_void_p)

    def streaming(self, pattern: str) -> Any:
        """Native `void (i64 passes, i64 nbytes, ptr x, ptr y, ptr z)` for a bandwidth pattern."""
        return self._function(pattern, ctypes.c_int64, ctypes.c_int64, *[ctypes.c_void_p] * 3)

    def nothing(self) -> Any:
        """A native function that returns at once."""
        return self._function("nothing", ctypes.c_int64, ctypes.c_void_p)

    def _function(self, symbol: str, *types: Any) -> Any:
        return ctypes.CFUNCTYPE(None, *types)(self.engine.get_function_address(symbol))


def link(texts: Sequence[str]) -> Any:
    """Link modules to one LLVM module and verify it."""
    import llvmlite.binding as llvm  # noqa: PLC0415  callers that need only names do not load it

    first, *others = (llvm.parse_assembly(text) for text in texts)
    for other in others:
        first.link_in(other)
    first.verify()
    return first


def target_machine(triple: str, cpu: str, features: str) -> Any:
    """Make an LLVM target machine at full code generation effort."""
    import llvmlite.binding as llvm  # noqa: PLC0415

    return llvm.Target.from_triple(triple).create_target_machine(cpu=cpu, features=features, opt=3)


@functools.cache
def compile_for_host() -> Compiled:
    """Compile every loop that this machine can run, once a process."""
    import llvmlite.binding as llvm  # noqa: PLC0415

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    llvm.initialize_native_asmparser()
    here, triple = host(), llvm.get_process_triple()
    loops = peak_loops(here)
    module = link(emit_loops(here, loops, triple))
    engine = llvm.create_mcjit_compiler(module, target_machine(triple, here.cpu, llvm.get_host_cpu_features().flatten()))
    engine.finalize_object()
    return Compiled(loops, streaming_isa(here).vector_bits, engine)
