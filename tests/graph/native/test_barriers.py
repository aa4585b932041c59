"""Barriers lie where a call touches memory that an earlier one may still use, and nowhere else."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from graph.native.barriers import with_barriers
from graph.native.calls import Call
from graph.native.place import Storage
from kernels.native.run.program import Ref

F32 = np.dtype(np.float32)


def call(read: list[Storage], written: list[Storage]) -> Call:
    arguments = {f"x{n}": (storage, 0) for n, storage in enumerate(read)} | {f"y{n}": (s, 0) for n, s in enumerate(written)}
    kernel: Any = SimpleNamespace(name="k")
    return Call(0, kernel, arguments, tuple(f"y{n}" for n in range(len(written))))


def compared_one_by_one(calls: list[Call], where: dict[Storage, Ref]) -> list[bool]:
    """Where barriers lie, from comparing every call with all those since the last barrier."""

    def meet(a: Storage, b: Storage) -> bool:
        begin, other = where[a].offset_bytes, where[b].offset_bytes
        return a is b or (where[a].slot == where[b].slot and begin < other + b.nbytes and other < begin + a.nbytes)

    barriers = [False] * len(calls)
    reads: list[Storage] = []
    writes: list[Storage] = []
    for at, each in enumerate(calls):
        written = [each.arguments[name][0] for name in each.writes]
        read = [storage for name, (storage, _) in each.arguments.items() if name not in each.writes]
        conflicts = any(meet(a, b) for a in read for b in writes) or any(meet(a, b) for a in written for b in reads)
        if conflicts or any(a is not b and meet(a, b) for a in written for b in writes):
            barriers[at - 1] = True
            reads, writes = [], []
        reads += read
        writes += written
    return barriers


@pytest.mark.parametrize("seed", range(40))
def test_ranges_are_kept_together_without_losing_a_conflict(seed: int) -> None:
    source = random.Random(seed)
    storages = [Storage(f"s{n}", source.randint(1, 6), F32) for n in range(30)]
    where = {storage: Ref(source.randint(0, 1), 4 * source.randint(0, 60)) for storage in storages}
    calls = [call(source.sample(storages, source.randint(0, 2)), source.sample(storages, 1)) for _ in range(60)]
    assert [step.barrier for step in with_barriers(calls, where)] == compared_one_by_one(calls, where)
    assert any(step.barrier for step in with_barriers(calls, where))


def test_parts_of_one_storage_are_written_side_by_side() -> None:
    whole, other = Storage("whole", 8, F32), Storage("other", 8, F32)
    where = {whole: Ref(0), other: Ref(0, 32)}
    assert [step.barrier for step in with_barriers([call([other], [whole])] * 3, where)] == [False, False, False]


def test_what_a_call_updates_must_be_complete_before() -> None:
    """A scatter writes to a copy that other threads may still be making."""
    data, copy, updates = (Storage(name, 8, F32) for name in ("data", "copy", "updates"))
    where = {data: Ref(0), copy: Ref(0, 32), updates: Ref(0, 64)}
    kernel: Any = SimpleNamespace(name="k")
    scatter = Call(0, kernel, {"updates": (updates, 0), "table": (copy, 0)}, (), ("table",))
    steps = with_barriers([call([data], [copy]), scatter, scatter, call([copy], [data])], where)
    assert [step.barrier for step in steps] == [True, True, True, False]
