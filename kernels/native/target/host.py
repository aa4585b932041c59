"""What LLVM says of this machine's processor, remembered in the code cache: asking LLVM means to load it."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from kernels.native.code.folder import PrivateFolder

_TOLD_BY = ("vendor_id", "cpu family", "model", "stepping", "flags", "CPU implementer", "CPU part", "CPU variant", "Features")


@dataclass(frozen=True, slots=True)
class Host:
    """A processor by LLVM's names. features: those that it and its operating system enable, sorted."""

    arch: str
    cpu: str
    features: tuple[str, ...]


@functools.cache
def host() -> Host:
    """This machine's processor."""
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
    """The version of llvmlite, which tells that of the LLVM inside it."""
    return importlib.metadata.version("llvmlite")


def _ask_llvm() -> Host:
    import llvmlite.binding as llvm  # noqa: PLC0415  loaded where nothing else will do

    arch = llvm.get_process_triple().partition("-")[0].replace("arm64", "aarch64")
    return Host(arch, llvm.get_host_cpu_name(), tuple(sorted(name for name, on in llvm.get_host_cpu_features().items() if on)))


def _key() -> str:
    """What LLVM's answer depends on: its version, and what the system says of the first processor; "" where it says nothing."""
    try:
        lines = Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines()
    except OSError:
        return ""
    told = sorted(line for line in lines if line.partition(":")[0].strip() in _TOLD_BY)
    return hashlib.sha256("\n".join([llvm_version(), sys.platform, *told]).encode()).hexdigest()[:24] if told else ""


def _parse(data: bytes | None) -> Host | None:
    """What was remembered, or None where that is nothing whole."""
    try:
        found = json.loads(data or b"")
        host = Host(found["arch"], found["cpu"], tuple(found["features"]))
    except (ValueError, TypeError, KeyError):
        return None
    return host if all(isinstance(text, str) for text in (host.arch, host.cpu, *host.features)) else None
