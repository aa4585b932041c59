"""What a measurement is true of besides the device: the engine build, and the source of the one kernel that was measured.

The source is split in two. What every kernel shares (the registry, layouts, native builder, pool, executor) is hashed into the
engine build, together with the versions of what computes: editing it makes every measurement stale. The files of
`kernels/ops` are hashed one by one, each with what it imports from that folder, and so are the rules of `graph/native` with the
families of native kernels that they alone reach: editing one makes only the rows of its ops stale.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.metadata
import importlib.util
import pkgutil
import platform
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import ModuleType

import numpy as np

import graph
import kernels
from graph.native.rules.table import RULES
from kernels.errors import UnsupportedError
from kernels.registry import home, operators

_HASH_DIGITS = 16
_OPS = "kernels.ops"
_EXECUTOR = "graph.run.executor"  # with what it imports: all that runs between the kernels
_FAMILIES = ("graph.native.", "kernels.native.")
_RULES = "graph.native.rules.table"  # imports every family of native kernels
_READING = threading.Lock()  # CPython 3.11 counts the depth of syntax trees for all threads together: two at once fail


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


def current_build() -> Build:
    """The build of this process. Source is read once, when it is first asked for.

    Raises: UnsupportedError where the engine's source is not there to be hashed.
    """
    with _READING:
        return _read_build()


@functools.cache
def _read_build() -> Build:
    llvmlite = importlib.metadata.version("llvmlite")
    libraries = f"python{platform.python_version()}.numpy{np.__version__}.llvmlite{llvmlite}"
    sources = {name: _source(name) for name in (*_modules(kernels), *_modules(graph))}
    homes = {op: (home(op), RULES[op].lower.__module__ if op in RULES else "") for op in operators()}
    return build_of(f"{_version()}+{libraries}", sources, homes)


def build_of(prefix: str, sources: Mapping[str, str], homes: Mapping[str, tuple[str, str]]) -> Build:
    """The build of modules given as name -> source. homes: op -> the module of its operator, and of its native rule or ""."""
    ops = {name: source for name, source in sources.items() if name.startswith(f"{_OPS}.")}
    shared = _reached(_EXECUTOR, sources, closed=_RULES)
    families = {name for name in sources if name.startswith(_FAMILIES)} - shared
    own = {rule: _reached(rule, sources) & families for _, rule in homes.values() if rule}
    apart = ops.keys() | {name for found in own.values() for name in found}
    engine = shared | {name for name in sources if name.partition(".")[0] == kernels.__name__}
    return Build(
        id=f"{prefix}.{_hash(sources[name] for name in sorted(engine - apart))}",
        kernels={
            op: _hash(sources[name] for name in sorted(_reached(module, ops) | own.get(rule, set())))
            for op, (module, rule) in homes.items()
        },
    )


def _version() -> str:
    """The installed version; "source" where the engine runs from a source tree that is not installed."""
    try:
        return importlib.metadata.version("edgewise")
    except importlib.metadata.PackageNotFoundError:
        return "source"


def _reached(module: str, sources: Mapping[str, str], closed: str = "") -> set[str]:
    """A module in `sources` and every other one there that it imports, directly or through others but for `closed`."""
    reached = {module}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        for imported in _imports(sources[name]) if name != closed else ():
            if imported in sources and imported not in reached:
                reached.add(imported)
                waiting.append(imported)
    return reached


@functools.cache
def _imports(source: str) -> frozenset[str]:
    """Names that a module may import, each package and each name of it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return frozenset(found)


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
