"""LLVM IR text to machine code: object bytes, assembly text, and whether the assembly spills.

Only LLVM's code generator runs. The emitters already unroll, vectorise and order their instructions, and LLVM's machine
scheduler is off because it undoes that: it hoists loads until vectors spill. On a 2.x GHz Zen 5 core a 12×2 tile of 16-lane
vectors runs at 116 GFLOP/s with it and at 265 without it, 14×2 at 135 and 256 (2026-11-24, LLVM 22).
"""

from __future__ import annotations

import functools
import re

import llvmlite.binding as llvm

from kernels.native.code.cache import Compiled
from kernels.native.errors import CompileError
from kernels.native.target.isa import Isa

LLVM_OPTIONS = ("-enable-misched=0",)

_LABEL = re.compile(r"^(\.?L?BB\d+_\d+):")
_JUMP = re.compile(r"^\s+(?:j\w+|b(?:\.\w+)?|cbn?z|tbn?z)\s.*?(\.?L?BB\d+_\d+)\s*(?:[#/].*)?$")
_VECTOR = {"x86_64": re.compile(r"%[xyz]mm\d"), "aarch64": re.compile(r"\b[qv]\d")}
_MULTIPLIES = re.compile(r"mulp[sd]|f[n]?m(add|sub|la|ls|ul)")
_STACK = {"x86_64": re.compile(r"\(%rsp\b"), "aarch64": re.compile(r"\[sp\b")}
SPILL_LIMIT = 0.03  # AVX2's 6×2 tile spills 1 % and is its fastest at 96 % of peak; 14×1 spills 8 % and falls to 72 %


def generate(ir: str, isa: Isa, *, count_spills: bool = False) -> Compiled:
    """Compile one module to an object file. Raises CompileError when LLVM refuses the text."""
    module, machine = _parse(ir), _machine(isa)
    code: bytes = machine.emit_object(module)
    return Compiled(code, spilled_share(machine.emit_assembly(_parse(ir)), isa) if count_spills else None)


def assembly(ir: str, isa: Isa) -> str:
    """Return the assembly of one module, for people to read. Raises CompileError when LLVM refuses the text."""
    text: str = _machine(isa).emit_assembly(_parse(ir))
    return text


def spilled_share(text: str, isa: Isa) -> float:
    """Return the share (0 to 1) of vector instructions in innermost loops that access the stack; of all where there is no loop.

    Registers saved around a loop cost next to nothing; values reloaded inside it can halve the speed. Where there are loops that
    multiply, others do not count: they copy what those read, or store what they have computed.
    """
    lines = text.splitlines()
    labels = {found[1]: n for n, line in enumerate(lines) if (found := _LABEL.match(line))}
    jumps = ((labels.get(found[1], n + 1), n) for n, line in enumerate(lines) if (found := _JUMP.match(line)))
    loops = [(start, end) for start, end in jumps if start <= end]
    inner = [a for a in loops if not any(b != a and a[0] <= b[0] and b[1] <= a[1] for b in loops)]
    bodies = [
        [line for line in lines[start : end + 1] if _VECTOR[isa.arch].search(line)] for start, end in inner or [(0, len(lines))]
    ]
    multiply = [body for body in bodies if any(_MULTIPLIES.search(line) for line in body)]
    vectors = [line for body in multiply or bodies for line in body]
    return sum(bool(_STACK[isa.arch].search(line)) for line in vectors) / max(len(vectors), 1)


@functools.cache
def _set_up_llvm() -> None:
    """Set the process-wide options, once: LLVM ends the process when it meets one twice."""
    for option in LLVM_OPTIONS:
        llvm.set_option("edgewise", option)
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()


@functools.cache
def _other_targets() -> None:
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()


@functools.cache
def _machine(isa: Isa) -> llvm.TargetMachine:
    _set_up_llvm()
    if not llvm.get_process_triple().startswith(isa.triple.partition("-")[0]):
        _other_targets()
    target = llvm.Target.from_triple(isa.triple)
    return target.create_target_machine(cpu=isa.cpu, features=isa.features, opt=3, reloc="pic", codemodel="small")


def _parse(ir: str) -> llvm.ModuleRef:
    _set_up_llvm()
    try:
        module = llvm.parse_assembly(ir)
        module.verify()
    except RuntimeError as error:
        raise CompileError(f"module: LLVM refuses it, {error}") from error
    return module
