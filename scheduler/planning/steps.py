"""The step of one node: its candidates with their expected times, the chosen one, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field, replace
from typing import Any

from graph.run.executor import VIEW
from kernels.record import record
from scheduler.cost.bounds import UNCERTAINTY
from scheduler.cost.fitting import CostModel, Prediction
from scheduler.plan import EXECUTOR, TIE, Candidate, Objective, PlanStep
from scheduler.planning.ranking import Timing, ranked
from scheduler.planning.subject import Option, Subject
from scheduler.store import Measurement
from scheduler.strategy import Strategy
from scheduler.workload import Workload

DONE_AROUND = "done by the steps around it: another name for memory, or written in place by what it joins"
RANK = 0.02  # without a fit, each candidate of a rule is assumed to be that much slower than the one before it

Known = Mapping[str, Mapping[Strategy, Measurement]]  # signature key -> strategy -> its measurement


@record
class Evidence:
    """The evidence of plans: fresh measurements, and a cost model for all else.

    dropped: candidates left out, and why. rounding: how much more than `ROUNDING` says a step of less than fp32 adds to the error
    of the model's output: 1 where nothing is known of it.
    """

    known: Known
    model: CostModel
    dropped: Mapping[tuple[str, Strategy], str] = field(default_factory=dict)
    rounding: float = 1.0


@record
class _Found:
    """A candidate that can run: its workload and predicted time."""

    load: Workload
    prediction: Prediction


def choose_step(
    subject: Subject, index: int, threads: int, evidence: Evidence, objective: Objective, given: Strategy | None = None
) -> PlanStep:
    """Choose the step of one node.

    Args: index: of the node in the subject's graph. given: a strategy to take without comparing; that of the backend EXECUTOR
          marks a node that the executor runs by itself.
    """
    node, cost, text = subject.graph.nodes[index], subject.costs[index], subject.signatures[index]
    shared: dict[str, Any] = {
        "node": node.name,
        "op": node.op,
        "signature": text.text,
        "signature_key": text.key,
        "kernel_source": subject.build.kernel_source(node.op),
        "macs": cost.macs,
        "other_flops": cost.other_flops,
        "moved_bytes": cost.moved_bytes,
    }
    fixed = subject.fixed(node)
    if given is not None and given.backend == EXECUTOR:
        return _fixed_step(shared, given.algorithm, fixed[1] if fixed else DONE_AROUND)
    if fixed is not None and given is None:
        return _fixed_step(shared, *fixed)
    options = [
        replace(option, load=None, refused=why) if (why := evidence.dropped.get((text.key, option.strategy))) else option
        for option in (subject.copies(index, threads) if fixed else subject.options(threads)[index])
    ]
    candidates, found = _candidates(options, evidence.known.get(text.key, {}), evidence.model)
    able = _able(subject, candidates)
    chosen = next((c for c in candidates if c.strategy == given and c.strategy in found), None) or _best(able, found, objective)
    taken = found[chosen.strategy]
    return PlanStep(
        **shared,
        strategy=chosen.strategy,
        executed_macs=cost.macs if taken.load.work.macs is None else taken.load.work.macs,
        level=taken.prediction.level,
        predicted_ns=chosen.expected_ns or 0,
        low_ns=chosen.low_ns or 0,
        high_ns=chosen.high_ns or 0,
        measured=chosen.measured_ns is not None,
        bound_by=taken.prediction.bound_by,
        candidates=tuple(sorted((_judged(c, chosen) for c in candidates), key=_listing)),
        why=_reason(chosen, [c for c in able if c is not chosen], taken) + _not_native(chosen, candidates),
    )


def predictions(options: Sequence[Option], model: CostModel) -> dict[Strategy, Prediction]:
    """Predict the time of every option that can run.

    Where some native candidates of a precision have no fit, the order of their rule ranks them: the first is taken to be the
    fastest of them.
    """
    able = [(option.strategy, option.load) for option in options if option.load is not None]
    found = dict(zip([strategy for strategy, _ in able], model.predict([load for _, load in able]), strict=True))
    native: dict[str, list[Strategy]] = {}
    for strategy, _ in able:
        if strategy.backend == "native":
            native.setdefault(strategy.precision, []).append(strategy)
    for alike in native.values():
        if all(found[strategy].fitted for strategy in alike):
            continue
        first_ns = found[alike[0]].ns
        for rank, strategy in enumerate(alike):
            ns = max(found[strategy].ns, first_ns * (1 + RANK * rank))
            found[strategy] = replace(found[strategy], ns=ns, low_ns=ns / UNCERTAINTY, high_ns=ns * UNCERTAINTY, fitted=False)
    return found


def _fixed_step(shared: Mapping[str, Any], algorithm: str, why: str) -> PlanStep:
    """Make the step of a node that the executor runs by itself."""
    strategy = Strategy(EXECUTOR, algorithm)
    return PlanStep(
        **shared,
        strategy=strategy,
        executed_macs=0 if algorithm == VIEW else shared["macs"],
        level="",
        predicted_ns=0,
        low_ns=0,
        high_ns=0,
        measured=False,
        bound_by="unknown",
        candidates=(Candidate(strategy=strategy, predicted_ns=0, low_ns=0, high_ns=0, verdict="chosen"),),
        why=why,
    )


def _candidates(
    options: Sequence[Option], known: Mapping[Strategy, Measurement], model: CostModel
) -> tuple[list[Candidate], dict[Strategy, _Found]]:
    candidates: list[Candidate] = []
    found: dict[Strategy, _Found] = {}
    predicted = predictions(options, model)
    for option in options:
        if option.load is None:
            candidates.append(Candidate(strategy=option.strategy, verdict="refused", reason=option.refused))
            continue
        prediction, measured = predicted[option.strategy], known.get(option.strategy)
        found[option.strategy] = _Found(option.load, prediction)
        low, high = (measured.min_ns, measured.p90_ns) if measured else (prediction.low_ns, prediction.high_ns)
        candidates.append(
            Candidate(
                strategy=option.strategy,
                predicted_ns=prediction.ns,
                low_ns=low,
                high_ns=high,
                measured_ns=measured.min_ns if measured else None,
                workspace_bytes=option.load.work.buffer_bytes,
                packed_bytes=option.load.work.weight_bytes if option.strategy.backend == "native" else 0,
                verdict="slower",
            )
        )
    return candidates, found


def _able(subject: Subject, candidates: Sequence[Candidate]) -> list[Candidate]:
    """Return the candidates to choose from: numpy would cut a native segment in two, so a prediction is not enough for it."""
    able = [c for c in candidates if c.verdict != "refused"]
    native = [c for c in able if c.strategy.backend == "native"]
    if subject.backend == "native":
        return native or able
    return native + [c for c in able if c.strategy.backend != "native" and c.measured_ns is not None] if native else able


def _best(able: Sequence[Candidate], found: Mapping[Strategy, _Found], objective: Objective) -> Candidate:
    """Return the fastest candidate; for the objective "memory" the fastest of those that need least memory.

    It is the first by the rule of `scheduler.planning.ranking`; only fitted predictions have an upper bound.
    """
    if objective == "memory":
        least = min(c.workspace_bytes + c.packed_bytes for c in able)
        able = [c for c in able if c.workspace_bytes + c.packed_bytes == least]
    by_name = sorted(able, key=lambda c: str(c.strategy))
    return ranked(by_name, lambda c: _timing(c, fitted=found[c.strategy].prediction.fitted))[0]


def _timing(candidate: Candidate, *, fitted: bool) -> Timing:
    measured = candidate.measured_ns is not None
    return Timing(candidate.expected_ns or 0, measured, candidate.high_ns if fitted and not measured else None)


def _judged(candidate: Candidate, chosen: Candidate) -> Candidate:
    if candidate.verdict == "refused":
        return candidate
    if candidate is chosen:
        return candidate.model_copy(update={"verdict": "chosen"})
    if candidate.measured_ns is None and chosen.measured_ns is not None:
        predicted, most = (candidate.predicted_ns or 0) / 1e3, (candidate.high_ns or 0) / 1e3
        reason = f"not measured here: predicted {predicted:.1f} µs, {most:.1f} at most; the chosen one was measured"
        return candidate.model_copy(update={"verdict": "unmeasured", "reason": reason})
    ratio = (candidate.expected_ns or 0) / max(chosen.expected_ns or 0, 1e-9)
    if candidate.measured_ns is not None and chosen.measured_ns is None:
        reason = f"measured, {ratio:.2f} times what the chosen one is predicted to take"
        return candidate.model_copy(update={"verdict": "slower", "reason": reason})
    tie = 1 / TIE <= ratio <= TIE
    return candidate.model_copy(update={"verdict": "tie" if tie else "slower", "reason": f"{ratio:.2f} times the chosen one"})


def _listing(candidate: Candidate) -> tuple[bool, bool, float, str]:
    expected = candidate.expected_ns
    return candidate.verdict != "chosen", expected is None, expected or 0.0, str(candidate.strategy)


def _reason(chosen: Candidate, others: Sequence[Candidate], found: _Found) -> str:
    source = "measured" if chosen.measured_ns is not None else "predicted" if found.prediction.fitted else "estimated"
    text = f"{source} {(chosen.expected_ns or 0) / 1e3:.1f} µs, bound by {found.prediction.bound_by}"
    if found.load.converted_bytes:
        text += f", {found.load.converted_bytes} bytes of it moved to convert its input"
    if others:
        next_best = ranked(others, lambda c: _timing(c, fitted=False))[0]
        how = "is predicted to take" if next_best.measured_ns is None else "took"
        return f"{text}; {next_best.strategy.choice} {how} {(next_best.expected_ns or 0) / 1e3:.1f} µs"
    return f"{text}; the only kernel that takes it"


def _not_native(chosen: Candidate, candidates: Sequence[Candidate]) -> str:
    """Return why a step that runs in numpy was refused natively; "" where it was not."""
    refused = (c.reason for c in candidates if c.strategy.backend == "native" and c.verdict == "refused")
    reason = next(refused, "") if chosen.strategy.backend == "numpy" else ""
    return f"; not native: {reason}" if reason else ""
