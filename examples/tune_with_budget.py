"""Measure the candidates of a model for a few seconds and keep the fastest: python examples/tune_with_budget.py [seconds]."""

import sys
from pathlib import Path

import edgewise

MODEL = Path(__file__).parents[1] / "app" / "demo" / "models" / "digits.onnx"


def show(progress: edgewise.TuneProgress) -> None:
    """Print how far the measuring is."""
    share = progress.spent_s / progress.budget_s
    print(f"  {share:4.0%} of the budget, {progress.measured} of {progress.planned} candidates: {progress.now}")


budget_s = float(sys.argv[1]) if len(sys.argv) > 1 else 10.0
plan = edgewise.tune(MODEL, budget_s=budget_s, dims={"batch": 1}, progress=show)
measured = "not measured as a whole" if plan.measured_ns is None else f"{plan.measured_ns / 1e3:.0f} µs"
print(f"plan {plan.id}: {measured}, {plan.threads} threads")
