"""Call emitted functions in this process, or in an emulator if the instruction set is of another architecture.

On a host that is not AArch64, QEMU's user mode runs AArch64 code by `_DRIVER`, a program without a C library that is assembled
once. The driver maps its standard input, a file, into memory at `_BASE`. The file holds the calls to make, then the arrays, which
calls read and write there, then the object, which is linked for its address in this memory.
"""

import ctypes
import functools
import itertools
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kernels.native.code.elf import Image, read_object
from kernels.native.code.library import Library
from kernels.native.target.isa import Isa, host_isas

Call = Sequence[np.ndarray | int | None]  # arrays are passed by address

_ASSEMBLER, _LINKER, _EMULATOR = "aarch64-linux-gnu-as", "aarch64-linux-gnu-ld", "qemu-aarch64"
MISSING_TOOLS = [tool for tool in (_ASSEMBLER, _LINKER, _EMULATOR) if shutil.which(tool) is None]

_BASE = 0x10_0000_0000
_PAGE_BYTES = 4096
_GAP = 0xA5  # byte that fills the gaps between arrays, where no kernel may write
_GAP_BYTES = 256
_REGISTERS, _STACK = 8, 16  # arguments of a call in registers, then on the stack

# The file begins with the number of calls, start and end of scratch, and the function. All argument slots of each call follow.
_DRIVER = f"""
    .global _start
_start:
    sub sp, sp, #256
    mov x0, #0
    mov x1, sp
    mov x8, #80                 // fstat
    svc #0
    ldr x1, [sp, #48]           // the size of the file
    add sp, sp, #256
    ldr x0, ={_BASE}
    mov x2, #7                  // read, write and run
    mov x3, #0x11               // shared, at this address
    mov x4, #0                  // standard input
    mov x5, #0
    mov x8, #222                // mmap
    svc #0
    ldp x20, x21, [x0]
    ldp x22, x23, [x0, #16]
    add x19, x0, #32
    sub sp, sp, #{8 * _STACK}
call:
    mov x0, x21
    mov x1, #-1
poison:
    cmp x0, x22
    b.hs arguments
    str x1, [x0], #8
    b poison
arguments:
    mov x0, #0
stack:
    add x1, x19, #{8 * _REGISTERS}
    ldr x2, [x1, x0, lsl #3]
    str x2, [sp, x0, lsl #3]
    add x0, x0, #1
    cmp x0, #{_STACK}
    b.ne stack
    ldp x0, x1, [x19]
    ldp x2, x3, [x19, #16]
    ldp x4, x5, [x19, #32]
    ldp x6, x7, [x19, #48]
    blr x23
    add x19, x19, #{8 * (_REGISTERS + _STACK)}
    subs x20, x20, #1
    b.ne call
    mov x0, #0
    mov x8, #94                 // exit_group
    svc #0
"""


def run(code: bytes, isa: Isa, name: str, calls: Sequence[Call], scratch: np.ndarray | None = None) -> None:
    """Call a function of an object file once with each tuple of arguments. scratch: bytes filled with 0xFF before each call."""
    here = any(host.arch == isa.arch for host in host_isas())
    (_run_here if here else _emulate)(code, name, calls, scratch)


def _run_here(code: bytes, name: str, calls: Sequence[Call], scratch: np.ndarray | None) -> None:
    library = Library([code], [name])
    for call in calls:
        if scratch is not None:
            scratch[:] = 0xFF
        kinds = [ctypes.c_int64 if isinstance(argument, int) else ctypes.c_void_p for argument in call]
        raw = [argument.ctypes.data if isinstance(argument, np.ndarray) else argument for argument in call]
        ctypes.CFUNCTYPE(None, *kinds)(library.address(name))(*raw)
    library.close()


@functools.cache
def _driver() -> tuple[tempfile.TemporaryDirectory[str], Path]:
    """Assemble the driver. Return its temporary folder, which is removed when this process ends, and its program."""
    folder = tempfile.TemporaryDirectory(prefix="edgewise-aarch64-")
    target, program = Path(folder.name) / "driver.o", Path(folder.name) / "driver"
    subprocess.run([_ASSEMBLER, "-o", target, "-"], input=_DRIVER.encode(), check=True)
    subprocess.run([_LINKER, "-o", program, target], check=True)
    return folder, program


def _emulate(code: bytes, name: str, calls: Sequence[Call], scratch: np.ndarray | None) -> None:
    arrays = [argument for call in calls for argument in call if isinstance(argument, np.ndarray)]
    arrays += [scratch] if scratch is not None else []
    places = _places(arrays, 8 * (4 + len(calls) * (_REGISTERS + _STACK)))
    size = max((offset + end - start for (start, end), offset in places.items()), default=0) + _PAGE_BYTES
    at_code = -(-size // _PAGE_BYTES) * _PAGE_BYTES
    laid_out = Image([read_object(code)], lambda _: None)
    memory = np.full(at_code + laid_out.nbytes, _GAP, np.uint8)
    memory[at_code:] = 0
    laid_out.write(memory[at_code:], _BASE + at_code)
    words = memory[: at_code // 8 * 8].view(np.int64)
    words[:4] = len(calls), 0, 0, _BASE + at_code + laid_out.exports[name]
    if scratch is not None:
        words[1:3] = (at := _address(scratch, places)), at + scratch.nbytes // 8 * 8
    for n, call in enumerate(calls):
        raw = [_address(a, places) if isinstance(a, np.ndarray) else a or 0 for a in call]
        assert len(raw) <= _REGISTERS + _STACK
        first = 4 + n * (_REGISTERS + _STACK)
        words[first : first + len(raw)] = raw
    for (start, end), offset in places.items():
        memory[offset : offset + end - start] = _bytes(start, end)
    after = _in_emulator(memory)
    for (start, end), offset in places.items():
        _bytes(start, end)[:] = after[offset : offset + end - start]
        after[offset : offset + end - start] = memory[offset : offset + end - start]
    assert (after == memory).all(), "a kernel wrote outside of its arrays"


def _in_emulator(memory: np.ndarray) -> np.ndarray:
    """Run the calls in the emulator and return the memory afterwards."""
    folder, program = _driver()
    with tempfile.TemporaryFile(dir=folder.name) as data:
        data.write(memory.tobytes())
        data.seek(0)
        subprocess.run([_EMULATOR, program], stdin=data, check=True)
        data.seek(0)
        return np.frombuffer(data.read(), np.uint8).copy()


def _places(arrays: Sequence[np.ndarray], first: int) -> dict[tuple[int, int], int]:
    """Return the file offset of each (start, end) of the arrays' memory. Overlapping arrays share one; alignment is kept."""
    spans: list[tuple[int, int]] = []
    for start, end in sorted(np.lib.array_utils.byte_bounds(array) for array in arrays if array.size):
        if spans and start < spans[-1][1]:
            spans[-1] = spans[-1][0], max(end, spans[-1][1])
        else:
            spans.append((start, end))
    room = itertools.accumulate([first, *(end - start + 2 * _GAP_BYTES for start, end in spans)])
    return {span: at + _GAP_BYTES + (span[0] - at) % 128 for span, at in zip(spans, room, strict=False)}


def _address(array: np.ndarray, places: dict[tuple[int, int], int]) -> int:
    """Return the address of an array in the driver's memory, or 0 for an empty one."""
    at = array.ctypes.data
    return next((_BASE + offset + at - start for (start, end), offset in places.items() if start <= at < end), 0)


def _bytes(start: int, end: int) -> np.ndarray:
    return np.ctypeslib.as_array((ctypes.c_uint8 * (end - start)).from_address(start))
