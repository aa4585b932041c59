"""Barriers between the calls of a segment, where a later call touches memory that an earlier one may still use."""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence
from dataclasses import replace

from graph.native.calls import Call
from graph.native.place import Storage
from kernels.native.run.program import KernelCall, Ref


def with_barriers(calls: Sequence[Call], where: Mapping[Storage, Ref]) -> list[KernelCall]:
    """Return the calls as those of a program, with a barrier only where one touches what another thread may still use.

    where: the place of each storage in the program's table.
    """
    made: list[KernelCall] = []
    reads, writes = _Touched(where), _Touched(where)  # since the last barrier
    for call in calls:
        written = {call.arguments[name][0] for name in (*call.writes, *call.updates) if name in call.arguments}
        read = {storage for name, (storage, _) in call.arguments.items() if name not in call.writes and storage.constant is None}
        conflicts = any(map(writes.meet, read)) or any(map(reads.meet, written))
        conflicts = conflicts or any(writes.meet(storage) for storage in written if storage not in writes)
        if conflicts and made:
            made[-1] = replace(made[-1], barrier=True)
            reads, writes = _Touched(where), _Touched(where)
        refs = {name: Ref(where[s].slot, where[s].offset_bytes + nbytes) for name, (s, nbytes) in call.arguments.items()}
        made.append(KernelCall(call.kernel, refs, barrier=False))
        for storage in read:
            reads.add(storage)
        for storage in written:
            writes.add(storage)
    return made


class _Touched:
    """Memory that calls have touched: storages, and in each slot the ranges of bytes that these cover together."""

    def __init__(self, where: Mapping[Storage, Ref]) -> None:
        self._where = where
        self._storages: set[Storage] = set()
        self._begins: dict[int, list[int]] = {}  # slot -> where its ranges begin, ascending; they neither overlap nor touch
        self._ends: dict[int, list[int]] = {}

    def __contains__(self, storage: Storage) -> bool:
        return storage in self._storages

    def meet(self, storage: Storage) -> bool:
        """Whether a storage shares memory with one that was touched."""
        if storage in self._storages:
            return True
        slot, begin, end = self._range(storage)
        before = bisect.bisect_left(self._begins.get(slot, []), end)  # ranges that begin before it ends
        return before > 0 and self._ends[slot][before - 1] > begin

    def add(self, storage: Storage) -> None:
        """Note that a storage was touched."""
        slot, begin, end = self._range(storage)
        if storage in self._storages:
            return
        self._storages.add(storage)
        if begin == end:
            return
        begins, ends = self._begins.setdefault(slot, []), self._ends.setdefault(slot, [])
        first, behind = bisect.bisect_left(ends, begin), bisect.bisect_right(begins, end)  # the ranges that it joins
        if first < behind:
            begin, end = min(begin, begins[first]), max(end, ends[behind - 1])
        begins[first:behind], ends[first:behind] = [begin], [end]

    def _range(self, storage: Storage) -> tuple[int, int, int]:
        ref = self._where[storage]
        return ref.slot, ref.offset_bytes, ref.offset_bytes + storage.nbytes
