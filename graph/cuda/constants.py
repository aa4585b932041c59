"""Constants on the GPU, each there once for all segments of a model, in the form in which kernels read it."""

from __future__ import annotations

import threading
from collections.abc import Callable

from graph.native.place import Storage
from kernels.cuda.driver import Context, Memory
from kernels.spec import Array, DType


class DeviceConstants:
    """The packed constants of a model. They are packed and copied to the GPU when a segment is bound that reads them."""

    def __init__(self) -> None:
        self._storages: dict[tuple[int, object], tuple[Array, Storage]] = {}  # the source keeps its id() from being reused
        self._packs: dict[Storage, Callable[[], Array]] = {}
        self._memory: dict[Storage, Memory] = {}
        self._lock = threading.Lock()

    def storage(self, source: Array, key: object, dtype: DType, pack: Callable[[], Array]) -> Storage:
        """Return the storage of a constant that `pack` makes of a source. key: what tells this form from others."""
        with self._lock:
            known = self._storages.get((id(source), key))
            if known is None:
                made = Storage("constant", 0, dtype)
                known = self._storages[id(source), key] = source, made
                self._packs[made] = pack
            return known[1]

    def __contains__(self, storage: Storage) -> bool:
        return storage in self._packs or storage in self._memory

    def array(self, storage: Storage) -> Array:
        """Return a constant as kernels read it."""
        return self._packs[storage]()

    def memory(self, storage: Storage, context: Context) -> Memory:
        """Return a constant's memory on the GPU, copied there the first time. Raises DeviceMemoryError where it is full."""
        with self._lock:
            if storage not in self._memory:
                array = self._packs.pop(storage)()
                made = context.allocate(max(array.nbytes, 1))
                made.write(array.reshape(-1))
                self._memory[storage] = made
            return self._memory[storage]

    @property
    def n_bytes(self) -> int:
        """Bytes on the GPU."""
        return sum(memory.n_bytes for memory in self._memory.values())
