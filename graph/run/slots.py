"""The arrays of a run. Every value has a numbered slot, which prepared calls read and write."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from graph.placement import ALIGNMENT_BYTES
from kernels.spec import Array


class Slots:
    """Slots by the names of values. Slot 0 belongs to absent inputs and outputs, the empty name, and stays None.

    arrays: by slot; None where there is none yet. Calls keep this list and index it.
    """

    def __init__(self) -> None:
        self.arrays: list[Any] = [None]
        self._of: dict[str, int] = {"": 0}
        self._fixed = {0}
        self._idle: list[Any] = []

    def __contains__(self, name: str) -> bool:
        return name in self._of

    def of(self, name: str) -> int:
        """The slot of a value, a new one where it has none."""
        if name not in self._of:
            self._of[name] = len(self.arrays)
            self.arrays.append(None)
        return self._of[name]

    def fix(self, name: str, array: Array) -> None:
        """Put an array into a value's slot that stays there in every run."""
        slot = self.of(name)
        self.arrays[slot] = array
        self._fixed.add(slot)

    def are_fixed(self, slots: Iterable[int]) -> bool:
        """Whether the arrays of all these slots stay the same in every run."""
        return self._fixed.issuperset(slots)

    def complete(self) -> None:
        """Note that all fixed arrays are in place: `clear` returns to this state."""
        self._idle = list(self.arrays)

    def clear(self) -> None:
        """Let go of the arrays of a run."""
        self.arrays[:] = self._idle


def aligned_empty(nbytes: int) -> Array:
    """Bytes of memory that begin at a multiple of ALIGNMENT_BYTES."""
    raw = np.empty(nbytes + ALIGNMENT_BYTES, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT_BYTES
    return raw[start : start + nbytes]
