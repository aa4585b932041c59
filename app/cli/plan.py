"""`edgewise plan` beyond the plan itself: two plans side by side, and one with other choices."""

from __future__ import annotations

from pathlib import Path

import orjson
from rich.table import Table

from app.cli.console import ArgumentError, out, print_json
from scheduler.build import current_build
from scheduler.local import local_fingerprint
from scheduler.plan import Plan
from scheduler.planning.compare import PlanDiff, WhatIf, diff, what_if
from scheduler.store import Here, Store


def show_diff(before: str, after: str, db: str | None, *, json: bool) -> None:
    """Print what differs between two plans, each a file of `plan --json` or the id of a stored one."""
    found = diff(_find(before, db), _find(after, db))
    if json:
        print_json(orjson.dumps({**orjson.loads(orjson.dumps(found)), "ratio": found.ratio}))
        return
    _print_diff(found)


def _find(named: str, db: str | None) -> Plan:
    path = Path(named)
    if path.is_file():
        return Plan.from_json(path.read_bytes())
    with Store(db) as store:
        return store.plans.get(named, Here(local_fingerprint(), current_build())).plan


def _print_diff(found: PlanDiff) -> None:
    if found.changes:
        table = Table("what", "before", "after", title="plan", title_justify="left")
        for change in found.changes:
            table.add_row(change.what, change.before, change.after)
        out.print(table)
    if found.steps:
        table = Table("step", "op", "before", "after", "ms before", "ms after", title="steps", title_justify="left")
        for step in found.steps:
            table.add_row(step.node, step.op, step.before, step.after, _ms(step.before_ns), _ms(step.after_ns))
        out.print(table)
    out.print(f"{_ms(found.before_ns)} ms before, {_ms(found.after_ns)} ms after, {found.ratio:.3f} times")


def show_what_if(plan: Plan, texts: list[str], *, json: bool) -> None:
    """Print what a plan would cost with other strategies, given as node=strategy, or *=strategy for all others.

    Raises: ArgumentError, NotFoundError.
    """
    nodes: dict[str, str] = {}
    for text in texts:
        node, equals, strategy = _split(text, plan)
        if not equals or not strategy:
            raise ArgumentError(f"--with: {text!r} is not understood, need node=strategy or *=strategy")
        nodes[node] = strategy
    everywhere = nodes.pop("*", "")
    found = what_if(plan, nodes, everywhere)
    if json:
        print_json(orjson.dumps({**orjson.loads(orjson.dumps(found)), "ratio": found.ratio}))
        return
    _print_what_if(found)


def _split(text: str, plan: Plan) -> tuple[str, str, str]:
    """Node names may hold "=", and so do strategies: the longest name that the plan has is meant."""
    fitting = [step.node for step in plan.steps if text.startswith(f"{step.node}=")]
    if fitting:
        node = max(fitting, key=len)
        return node, "=", text[len(node) + 1 :]
    return text.partition("=")


def _print_what_if(found: WhatIf) -> None:
    table = Table("step", "planned", "instead", "ms planned", "ms instead", "known by", title="what if", title_justify="left")
    for step in found.steps:
        known = "measurement" if step.measured else f"prediction, {_ms(step.low_ns)} to {_ms(step.high_ns)}"
        table.add_row(step.node, step.before, step.after, _ms(step.before_ns), _ms(step.after_ns), known)
    out.print(table)
    for node, reason in found.refused:
        out.print(f"{node} stays as it is: {reason}", style="yellow", markup=False)
    out.print(
        f"planned {_ms(found.before_ns)} ms ({found.before_measured} steps measured), "
        f"instead {_ms(found.after_ns)} ms ({found.after_measured} measured), {found.ratio:.3f} times"
    )


def _ms(nanoseconds: float) -> str:
    return f"{nanoseconds / 1e6:.3f}"
