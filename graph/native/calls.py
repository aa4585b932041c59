"""The kernel calls of a segment, in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from graph.ir import Node
from graph.native.place import PackedConstant, Place, Storage
from kernels.expression import Apply
from kernels.native.emit.kernel import NativeKernel
from kernels.native.families.elementwise import Map, Strided, emit_map
from kernels.native.memory.view import View
from kernels.native.target.isa import Isa
from kernels.operands import check_indices
from kernels.record import record
from kernels.size import Sizes
from kernels.spec import Array


@record
class Call:
    """One kernel call.

    node: position in the segment of the node that it belongs to. arguments: for each one used, its storage and the bytes from the
    storage's beginning. writes: names of the arguments that the kernel writes. updates: of those that it reads and writes, and
    that must be complete before.
    """

    node: int
    kernel: NativeKernel
    arguments: Mapping[str, tuple[Storage, int]]
    writes: tuple[str, ...] = ("y",)
    updates: tuple[str, ...] = ()

    def at(self, sizes: Sizes, storages: Mapping[Storage, Storage]) -> Call:
        """Return the call with values for all sizes. storages: each one's counterpart, with its value."""
        places = {name: (storages[storage], sizes.of(nbytes)) for name, (storage, nbytes) in self.arguments.items()}
        return Call(self.node, self.kernel.at(sizes), places, self.writes)


@record
class IndexWatch:
    """A word of 8 bytes into which a kernel writes an index that is out of range for an axis of that size; 0 until then.

    storage: of the word. Each bound segment has words of its own. what: of the node, that the index is one of. check: raises
    IndexRangeError for a word that is out of range, called with a subject, the word and the size.
    """

    node: Node
    axis_size: int
    storage: Storage
    what: str = "indices"
    check: Callable[[str, Array, int], None] = check_indices


class CallList:
    """The calls of one segment under construction, and the words in which their kernels report indices out of range.

    node: position of the node that calls are appended for.
    """

    def __init__(self, isa: Isa) -> None:
        self.node = 0
        self.watches: list[IndexWatch] = []
        self._isa = isa
        self._calls: list[Call] = []

    def __iter__(self) -> Iterator[Call]:
        return iter(self._calls)

    def append(
        self,
        kernel: NativeKernel,
        places: Mapping[str, Place | Storage],
        writes: Sequence[str] = ("y",),
        updates: Sequence[str] = (),
    ) -> None:
        """Append a call of a kernel.

        places: for each argument, where its first element lies. writes, updates: as in `Call`.
        """
        arguments = {
            name: (place, 0) if isinstance(place, Storage) else (place.storage, place.first_byte)
            for name, place in places.items()
        }
        self._calls.append(Call(self.node, kernel, arguments, tuple(writes), tuple(updates)))

    def map(self, y: tuple[Place, View], operands: Sequence[tuple[Place, View]], steps: Sequence[Apply] = ()) -> None:
        """Append a call of an elementwise kernel; without steps it copies. The views count from where the storages begin."""
        tensors = [Strided(view, place.storage.dtype) for place, view in (y, *operands)]
        what = Map(tensors[0], tuple(tensors[1:]), tuple(steps))
        named = {f"x{n}": place.storage for n, (place, _) in enumerate(operands)}
        self.append(emit_map(what, self._isa), {**named, "y": y[0].storage})

    def watch(self, node: Node, axis_size: int) -> Storage:
        """Return storage for the word in which a kernel reports an index out of range; it is checked after each run."""
        return self.watch_by(node, axis_size, "indices", check_indices)

    def watch_by(self, node: Node, size: int, what: str, check: Callable[[str, Array, int], None]) -> Storage:
        """Return storage for a word in which a kernel reports a number that is out of range, as `IndexWatch` describes."""
        storage = Storage("watch", 0, np.dtype(np.int64), PackedConstant.of(np.zeros(1, np.int64)))
        self.watches.append(IndexWatch(node, size, storage, what, check))
        return storage
