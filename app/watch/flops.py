"""How much arithmetic an inference is, and the least time it could take here: counted once for each model and set of shapes."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass

from kernels.errors import EdgewiseError
from profiler.counting.counts import profile
from profiler.device.profile import DeviceProfile
from scheduler.session import Session

MAX_SHAPES = 64  # of one session

Shapes = tuple[tuple[str, tuple[int, ...]], ...]


@dataclass(frozen=True, slots=True)
class RunCost:
    """Of one run. flops: of the model as imported. roof_ns: 0 where this device was never measured."""

    flops: int
    roof_ns: float


NOTHING = RunCost(0, 0.0)


class RunCosts:
    """Counts by session and shapes; they go with the session. Event loop only, but for `count`."""

    def __init__(self) -> None:
        self._counts: weakref.WeakKeyDictionary[Session, dict[Shapes, RunCost]] = weakref.WeakKeyDictionary()

    def find(self, session: Session, shapes: Shapes) -> RunCost | None:
        """The count; None where it is to be made. NOTHING where it is being made, or cannot be."""
        known = self._counts.setdefault(session, {})
        if shapes not in known:
            if len(known) >= MAX_SHAPES:
                return NOTHING
            known[shapes] = NOTHING
            return None
        return known[shapes]

    def keep(self, session: Session, shapes: Shapes, work: RunCost) -> None:
        """Remember a count."""
        self._counts.setdefault(session, {})[shapes] = work


def count(session: Session, shapes: Mapping[str, tuple[int, ...]], device: DeviceProfile | None) -> RunCost:
    """Count a model at these shapes: its FLOPs, and the roof that its arithmetic and its least traffic set on the device."""
    try:
        counted = profile(session.model, shapes)
        if counted.uncounted:
            return NOTHING  # a rate of part of the work would be none
        if device is None:
            return RunCost(counted.flops, 0.0)
        rate = device.peak_ops_per_s("fp32", session.threads)
        return RunCost(
            counted.flops, max(1e9 * counted.flops / rate, device.least_transfer_ns(counted.param_bytes, session.threads))
        )
    except EdgewiseError:
        return NOTHING
