"""The Pareto front of a model's plans by latency and error estimate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from kernels.record import record
from scheduler.planning.ranking import Timing, beats, by_device, ranked
from scheduler.store.queries import PlanCard


@record
class Tradeoff(PlanCard):
    """A plan compared with others.

    efficient: it is on the Pareto front: not stale, and no other plan of its device that is not stale is better in latency or
    error estimate and at least as good in the other. Latencies compare by `scheduler.planning.ranking`: a measured one is better
    than any that is only predicted.
    """

    efficient: bool


def tradeoffs(plans: Sequence[PlanCard], here: str) -> list[Tradeoff]:
    """Compare every plan with the others of its device.

    Args:    here: fingerprint of the device whose plans come first.
    Returns: the plans of one device after another; of each the most exact first, then the fastest.
    """
    usable = [plan for plan in plans if not plan.stale]
    found = [
        Tradeoff(**asdict(plan), efficient=not plan.stale and not any(_beats(other, plan) for other in usable)) for plan in plans
    ]
    groups = by_device(found, lambda item: item.device, here)
    return [item for group in groups for item in sorted(ranked(group, timing), key=lambda item: item.error_estimate)]


def timing(plan: PlanCard) -> Timing:
    """Return what is known of a plan's latency."""
    return Timing(plan.latency_ns, plan.measured)


def _beats(one: PlanCard, other: PlanCard) -> bool:
    if one.device != other.device:
        return False
    faster, slower = beats(timing(one), timing(other)), beats(timing(other), timing(one))
    better = faster or one.error_estimate < other.error_estimate
    return better and not slower and one.error_estimate <= other.error_estimate
