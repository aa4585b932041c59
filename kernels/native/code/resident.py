"""Kernels that are linked in this process. Programs that use the same kernel share it; it goes with the last of them."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Mapping

from kernels.native.code.cache import CodeCache, Source, entry_key
from kernels.native.code.farm import compile_all
from kernels.native.code.library import Library
from kernels.native.target.isa import Isa

_resident: weakref.WeakValueDictionary[bytes, Library] = weakref.WeakValueDictionary()  # by the hash of all that code depends on
_lock = threading.Lock()


def load_kernels(sources: Mapping[str, Source], isa: Isa, cache: CodeCache | None) -> dict[str, Library]:
    """Return a library for each source, by its name, which it exports. Raises CompileError.

    Those that this process does not have yet are compiled together.
    """
    keys = {name: entry_key(source, isa) for name, source in sources.items()}
    with _lock:
        found = {name: library for name, key in keys.items() if (library := _resident.get(key)) is not None}
    missing = [name for name in sources if name not in found]
    compiled = compile_all([sources[name] for name in missing], isa, cache=cache)
    made = {name: Library([code.code], [name]) for name, code in zip(missing, compiled, strict=True)}
    with _lock:
        return found | {name: _resident.setdefault(keys[name], library) for name, library in made.items()}
