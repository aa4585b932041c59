"""Plans compared: two side by side, one step by step, and one with other choices. The CLI and the pages show these."""

from __future__ import annotations

from collections.abc import Mapping

from kernels.record import record
from scheduler.errors import NotFoundError
from scheduler.plan import EXECUTOR, Candidate, Plan, PlanStep

_HEADER = (
    "model_digest",
    "device_fingerprint",
    "engine_build",
    "objective",
    "constraints",
    "inputs",
    "threads",
    "replicas",
    "precision",
    "memory_bytes",
)


@record
class ExplainRow:
    """One step of a plan, to show. share_percent: of the plan's expected time. candidates: the chosen one first, then by time."""

    index: int
    node: str
    op: str
    strategy: str
    expected_ns: float
    low_ns: float
    high_ns: float
    measured: bool
    share_percent: float
    bound_by: str
    candidates: tuple[Candidate, ...]
    why: str


@record
class Change:
    """A value of the header that differs between two plans."""

    what: str
    before: str
    after: str


@record
class StepChange:
    """A step that differs. before, after: its strategies, "" in the plan that lacks the step."""

    node: str
    op: str
    before: str
    after: str
    before_ns: float
    after_ns: float


@record
class PlanDiff:
    """The differences between two plans. steps: those that run by another algorithm, or are in one plan only.

    Steps are matched by node name. A thread count that differs is one change of the header, not one of every step.
    """

    changes: tuple[Change, ...]
    steps: tuple[StepChange, ...]
    before_ns: float
    after_ns: float

    @property
    def ratio(self) -> float:
        """Expected time after ÷ before: above 1 is slower; 0 where the first plan expects no time."""
        return self.after_ns / self.before_ns if self.before_ns else 0.0


@record
class ForcedStep:
    """A step with another strategy. measured: whether the time after was measured; else it is predicted."""

    node: str
    op: str
    before: str
    after: str
    before_ns: float
    after_ns: float
    low_ns: float
    high_ns: float
    measured: bool


@record
class WhatIf:
    """A plan and the same plan with other strategies; layouts, fusions and threads stay as they are.

    steps: those with another strategy. refused: nodes that cannot run by it, with the reason. before_measured, after_measured:
    how many of all steps have a measured time.
    """

    steps: tuple[ForcedStep, ...]
    refused: tuple[tuple[str, str], ...]
    before_ns: float
    after_ns: float
    before_measured: int
    after_measured: int

    @property
    def ratio(self) -> float:
        """Expected time after ÷ before; 0 where the plan expects no time."""
        return self.after_ns / self.before_ns if self.before_ns else 0.0


def what_if(plan: Plan, nodes: Mapping[str, str], everywhere: str = "") -> WhatIf:
    """Estimate what a plan would take with other strategies, from the times of its candidates.

    Args:    nodes: node name -> the strategy to run it by, or the leading parts of one ("numpy", "native/winograd"), which stand
             for the fastest candidate that begins so. everywhere: a strategy, or leading parts, for all other nodes; "" = as
             planned.
    Raises:  NotFoundError for a node that is not in the plan, or that has no such candidate.
    """
    known = {step.node for step in plan.steps}
    for node in nodes:
        if node not in known:
            raise NotFoundError(f"what-if: the plan has no step {node[:128]!r}")
    forced: list[ForcedStep] = []
    refused: list[tuple[str, str]] = []
    after_measured = 0
    for step in plan.steps:
        wanted = nodes.get(step.node, everywhere)
        found = _forced(step, wanted) if wanted and step.strategy.backend != EXECUTOR else None
        if found is None and step.node in nodes:
            others = ", ".join(str(candidate.strategy) for candidate in step.candidates)
            raise NotFoundError(f"what-if: {step.node!r} has no candidate {wanted[:200]!r}, need one of {others[:1000]}")
        if found is not None and found.verdict == "refused":
            refused.append((step.node, found.reason))
            found = None
        after_measured += step.measured if found is None else found.measured_ns is not None
        if found is not None and found.strategy != step.strategy:
            forced.append(_forced_step(step, found))
    change_ns = sum(item.after_ns - item.before_ns for item in forced)
    return WhatIf(
        steps=tuple(forced),
        refused=tuple(refused),
        before_ns=plan.predicted_ns,
        after_ns=plan.predicted_ns + change_ns,
        before_measured=sum(step.measured for step in plan.steps),
        after_measured=after_measured,
    )


