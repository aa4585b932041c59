"""Errors of the native backend, under the tree of `kernels.errors`.

UnsupportedError ← IsaError       this machine, or the one asked for, has no instruction set that is described here
EdgewiseError    ← EmitError      an emitter built wrong code: a fault of this project, never of the caller's data
EdgewiseError    ← CompileError   LLVM refused what an emitter built, or a worker that compiled it died
DeviceLostError  ← PoolError      the native workers are gone
"""

from __future__ import annotations

from kernels.errors import DeviceLostError, EdgewiseError, UnsupportedError


class IsaError(UnsupportedError):
    """No described instruction set fits."""


class EmitError(EdgewiseError):
    """An emitter built wrong code."""


class CompileError(EdgewiseError):
    """LLVM refused the code, or the process that compiled it died."""


class PoolError(DeviceLostError):
    """The native workers cannot run programs."""
