"""Errors of NVIDIA GPUs, under the tree of `kernels.errors`.

UnsupportedError ← NoDriverError         this machine has no NVIDIA driver, or the driver sees no GPU
UnsupportedError ← GpuUnsupportedError   the GPU or its driver cannot do what was asked: PTX too new, a launch too large
EdgewiseError    ← DeviceMemoryError     the GPU's memory is full
EdgewiseError    ← CudaError             any other failed call: a fault of this project
DeviceLostError  ← GpuLostError          the GPU, or the context that holds the work on it, is gone

A failure on the GPU, such as an illegal address, is reported by a later call, and by every one after that: those are GpuLostError
too. A new context, or a reset of the old one, fails in the same way (seen on an H200 with driver 580.159.04, 2026-11-30), so the
process has lost the GPU for good, and another process has not.
"""

from __future__ import annotations

from kernels.errors import DeviceLostError, EdgewiseError, UnsupportedError

_LOST = {
    4: "the driver is shutting down",
    46: "the GPU is unavailable",
    101: "the GPU is gone",
    201: "the context is invalid",
    214: "uncorrectable memory error",
    220: "link between GPUs failed",
    226: "a GPU was contained after an error",
    700: "illegal address",
    702: "a launch took too long",
    709: "the context is destroyed",
    710: "an assertion failed",
    714: "hardware stack error",
    715: "illegal instruction",
    716: "misaligned address",
    717: "illegal address space",
    718: "illegal program counter",
    719: "a launch failed",
    721: "tensor memory leaked",
    999: "unknown failure",
}
_UNSUPPORTED = {
    209: "no code for this GPU",
    218: "PTX refused",
    221: "the driver has no compiler for PTX",
    222: "PTX newer than the driver",
    701: "too many registers or too much shared memory for the launch",
    720: "more blocks than fit at once",
    801: "not supported",
    803: "driver and kernel module differ",
}
_NO_DEVICE = 100
_OUT_OF_MEMORY = 2


class NoDriverError(UnsupportedError):
    """This machine has no NVIDIA driver, or the driver sees no GPU."""


class GpuUnsupportedError(UnsupportedError):
    """The GPU or its driver cannot do what was asked."""


class DeviceMemoryError(EdgewiseError):
    """The GPU's memory is full."""


class CudaError(EdgewiseError):
    """A call of the driver failed through a fault of this project."""


class GpuLostError(DeviceLostError):
    """The GPU, or the context that holds the work on it, is gone."""


def error_of(call: str, code: int, name: str, description: str) -> Exception:
    """Return the error for a result code of the driver.

    Args:    call: the driver's function.  code: what it returned, not 0.  name, description: the driver's own words for it.
    """
    text = f"{call}: {name} ({code}), {description}"
    if code == _NO_DEVICE:
        return NoDriverError(text)
    if code == _OUT_OF_MEMORY:
        return DeviceMemoryError(text)
    if code in _UNSUPPORTED:
        return GpuUnsupportedError(text)
    if code in _LOST:
        return GpuLostError(f"{text}; this process has lost the GPU, start another")
    return CudaError(text)
