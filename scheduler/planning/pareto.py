"""The Pareto front of a model's plans by latency and error estimate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from kernels.record import record
from scheduler.store.queries import PlanCard


@record
class Tradeoff(PlanCard):
    """A plan compared with others.

    efficient: it is on the Pareto front: not stale, and no other plan of its device that is not stale is better in latency or
    error estimate and at least as good in the other.
    """

    efficient: bool


def tradeoffs(plans: Sequence[PlanCard]) -> list[Tradeoff]:
    """Compare every plan with the others. Returns the most exact first, then the fastest."""
    usable = [plan for plan in plans if not plan.stale]
    found = [
        Tradeoff(**asdict(plan), efficient=not plan.stale and not any(_beats(other, plan) for other in usable)) for plan in plans
    ]
    return sorted(found, key=lambda item: (item.error_estimate, item.latency_ns))


def _beats(one: PlanCard, other: PlanCard) -> bool:
    if one.device != other.device:
        return False
    mine, its = (one.latency_ns, one.error_estimate), (other.latency_ns, other.error_estimate)
    return mine != its and mine[0] <= its[0] and mine[1] <= its[1]
