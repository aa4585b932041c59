"""What a measurement is true of besides the device: the engine build, and the source of the one kernel that was measured.

The source is split in two. What every kernel shares (the registry, layouts, native builder, pool, executor) is hashed into the
engine build, together with the versions of what computes: editing it makes every measurement stale. The files of
`kernels/ops` are hashed one by one, each with what it imports from that folder: editing one makes only its op's rows stale.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.metadata
import importlib.util
import pkgutil
import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import ModuleType

import numpy as np

import graph
import kernels
from kernels.errors import UnsupportedError
from kernels.registry import home, operators

_HASH_DIGITS = 16
_OPS = "kernels.ops"
_EXECUTOR = "graph.executor"  # with what it imports: all that runs between the kernels


@dataclass(frozen=True, slots=True)
class Build:
    """The engine that runs here. id: what its shared source and libraries are. kernels: op -> hash of its own source."""

    id: str
    kernels: Mapping[str, str] = field(repr=False)

    def kernel_source(self, op: str) -> str:
        """Hash of the source of an op, or of several fused ones ("Conv+Relu").

        It is "" for what the executor runs itself (If, Loop, Scan): the build's id covers that.
        """
        first, *fused = (self.kernels.get(name, "") for name in op.split("+"))
        return _hash((first, *fused)) if fused else first


@functools.cache
def current_build() -> Build:
    """The build of this process. Source is read once, when it is first asked for.

    Raises: UnsupportedError where the engine's source is not there to be hashed.
    """
    llvmlite = importlib.metadata.version("llvmlite")
    libraries = f"python{platform.python_version()}.numpy{np.__version__}.llvmlite{llvmlite}"
    engine = {name: _source(name) for name in _modules(kernels)}
    sources = {name: engine.pop(name) for name in list(engine) if name.startswith(f"{_OPS}.")}
    execution = source_hash(_EXECUTOR, {name: _source(name) for name in _modules(graph)})
    return Build(
        id=f"{_version()}+{libraries}.{_hash((execution, *(engine[name] for name in sorted(engine))))}",
        kernels={op: source_hash(home(op), sources) for op in operators()},
    )


def _version() -> str:
    """The installed version; "source" where the engine runs from a source tree that is not installed."""
    try:
        return importlib.metadata.version("edgewise")
    except importlib.metadata.PackageNotFoundError:
        return "source"


def source_hash(module: str, sources: Mapping[str, str]) -> str:
    """Hash of a module in `sources` and of every other one there that it imports, directly or through others."""
    reached = {module}
    waiting = [module]
    while waiting:
        for name in _imports(sources[waiting.pop()]):
            if name in sources and name not in reached:
                reached.add(name)
                waiting.append(name)
    return _hash(sources[name] for name in sorted(reached))


def _imports(source: str) -> Iterable[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _modules(package: ModuleType) -> list[str]:
    """Names of every module of a package, itself first."""
    name = package.__name__
    return [name, *sorted(info.name for info in pkgutil.walk_packages(package.__path__, f"{name}."))]


def _source(module: str) -> str:
    spec = importlib.util.find_spec(module)
    get_source = getattr(spec.loader, "get_source", None) if spec is not None else None
    source: str | None = get_source(module) if get_source is not None else None
    if source is None:
        raise UnsupportedError(
            f"engine build: module {module} has no source, measurements cannot be tied to it (install from source)"
        )
    return source


def _hash(texts: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        raw = text.replace("\r\n", "\n").encode()
        digest.update(len(raw).to_bytes(8, "little") + raw)
    return digest.hexdigest()[:_HASH_DIGITS]