def _forced(step: PlanStep, wanted: str) -> Candidate | None:
    """Return the fastest candidate that begins as wanted; a refused one only where there is no other."""
    fitting = [c for c in step.candidates if _begins(str(c.strategy), wanted)]
    return min(fitting, key=lambda c: (c.verdict == "refused", c.expected_ns or 0.0, str(c.strategy)), default=None)


def _begins(text: str, wanted: str) -> bool:
    """Say whether a strategy is the wanted one, or continues it with another part."""
    return text == wanted or (text.startswith(wanted) and text[len(wanted)] in "/{")


def _forced_step(step: PlanStep, found: Candidate) -> ForcedStep:
    return ForcedStep(
        node=step.node,
        op=step.op,
        before=str(step.strategy),
        after=str(found.strategy),
        before_ns=step.predicted_ns,
        after_ns=found.expected_ns or 0.0,
        low_ns=found.low_ns or 0.0,
        high_ns=found.high_ns or 0.0,
        measured=found.measured_ns is not None,
    )


def explain(plan: Plan) -> tuple[ExplainRow, ...]:
    """Return every step of a plan with its candidates and the reason of its choice."""
    total_ns = sum(step.predicted_ns for step in plan.steps) or 1.0
    return tuple(_row(index, step, total_ns) for index, step in enumerate(plan.steps))


def diff(before: Plan, after: Plan) -> PlanDiff:
    """Return the differences between two plans, of one model or of two."""
    changes = tuple(
        Change(name, _text(getattr(before, name)), _text(getattr(after, name)))
        for name in _HEADER
        if getattr(before, name) != getattr(after, name)
    )
    old = {step.node: step for step in before.steps}
    new = {step.node: step for step in after.steps}
    nodes = [*old, *(node for node in new if node not in old)]
    ops = {step.node: step.op for step in (*before.steps, *after.steps)}
    steps = tuple(
        _step_change(node, ops[node], old.get(node), new.get(node)) for node in nodes if _differs(old.get(node), new.get(node))
    )
    return PlanDiff(changes, steps, before.predicted_ns, after.predicted_ns)


def _row(index: int, step: PlanStep, total_ns: float) -> ExplainRow:
    last = float("inf")
    candidates = sorted(
        step.candidates, key=lambda c: (c.verdict != "chosen", last if c.expected_ns is None else c.expected_ns, c.strategy)
    )
    return ExplainRow(
        index=index,
        node=step.node,
        op=step.op,
        strategy=str(step.strategy),
        expected_ns=step.predicted_ns,
        low_ns=step.low_ns,
        high_ns=step.high_ns,
        measured=step.measured,
        share_percent=100 * step.predicted_ns / total_ns,
        bound_by=step.bound_by,
        candidates=tuple(candidates),
        why=step.why,
    )


def _differs(before: PlanStep | None, after: PlanStep | None) -> bool:
    if before is None or after is None:
        return True
    one, two = before.strategy, after.strategy
    return (one.backend, one.algorithm, one.precision, one.params) != (two.backend, two.algorithm, two.precision, two.params)


def _step_change(node: str, op: str, before: PlanStep | None, after: PlanStep | None) -> StepChange:
    return StepChange(
        node=node,
        op=op,
        before=str(before.strategy) if before else "",
        after=str(after.strategy) if after else "",
        before_ns=before.predicted_ns if before else 0.0,
        after_ns=after.predicted_ns if after else 0.0,
    )


def _text(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(f"{item.name}[{','.join(map(str, item.shape))}]" for item in value)
    return str(value)
