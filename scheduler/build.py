"""The identity of the engine that runs here: a measurement holds for one engine build and one version of its kernel's source.

The source is split in two. Code that all kernels share (the registry, layouts, native builder, thread pool, executor) is hashed
into the engine build, together with the versions of Python, numpy and llvmlite: a change there makes every measurement stale. The
files of `kernels/ops` are hashed one by one, each with its imports from that folder, and so are the rules of `graph/native` with
the families of native kernels that only they reach: a change there makes the measurements of those ops stale and no others.
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
from collections.abc import Callable, Iterable, Mapping
from dataclasses import field
from types import ModuleType

import numpy as np

import graph
import kernels
from graph.native.rules.table import RULES
from kernels.errors import UnsupportedError
from kernels.record import record
from kernels.registry import home, operators

_HASH_DIGITS = 16
_OPS = "kernels.ops"
_EXECUTOR = "graph.run.executor"  # with what it imports: all that runs between the kernels
_FAMILIES = ("graph.native.", "kernels.native.")
_RULES = "graph.native.rules.table"  # imports every family of native kernels
_READING = threading.Lock()  # CPython 3.11 counts the depth of syntax trees for all threads together: two at once fail


@record
class Build:
    """An engine build. id: names its shared source and the libraries it computes with. kernels: op -> hash of its own source."""

    id: str
    kernels: Mapping[str, str] = field(repr=False)

    def kernel_source(self, op: str) -> str:
        """Return the hash of the source of an op, or of several fused ones ("Conv+Relu").

        It is "" for ops that the executor runs itself (If, Loop, Scan): the build's id covers them.
        """
        first, *fused = (self.kernels.get(name, "") for name in op.split("+"))
        return _hash((first, *fused)) if fused else first


def current_build() -> Build:
    """Return the build of this process; the source is read and hashed at the first call.

    Raises: UnsupportedError where the engine's source is not installed, so that it cannot be hashed.
    """
    with _READING:
        return _read_build()


@functools.cache
def _read_build() -> Build:
    llvmlite = importlib.metadata.version("llvmlite")
    libraries = f"python{platform.python_version()}.numpy{np.__version__}.llvmlite{llvmlite}"
    sources = {name: _source(name) for name in (*_modules(kernels), *_modules(graph))}
    homes = {op: (home(op), _module_of(RULES[op].lower) if op in RULES else "") for op in operators()}
    return build_of(f"{_version()}+{libraries}", sources, homes)


def build_of(prefix: str, sources: Mapping[str, str], homes: Mapping[str, tuple[str, str]]) -> Build:
    """Hash modules into a build.

    Args: prefix: the versions that the build's id begins with. sources: module name -> source text. homes: op -> the module that
          defines it and the module of its native rule, "" without one.
    """
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


def _module_of(function: Callable[..., object]) -> str:
    """Return the module that defines a function, or the one of which some arguments are fixed."""
    return function.func.__module__ if isinstance(function, functools.partial) else function.__module__


def _version() -> str:
    """Return the installed version; "source" where the engine runs from a source tree that is not installed."""
    try:
        return importlib.metadata.version("edgewise")
    except importlib.metadata.PackageNotFoundError:
        return "source"


def _reached(module: str, sources: Mapping[str, str], closed: str = "") -> set[str]:
    """Return a module and all of `sources` that it imports, directly or through others; imports of `closed` are left out."""
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
    """Return the names that a module may import: each package and each name taken from it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return frozenset(found)


def _modules(package: ModuleType) -> list[str]:
    """Return the names of a package and of all modules in it, itself first."""
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
