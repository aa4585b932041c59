"""Barriers between the calls of a segment, where a later call touches memory that an earlier one may still use."""

from __future__ import annotations

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
    reads: list[tuple[Storage, Ref]] = []
    writes: list[tuple[Storage, Ref]] = []
    for call in calls:
        written = {call.arguments[name][0] for name in call.writes if name in call.arguments}
        read = {storage for name, (storage, _) in call.arguments.items() if name not in call.writes and storage.constant is None}
        conflicts = any(_meet(storage, where[storage], other, ref) for storage in read for other, ref in writes)
        conflicts = conflicts or any(_meet(storage, where[storage], other, ref) for storage in written for other, ref in reads)
        conflicts = conflicts or any(
            storage is not other and _meet(storage, where[storage], other, ref) for storage in written for other, ref in writes
        )
        if conflicts and made:
            made[-1] = replace(made[-1], barrier=True)
            reads, writes = [], []
        refs = {name: Ref(where[s].slot, where[s].offset_bytes + nbytes) for name, (s, nbytes) in call.arguments.items()}
        made.append(KernelCall(call.kernel, refs, barrier=False))
        reads += [(storage, where[storage]) for storage in read]
        writes += [(storage, where[storage]) for storage in written]
    return made


def _meet(a: Storage, a_ref: Ref, b: Storage, b_ref: Ref) -> bool:
    """Whether two storages share memory."""
    if a is b:
        return True
    if a_ref.slot != b_ref.slot:
        return False
    return a_ref.offset_bytes < b_ref.offset_bytes + b.nbytes and b_ref.offset_bytes < a_ref.offset_bytes + a.nbytes
