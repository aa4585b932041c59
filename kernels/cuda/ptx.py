"""LLVM IR text to PTX, the assembly language that NVIDIA's driver compiles for the GPU at hand.

PTX is kept in the code cache on disk, by the rules of `kernels.native.code.cache`: an entry is used only if its folder belongs to
this user alone, and its length, key and checksum are right.

LLVM 22 compiles every `atomicrmw` to a relaxed instruction without a fence, also one with release or acq_rel order, so only
monotonic ones are accepted here. Put instructions `fence syncscope("device") acq_rel` around it instead; atomic loads, stores and
fences are compiled right.

Instructions by which a launch waits for the one before it (`griddepcontrol`) are left out for GPUs that do not have them: there a
launch does not start earlier.
"""

from __future__ import annotations

import functools
import hashlib
import re
from pathlib import Path
from typing import Any

from kernels.cuda.errors import GpuUnsupportedError
from kernels.native.code.cache import CodeCache, Compiled, Source
from kernels.native.errors import CompileError
from kernels.native.target.host import llvm_version
from kernels.record import record

TRIPLE = "nvptx64-nvidia-cuda"
_ORDERED = re.compile(r"^.*\batomicrmw\b.*\b(?:acquire|release|acq_rel|seq_cst)\b.*$", re.MULTILINE)


_FOLLOWING = re.compile(r'^.*"griddepcontrol\..*\n', re.MULTILINE)


@record
class PtxTarget:
    """What PTX is written for. cpu: LLVM's name of the architecture.  version: of the PTX language, 80 for 8.0."""

    cpu: str
    version: int

    @property
    def overlaps(self) -> bool:
        """Whether a launch can start before the one before it has ended, and wait for it inside."""
        return int(self.cpu.removeprefix("sm_").removesuffix("a")) >= 90

    @property
    def key(self) -> str:
        """Text that tells targets apart."""
        return f"{TRIPLE} {self.cpu} ptx{self.version}"


# Of each compute capability: its architecture, and the first version of PTX that has it, or that has what we use of it. "a" marks
# instructions of that capability alone, such as wgmma; other PTX runs on every later GPU.
TARGETS = {
    (8, 0): PtxTarget("sm_80", 71),
    (8, 6): PtxTarget("sm_86", 71),
    (8, 7): PtxTarget("sm_87", 74),
    (8, 9): PtxTarget("sm_89", 78),
    (9, 0): PtxTarget("sm_90a", 80),
    (10, 0): PtxTarget("sm_100", 86),
    (12, 0): PtxTarget("sm_120", 87),
}


def find_target(capability: tuple[int, int]) -> PtxTarget:
    """Return the target for a compute capability: its own, or the newest before it that is not of one capability alone.

    Raises GpuUnsupportedError below 8.0, whose tensor cores know neither bf16 nor tf32.
    """
    if capability in TARGETS:
        return TARGETS[capability]
    older = [known for known, target in TARGETS.items() if known < capability and not target.cpu.endswith("a")]
    if not older:
        raise GpuUnsupportedError(f"cuda: compute capability {capability[0]}.{capability[1]}, need 8.0 or newer")
    return TARGETS[max(older)]


def emitters() -> list[Path]:
    """Return the files that decide what IR a kernel's name stands for: this package, and the emitters that it uses."""
    package = Path(__file__).parent
    folders = (package, package.parent / "native" / "emit")
    return [*(path for folder in folders for path in sorted(folder.rglob("*.py"))), package.parent / "expression.py"]


@functools.cache
def build_key() -> str:
    """Hash what PTX depends on besides IR and target: the version of LLVM, and the source of the emitters."""
    digest = hashlib.sha256(llvm_version().encode())
    for path in emitters():
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def entry_key(source: Source, target: PtxTarget) -> bytes:
    """Hash everything that the PTX of a module depends on (32 bytes)."""
    return hashlib.sha256(b"\0".join(part.encode() for part in (build_key(), target.key, source.key))).digest()


def compile_ptx(source: Source, target: PtxTarget, cache: CodeCache | None = None) -> bytes:
    """Return the PTX of a module, from the cache where it is there. Raises CompileError where LLVM refuses the IR."""
    key = entry_key(source, target)
    if cache and (known := cache.get(key)):
        return known.code
    ptx = generate(source.text(), target)
    if cache:
        cache.put(key, Compiled(ptx))
    return ptx


def generate(ir: str, target: PtxTarget) -> bytes:
    """Compile IR to PTX in this process. Raises CompileError where LLVM refuses the IR, or would drop an order that it gives."""
    if found := _ORDERED.search(ir):
        raise CompileError(f"module: {found[0].strip()!r}, whose order LLVM drops, need a monotonic one between fences")
    import llvmlite.binding as llvm  # noqa: PLC0415  loaded where there is something to compile

    machine = _machine(target)
    try:
        module = llvm.parse_assembly(ir if target.overlaps else _FOLLOWING.sub("", ir))
        module.verify()
    except RuntimeError as error:
        raise CompileError(f"module: LLVM refuses it, {error}") from error
    text: str = machine.emit_assembly(module)
    return text.encode()


@functools.cache
def _machine(target: PtxTarget) -> Any:
    import llvmlite.binding as llvm  # noqa: PLC0415

    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    return llvm.Target.from_triple(TRIPLE).create_target_machine(cpu=target.cpu, features=f"+ptx{target.version}", opt=3)
