"""This machine's processor as LLVM describes it, remembered in the code cache because asking LLVM means loading it."""

from __future__ import annotations

import functools
import hashlib
import json
import sys
from dataclasses import asdict
from pathlib import Path

import llvmlite

from kernels.native.code.folder import PrivateFolder
from kernels.record import record

_TOLD_BY = ("vendor_id", "cpu family", "model", "stepping", "flags", "CPU implementer", "CPU part", "CPU variant", "Features")


@record
class Host:
    """A processor by LLVM's names. features: those that the processor has and the operating system enables, sorted."""

    arch: str
    cpu: str
    features: tuple[str, ...]


@functools.cache
def host() -> Host:
    """Return this machine's processor."""
    path, key = PrivateFolder.default_path(), _key()
    if path is None or not key:
        return _ask_llvm()
    folder = PrivateFolder(path)
    name = f"host-{key}.json"
    if (known := _parse(folder.read(name))) is not None:
        return known
    found = _ask_llvm()
    folder.write(name, json.dumps(asdict(found)).encode())
    return found


def llvm_version() -> str:
    """Return the version of llvmlite, which decides the version of LLVM."""
    return str(llvmlite.__version__)


def _ask_llvm() -> Host:
    import llvmlite.binding as llvm  # noqa: PLC0415  loaded where nothing else will do

    arch = llvm.get_process_triple().partition("-")[0].replace("arm64", "aarch64")
    return Host(arch, llvm.get_host_cpu_name(), tuple(sorted(name for name, on in llvm.get_host_cpu_features().items() if on)))


def _key() -> str:
    """Hash LLVM's version and the system's description of the first processor; "" where the system gives none."""
    try:
        lines = Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines()
    except OSError:
        return ""
    told = sorted(line for line in lines if line.partition(":")[0].strip() in _TOLD_BY)
    return hashlib.sha256("\n".join([llvm_version(), sys.platform, *told]).encode()).hexdigest()[:24] if told else ""


def _parse(data: bytes | None) -> Host | None:
    """Read a remembered processor; None where the data is missing or broken."""
    try:
        found = json.loads(data or b"")
        host = Host(found["arch"], found["cpu"], tuple(found["features"]))
    except (ValueError, TypeError, KeyError):
        return None
    return host if all(isinstance(text, str) for text in (host.arch, host.cpu, *host.features)) else None
