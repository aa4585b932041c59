"""Which plans of a model are worth having: by what an inference takes, and by how far its result may be off."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from scheduler.store import StoredPlan

USABLE = frozenset({"current", "drifted", "predicted"})


@dataclass(frozen=True, slots=True)
class Tradeoff:
    """One plan. latency_ns: measured of the whole plan where it was, else predicted.

    efficient: of the plans of its device that are not stale, none is better by one of the two and as good by the other.
    """

    stored: StoredPlan
    latency_ns: float
    measured: bool
    efficient: bool


def tradeoffs(plans: Sequence[StoredPlan]) -> list[Tradeoff]:
    """Every plan beside the others, the most exact first, then the fastest."""
    usable = [stored for stored in plans if stored.plan.state.status in USABLE]
    found = [
        Tradeoff(
            stored,
            _latency_ns(stored),
            stored.plan.measured_ns is not None,
            stored in usable and not any(_beats(other, stored) for other in usable),
        )
        for stored in plans
    ]
    return sorted(found, key=lambda item: (item.stored.plan.error_estimate, item.latency_ns))


def _latency_ns(stored: StoredPlan) -> float:
    return stored.plan.predicted_ns if stored.plan.measured_ns is None else stored.plan.measured_ns


def _beats(one: StoredPlan, other: StoredPlan) -> bool:
    if one.plan.device_fingerprint != other.plan.device_fingerprint:
        return False
    mine, its = (_latency_ns(one), one.plan.error_estimate), (_latency_ns(other), other.plan.error_estimate)
    return mine != its and mine[0] <= its[0] and mine[1] <= its[1]
