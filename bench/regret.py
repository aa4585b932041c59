"""`python -m bench.regret` measures how much slower the untuned plan, the tuned plan and fixed strategies are than the best plan.

The best plan is found by measuring every candidate of every node in place with many repeats. It takes the fastest candidate of
each node. The tuned plan is made from an empty database within the budget. All plans of a model and thread count then run in
turns in one process, and the fastest run of each is divided by that of the best plan. The fastest run is compared because other
work on the machine can only make a run longer.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

import edgewise
from bench.exports import EXPORTS
from bench.models import exports_folder
from graph.formats.registry import read
from graph.ir import Model
from graph.run.executor import Executor
from profiler.device.profile import DeviceProfile
from scheduler.cost.fitting import CostModel
from scheduler.exclusive import measuring
from scheduler.local import local_device
from scheduler.plan import Constraints, Plan
from scheduler.planning.planner import compose
from scheduler.planning.steps import Evidence
from scheduler.planning.subject import Option, Subject
from scheduler.store import Store
from scheduler.strategy import Strategy
from scheduler.tuning.contests import Contest
from scheduler.tuning.in_place import InPlaceBuilder, executor_of, race
from scheduler.tuning.search import Assignment
from scheduler.tuning.tuner import make_contests

FIXED: Mapping[str, Callable[[Option], bool]] = {
    "direct": lambda option: option.strategy.algorithm != "winograd",
    "f2": lambda option: dict(option.strategy.params).get("unit") == "2",
    "f4": lambda option: dict(option.strategy.params).get("unit") == "4",
    "f6": lambda option: dict(option.strategy.params).get("unit") == "6",
}
PLANS = ("untuned", "tuned", *FIXED, "numpy")
BEST = "best"


@dataclass(frozen=True)
class Entry:
    """A plan that is ready to run."""

    name: str
    executor: Executor


def strategies_of(plan: Plan) -> dict[str, Strategy]:
    """Return the strategy by which the plan runs each node, by the node's name."""
    return {step.node: step.strategy for step in plan.steps if step.node in plan.choices}


def fixed(subject: Subject, threads: int, wanted: Callable[[Option], bool]) -> Assignment:
    """Choose each node's first candidate that `wanted` accepts, or its first candidate if it accepts none."""
    chosen = {}
    for node, options in zip(subject.graph.nodes, subject.options(threads), strict=True):
        able = [option for option in options if option.load is not None]
        if able:
            native = [option for option in able if option.strategy.backend == "native"] or able
            chosen[node.name] = next((option for option in native if wanted(option)), native[0]).strategy
    return chosen


def exhaustive(subject: Subject, threads: int, device: DeviceProfile, repeats: int) -> Assignment:
    """Measure every candidate in place, `repeats` times each, and return the fastest of every node."""
    contests = make_contests(subject, threads, Evidence({}, CostModel(device)))
    width = max((len(contest.arms) for contest in contests), default=0)
    assignments: list[dict[str, Strategy]] = [
        {node: c.arms[number % len(c.arms)].strategy for c in contests for node in c.nodes} for number in range(width)
    ]
    bench = InPlaceBuilder(subject, threads)
    for assignment in assignments:
        bench.screen(assignment)  # compiles; candidates whose code spills are timed all the same
    while assignments:
        assignments = assignments[_timed(bench, contests, assignments, repeats) :]
    return {node: contest.best.strategy for contest in contests for node in contest.nodes}


def _timed(bench: InPlaceBuilder, contests: list[Contest], assignments: list[dict[str, Strategy]], repeats: int) -> int:
    """Run, in turns, as many of these variants as fit into memory. Return their number."""
    variants = bench.variants(assignments)
    for turn in range(repeats + 1):
        for number in range(len(variants)) if turn % 2 == 0 else reversed(range(len(variants))):
            taken = variants[number].run()
            for contest in contests if turn else ():
                for node in contest.nodes:
                    arm = next(a for a in contest.arms if a.strategy == assignments[number][node])
                    arm.add([taken[node]] if node in taken else [])
    return len(variants)


