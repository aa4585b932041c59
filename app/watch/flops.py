"""FLOPs of an inference, and its roofline bound on this device: counted once for each model and set of shapes."""

from __future__ import annotations

import weakref
from collections.abc import Mapping

from kernels.errors import EdgewiseError
from kernels.record import record
from profiler.counting.counts import profile
from profiler.device.profile import DeviceProfile
from scheduler.session import Session

MAX_SHAPES = 64  # of one session

Shapes = tuple[tuple[str, tuple[int, ...]], ...]


@record
class RunCost:
    """Cost of one run. flops: of the model as imported. roof_ns: the least time on this device; 0 if it was never measured."""

    flops: int
    roof_ns: float


NOTHING = RunCost(0, 0.0)


class RunCosts:
    """Costs by session and shapes; they are dropped with the session. Event loop only."""

    def __init__(self) -> None:
        self._counts: weakref.WeakKeyDictionary[Session, dict[Shapes, RunCost]] = weakref.WeakKeyDictionary()

    def find(self, session: Session, shapes: Shapes) -> RunCost | None:
        """Return the cost; NOTHING while it is being counted, or if it cannot be; None if the caller has to count it."""
        known = self._counts.setdefault(session, {})
        if shapes not in known:
            if len(known) >= MAX_SHAPES:
                return NOTHING
            known[shapes] = NOTHING
            return None
        return known[shapes]

    def keep(self, session: Session, shapes: Shapes, work: RunCost) -> None:
        """Store a cost."""
        self._counts.setdefault(session, {})[shapes] = work


def count(session: Session, shapes: Mapping[str, tuple[int, ...]], device: DeviceProfile | None) -> RunCost:
    """Count a model's FLOPs for these shapes, and the least time that its arithmetic and memory traffic allow on the device.

    Returns NOTHING for a model with uncounted operators, or that does not accept the shapes.
    """
    try:
        counted = profile(session.model, shapes)
        if counted.uncounted:
            return NOTHING  # a rate of only part of the work would be wrong
        if device is None:
            return RunCost(counted.flops, 0.0)
        rate = device.peak_ops_per_s("fp32", session.threads)
        return RunCost(
            counted.flops, max(1e9 * counted.flops / rate, device.least_transfer_ns(counted.param_bytes, session.threads))
        )
    except EdgewiseError:
        return NOTHING
