"""Calls of emitted functions: in this process, or in an emulator where the instruction set is another architecture's.

For AArch64 on another host the object is linked as it would be there, and laid beside `_DRIVER` into a program without a
C library, which QEMU's user mode runs.
Its standard input is a file that it maps into memory at `_BASE`: the calls to make, then the arrays, read and written there.
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

Call = Sequence[np.ndarray | int | None]  # arrays go by address

_ASSEMBLER, _LINKER, _EMULATOR = "aarch64-linux-gnu-as", "aarch64-linux-gnu-ld", "qemu-aarch64"
MISSING_TOOLS = [tool for tool in (_ASSEMBLER, _LINKER, _EMULATOR) if shutil.which(tool) is None]

_BASE = 0x10_0000_0000
_CODE = 0x100_0000
_GAP = 0xA5  # between arrays: nobody may write there
_GAP_BYTES = 256
_REGISTERS, _STACK = 8, 16  # arguments of a call in registers and behind them

# The file: calls to make, scratch from, scratch to, 0; then of each call the arguments, as many as there is room for.
_DRIVER = f"""
    .global _start
_start:
    ldr x0, ={_BASE}
    ldr x1, =memory_bytes
    mov x2, #3                  // read and write
    mov x3, #0x11               // shared, at this address
    mov x4, #0                  // standard input
    mov x5, #0
    mov x8, #222                // mmap
    svc #0
    ldp x20, x21, [x0]
    ldr x22, [x0, #16]
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
    bl function
    add x19, x19, #{8 * (_REGISTERS + _STACK)}
    subs x20, x20, #1
    b.ne call
    mov x0, #0
    mov x8, #94                 // exit_group
    svc #0
"""


def run(code: bytes, isa: Isa, name: str, calls: Sequence[Call], scratch: np.ndarray | None = None) -> None:
    """Call a function of an object again and again. scratch: bytes filled with 0xFF before each call."""
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
    """The folder that programs are linked in, which goes with this process, and the driver's object there."""
    folder = tempfile.TemporaryDirectory(prefix="edgewise-aarch64-")
    target = Path(folder.name) / "driver.o"
    subprocess.run([_ASSEMBLER, "-o", target, "-"], input=_DRIVER.encode(), check=True)
    return folder, target


def _emulate(code: bytes, name: str, calls: Sequence[Call], scratch: np.ndarray | None) -> None:
    arrays = [argument for call in calls for argument in call if isinstance(argument, np.ndarray)]
    arrays += [scratch] if scratch is not None else []
    places = _places(arrays, 8 * (4 + len(calls) * (_REGISTERS + _STACK)))
    size = max((offset + end - start for (start, end), offset in places.items()), default=0) + 4096
    memory = np.full(size, _GAP, np.uint8)
    words = memory[: size // 8 * 8].view(np.int64)
    words[:4] = len(calls), 0, 0, 0
    if scratch is not None:
        words[1:3] = (at := _address(scratch, places)), at + scratch.nbytes // 8 * 8
    for n, call in enumerate(calls):
        raw = [_address(a, places) if isinstance(a, np.ndarray) else a or 0 for a in call]
        assert len(raw) <= _REGISTERS + _STACK
        first = 4 + n * (_REGISTERS + _STACK)
        words[first : first + len(raw)] = raw
    for (start, end), offset in places.items():
        memory[offset : offset + end - start] = _bytes(start, end)
    after = _in_emulator(code, name, memory)
    for (start, end), offset in places.items():
        _bytes(start, end)[:] = after[offset : offset + end - start]
        after[offset : offset + end - start] = memory[offset : offset + end - start]
    assert (after == memory).all(), "something was written outside of the arrays"


def _in_emulator(code: bytes, name: str, memory: np.ndarray) -> np.ndarray:
    """The memory after the calls."""
    folder, driver = _driver()
    with tempfile.TemporaryDirectory(dir=folder.name) as case:
        image, linked, kernel, program, data = (
            Path(case) / file for file in ("image", "linked.s", "kernel.o", "program", "memory")
        )
        data.write_bytes(memory.tobytes())
        laid_out = Image([read_object(code)], lambda _: None)
        whole = np.zeros(laid_out.nbytes, np.uint8)
        laid_out.write(whole, _CODE)
        image.write_bytes(whole.tobytes())
        linked.write_text(f'.section .image,"ax"\n.incbin "{image}"\n')
        subprocess.run([_ASSEMBLER, "-o", kernel, linked], check=True)
        symbols = [f"--defsym=function={_CODE + laid_out.exports[name]}", f"--defsym=memory_bytes={len(memory)}"]
        subprocess.run([_LINKER, f"--section-start=.image={_CODE:#x}", "-o", program, driver, kernel, *symbols], check=True)
        with data.open("r+b") as file:
            subprocess.run([_EMULATOR, program], stdin=file, check=True)
        return np.fromfile(data, np.uint8)


def _places(arrays: Sequence[np.ndarray], first: int) -> dict[tuple[int, int], int]:
    """Where in the file the memory of arrays goes, (start, end) to offset: what overlaps goes together, alignment stays."""
    spans: list[tuple[int, int]] = []
    for start, end in sorted(np.lib.array_utils.byte_bounds(array) for array in arrays if array.size):
        if spans and start < spans[-1][1]:
            spans[-1] = spans[-1][0], max(end, spans[-1][1])
        else:
            spans.append((start, end))
    room = itertools.accumulate([first, *(end - start + 2 * _GAP_BYTES for start, end in spans)])
    return {span: at + _GAP_BYTES + (span[0] - at) % 128 for span, at in zip(spans, room, strict=False)}


def _address(array: np.ndarray, places: dict[tuple[int, int], int]) -> int:
    """Where an array begins in the program's memory."""
    at = array.ctypes.data
    return next((_BASE + offset + at - start for (start, end), offset in places.items() if start <= at < end), 0)


def _bytes(start: int, end: int) -> np.ndarray:
    return np.ctypeslib.as_array((ctypes.c_uint8 * (end - start)).from_address(start))