def entries(
    model: Model, threads: int, names: list[str], budget_s: float, repeats: int, device: DeviceProfile, db: str
) -> list[Entry]:
    """Make every plan in `names`, then the best plan, which is the last entry."""
    subject, loose = Subject.of(model), Subject.of(model, max_error=1.0)
    nothing = Evidence({}, CostModel(device))
    made: list[Entry] = []
    for name in names:
        if name == "untuned":
            plan = compose(subject, device, "latency", Constraints(), nothing, {threads: {}})
            made.append(Entry(name, executor_of(subject, threads, strategies_of(plan))))
        elif name == "tuned":
            plan = edgewise.tune(model, budget_s, threads=threads, db=db)
            made.append(Entry(name, executor_of(subject, plan.threads, strategies_of(plan))))
        elif name == "numpy":
            plain = Subject.of(model, backend="numpy")
            plan = compose(plain, device, "latency", Constraints(backend="numpy"), nothing, {threads: {}})
            made.append(Entry(name, executor_of(plain, threads, strategies_of(plan))))
        else:
            made.append(Entry(name, executor_of(loose, threads, fixed(loose, threads, FIXED[name]))))
    with measuring():
        made.append(Entry(BEST, executor_of(subject, threads, exhaustive(subject, threads, device, repeats))))
    return made


def main(
    models: Annotated[str, typer.Option(help="Comma-separated exports.")] = ",".join(EXPORTS),
    threads: Annotated[str, typer.Option(help="Comma-separated thread counts.")] = "1,2",
    plans: Annotated[str, typer.Option(help="Comma-separated plans to compare with the best one.")] = ",".join(PLANS),
    budget: Annotated[float, typer.Option(help="Seconds that tuning may take.")] = 60.0,
    repeats: Annotated[int, typer.Option(help="Runs of every candidate for the best plan.")] = 30,
    seconds: Annotated[float, typer.Option(help="Seconds for which the plans run in turns.")] = 20.0,
    probe: Annotated[float, typer.Option(help="Seconds to measure the device for.")] = 8.0,
) -> None:
    """Print the time of every plan divided by that of the best plan."""
    console, names = Console(width=140), [name for name in plans.split(",") if name]
    if unknown := [name for name in names if name not in PLANS]:
        raise typer.BadParameter(f"no plan {unknown[0]!r}, there are {', '.join(PLANS)}")
    table = Table(title="time ÷ the best plan's time, fastest of the runs in turns")
    for column in ("model", "threads", *names, "best ms"):
        table.add_column(column, justify="left" if column == "model" else "right")
    ratios: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        with Store(f"sqlite:///{Path(folder) / 'device.db'}") as store:
            device = local_device(store, probe)
        for name in models.split(","):
            for count in map(int, threads.split(",")):
                db = f"sqlite:///{Path(folder) / f'{name}-{count}.db'}"
                with Store(db) as empty:
                    empty.devices.save(device)
                began = time.monotonic()
                model = read(exports_folder() / f"{name}.onnx")
                running = entries(model, count, names, budget, repeats, device, db)
                subject = Subject.of(model)
                feeds = subject.feeds()
                with measuring():
                    taken = race([entry.executor for entry in running], feeds, seconds)
                fastest = {entry.name: min(runs) for entry, runs in zip(running, taken, strict=True)}
                found = {plan: fastest[plan] / fastest[BEST] for plan in names}
                for plan, ratio in found.items():
                    ratios.setdefault(plan, []).append(ratio)
                table.add_row(name, str(count), *(f"{found[p]:.3f}" for p in names), f"{fastest[BEST] / 1e6:.3f}")
                console.print(f"[dim]{name}, {count} threads: done in {time.monotonic() - began:.0f} s[/dim]")
    table.add_row("geometric mean", "", *(f"{statistics.geometric_mean(ratios[p]):.3f}" for p in names), "")
    console.print(table)


if __name__ == "__main__":
    typer.run(main)
