"""Which plans of a model are worth having: by what an inference takes, and by how far its result may be off."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from scheduler.store.queries import PlanCard


@dataclass(frozen=True, slots=True)
class Tradeoff(PlanCard):
    """A plan beside others. efficient: it is not stale, and of the plans of its device that are not either, none is better by one
    of latency and error estimate and as good by the other."""

    efficient: bool


def tradeoffs(plans: Sequence[PlanCard]) -> list[Tradeoff]:
    """Every plan beside the others, the most exact first, then the fastest."""
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
