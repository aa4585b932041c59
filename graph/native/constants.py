"""Constants as kernels read them: made once for all segments of a model, and named as storages in each segment."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field, replace

from graph.mapped import identity, release
from graph.native.facts import F32
from graph.native.place import PackedConstant, Storage
from graph.wide import half_of
from kernels.spec import Array, DType


@dataclass(slots=True)
class ConstantCache:
    """Packed constants by what they are made of: segments for other shapes of one model share them.

    Each is kept as long as a segment uses it. A mapped source is read for packing, and its pages are released afterwards. The
    source of a float32 copy of a half (`graph.wide`) is the half, so that the copy can be dropped.
    dry: make none, for lowerings that are inspected and never run. workers: pack here; None packs at once in the calling thread.
    """

    dry: bool = False
    workers: Executor | None = None
    _entries: weakref.WeakValueDictionary[Hashable, PackedConstant] = field(default_factory=weakref.WeakValueDictionary)

    def by(self, workers: Executor) -> ConstantCache:
        """Return a view of this cache that packs what is missing on `workers`, without waiting."""
        return replace(self, workers=workers)

    def get(self, source: Array | None, key: Hashable, make: Callable[[], Array]) -> PackedConstant:
        """Return what `make` packs `source` into; `key` names the way. Without a source the key alone identifies the constant."""
        source = source if source is None or (half := half_of(source)) is None else half
        if self.dry:
            return PackedConstant(source, Future())
        full = (None if source is None else identity(source) or id(source), key)
        entry = self._entries.get(full)
        if entry is not None:
            return entry

        def packed() -> Array:
            array = make()
            if source is not None:
                release(source)
            return array

        made = self.workers.submit(packed) if self.workers else PackedConstant.of(packed()).made
        entry = self._entries[full] = PackedConstant(source, made)
        return entry


class ConstantStorages:
    """The packed constants that the calls of one segment read, each as one storage."""

    def __init__(self, cache: ConstantCache) -> None:
        self._cache = cache
        self._storages: dict[int, Storage] = {}

    def storage(self, source: Array | None, key: Hashable, make: Callable[[], Array], dtype: DType = F32) -> Storage:
        """Return the storage of a packed constant of that type; the same source packed the same way is one storage."""
        packed = self._cache.get(source, key, make)
        if id(packed) not in self._storages:
            self._storages[id(packed)] = Storage("constant", 0, dtype, packed)
        return self._storages[id(packed)]
