"""Two plans side by side, and one plan row by row: what the CLI and the pages show, as data."""

from __future__ import annotations

from dataclasses import dataclass

from scheduler.plan import Candidate, Plan, Step

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


@dataclass(frozen=True, slots=True)
class ExplainRow:
    """One step for people. share_percent: of the plan's predicted time; candidates: the chosen one first, then by time."""

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


@dataclass(frozen=True, slots=True)
class Change:
    """A value that differs between two plans."""

    what: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class StepChange:
    """A step that differs. `before`/`after` are strategies, "" where the step is in one plan only."""

    node: str
    op: str
    before: str
    after: str
    before_ns: float
    after_ns: float


@dataclass(frozen=True, slots=True)
class PlanDiff:
    """What differs from one plan to another. steps: those that run by another algorithm, or in one plan only.

    Steps are matched by node name. A thread count that differs everywhere is one change of the header, not one of each step.
    """

    changes: tuple[Change, ...]
    steps: tuple[StepChange, ...]
    before_ns: float
    after_ns: float

    @property
    def ratio(self) -> float:
        """Predicted time after ÷ before; above 1 is slower, 0 where nothing was predicted before."""
        return self.after_ns / self.before_ns if self.before_ns else 0.0


def explain(plan: Plan) -> tuple[ExplainRow, ...]:
    """Every step of a plan with what it beat and why."""
    total_ns = sum(step.predicted_ns for step in plan.steps) or 1.0
    return tuple(_row(index, step, total_ns) for index, step in enumerate(plan.steps))


def diff(before: Plan, after: Plan) -> PlanDiff:
    """What differs between two plans, of one model or of two."""
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


def _row(index: int, step: Step, total_ns: float) -> ExplainRow:
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


def _differs(before: Step | None, after: Step | None) -> bool:
    if before is None or after is None:
        return True
    one, two = before.strategy, after.strategy
    return (one.backend, one.algorithm, one.precision, one.params) != (two.backend, two.algorithm, two.precision, two.params)


def _step_change(node: str, op: str, before: Step | None, after: Step | None) -> StepChange:
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
