"""Which steps of a plan are computed less exactly than in fp32, so that the error of the model's output keeps a limit.

Each such step rounds factors, and what rounding adds to the output is taken to be independent of what other steps add: squares of
errors are added up. So a limit allows for a number of steps, and those that save the most time are taken.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from kernels.precision import ROUNDING
from scheduler.plan import Objective, PlanStep
from scheduler.planning.steps import Evidence, choose_step
from scheduler.planning.subject import Subject


def rounding_error(steps: Sequence[PlanStep], evidence: Evidence) -> float:
    """Return the error that steps of less than fp32 add to the output, relative to its largest number."""
    return evidence.rounding * math.sqrt(sum(_square(step) for step in steps))


def keep_within(
    limit: float, steps: Sequence[PlanStep], subject: Subject, threads: int, evidence: Evidence, objective: Objective
) -> tuple[PlanStep, ...]:
    """Return the steps with as many of them in fp32 as it takes for the others to add no more error than a limit."""
    left = (max(limit, 0) / evidence.rounding) ** 2
    kept = list(steps)
    for saved_ns, at in sorted(((_saved_ns(step), at) for at, step in enumerate(steps) if _square(step)), reverse=True):
        left -= _square(steps[at])
        if left < 0:
            why = f"it would save {saved_ns / 1e3:.1f} µs, and steps that save more take the error to its limit"
            kept[at] = _in_fp32(subject, at, threads, evidence, objective, why)
    return tuple(kept)


def _square(step: PlanStep) -> float:
    return ROUNDING.get(step.strategy.precision, 0.0) ** 2


def _saved_ns(step: PlanStep) -> float:
    """Return how much longer the step would take in fp32; where it has no such candidate, as long as there is."""
    whole = [c.expected_ns for c in step.candidates if c.expected_ns is not None and c.strategy.precision == "fp32"]
    return min(whole, default=math.inf) - step.predicted_ns


def _in_fp32(subject: Subject, at: int, threads: int, evidence: Evidence, objective: Objective, why: str) -> PlanStep:
    key = subject.signatures[at].key
    reduced = [option.strategy for option in subject.options(threads)[at] if option.strategy.precision in ROUNDING]
    dropped = {**evidence.dropped, **{(key, strategy): why for strategy in reduced}}
    return choose_step(subject, at, threads, replace(evidence, dropped=dropped), objective)
