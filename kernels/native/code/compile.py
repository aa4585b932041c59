"""LLVM IR text to machine code: object bytes, assembly text, and whether the assembly spills.

Only LLVM's code generator runs. The emitters already unroll, vectorise and order their instructions, and LLVM's machine
scheduler is off because it undoes that: it hoists loads until vectors spill. On a 2.x GHz Zen 5 core a 12×2 tile of 16-lane
vectors runs at 116 GFLOP/s with it and at 265 without it, 14×2 at 135 and 256 (2026-11-24, LLVM 22).

llvmlite takes one lock around every call, so that its users need not know which may run side by side. The code generator may:
LLVM asks only that two threads share neither a context nor a target machine. It is called here without that lock.
"""

from __future__ import annotations

import ctypes
import functools
import re
import threading
from collections.abc import Callable
from importlib import resources
from typing import Any

import llvmlite.binding as llvm
from llvmlite.binding import ffi
from llvmlite.utils import get_library_name

from kernels.native.code.cache import Compiled
from kernels.native.errors import CompileError
from kernels.native.target.isa import Isa

LLVM_OPTIONS = ("-enable-misched=0",)

_LABEL = re.compile(r"^(\.?L?BB\d+_\d+):")
_JUMP = re.compile(r"^\s+(?:j\w+|b(?:\.\w+)?|cbn?z|tbn?z)\s.*?(\.?L?BB\d+_\d+)\s*(?:[#/].*)?$")
_VECTOR = {"x86_64": re.compile(r"%[xyz]mm\d"), "aarch64": re.compile(r"\b[qv]\d")}
_MULTIPLIES = re.compile(r"mulp[sd]|f[n]?m(add|sub|la|ls|ul)")
_STACK = {"x86_64": re.compile(r"\(%rsp\b"), "aarch64": re.compile(r"\[sp\b")}
_of_thread = threading.local()
_setting_up = threading.Lock()
SPILL_LIMIT = 0.03  # AVX2's 6×2 tile spills 1 % and is its fastest at 96 % of peak; 14×1 spills 8 % and falls to 72 %


def generate(ir: str, isa: Isa, *, count_spills: bool = False) -> Compiled:
    """Compile one module to an object file. Raises CompileError when LLVM refuses the text."""
    code = _emit(ir, isa, as_object=True)
    return Compiled(code, spilled_share(assembly(ir, isa), isa) if count_spills else None)


def assembly(ir: str, isa: Isa) -> str:
    """Return the assembly of one module, for people to read. Raises CompileError when LLVM refuses the text."""
    return _emit(ir, isa, as_object=False).decode()


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


def _machine(isa: Isa) -> llvm.TargetMachine:
    """Return this thread's own target machine."""
    with _setting_up:
        _set_up_llvm()
        if not llvm.get_process_triple().startswith(isa.triple.partition("-")[0]):
            _other_targets()
    made: dict[Isa, llvm.TargetMachine] = _of_thread.__dict__.setdefault("machines", {})
    if isa not in made:
        target = llvm.Target.from_triple(isa.triple)
        made[isa] = target.create_target_machine(cpu=isa.cpu, features=isa.features, opt=3, reloc="pic", codemodel="small")
    return made[isa]


@functools.cache
def _generator() -> Callable[..., Any]:
    """Return LLVM's code generator: (machine, module, whether to emit an object, error) -> memory buffer, null on an error."""
    library = ctypes.CDLL(str(resources.files("llvmlite.binding") / get_library_name()))  # the one that llvmlite has loaded
    function = library.LLVMPY_TargetMachineEmitToMemory
    function.argtypes = [ffi.LLVMTargetMachineRef, ffi.LLVMModuleRef, ctypes.c_int, ctypes.POINTER(ctypes.c_char_p)]
    function.restype = ffi.LLVMMemoryBufferRef
    return function


def _emit(ir: str, isa: Isa, *, as_object: bool) -> bytes:
    """Return the object, or the assembly, of one module. Raises CompileError when LLVM refuses the text."""
    machine = _machine(isa)
    with _parse(ir) as module, ffi.OutputString() as error:
        buffer = _generator()(machine, module, int(as_object), error)
        if not buffer:
            raise CompileError(f"module: LLVM makes no code of it, {error}")
        try:
            return ctypes.string_at(ffi.lib.LLVMPY_GetBufferStart(buffer), ffi.lib.LLVMPY_GetBufferSize(buffer))
        finally:
            ffi.lib.LLVMPY_DisposeMemoryBuffer(buffer)


def _parse(ir: str) -> llvm.ModuleRef:
    """Parse a module into a context of its own."""
    try:
        module = llvm.parse_assembly(ir, llvm.create_context())
        module.verify()
    except RuntimeError as error:
        raise CompileError(f"module: LLVM refuses it, {error}") from error
    return module
