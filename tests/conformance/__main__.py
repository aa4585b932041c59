"""`python -m tests.conformance` runs ONNX's own test cases: passed and failed per operator, and in total (`make conformance`)."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping
from typing import Annotated

import typer

from tests.conformance.cases import Conformance, failure, model_cases, network_cases, node_cases
from tests.conformance.exceptions import FAILING


def main(
    numpy: Annotated[bool, typer.Option("--numpy", help="Run nothing natively.")] = False,
    operators: Annotated[bool, typer.Option(help="Print a line for each operator, not for those alone that fail a case.")] = True,
) -> None:
    """Run every case of the package `onnx`. Exits with 1 where one fails that the table of exceptions does not list."""
    warnings.simplefilter("ignore")
    unexpected = 0
    for title, cases in (("node cases", node_cases()), ("model cases", model_cases()), ("networks", network_cases())):
        found = {name: reason for name, case in cases.items() if (reason := failure(case, "numpy" if numpy else "auto"))}
        unexpected += len(set(found) - set(FAILING))
        _print(title, cases, found, operators=operators)
    raise typer.Exit(int(unexpected > 0))


def _print(title: str, cases: Mapping[str, Conformance], found: Mapping[str, str], *, operators: bool) -> None:
    total, failed = (Counter(cases[name].op for name in names) for names in (cases, found))
    for op in sorted(total):
        if operators or failed[op]:
            typer.echo(f"{op:40} {total[op] - failed[op]:4} passed {failed[op]:4} failed")
    for name, reason in found.items():
        typer.echo(f"{name}: {FAILING.get(name, 'UNEXPECTED')} [{reason[:160]}]")
    typer.echo(f"{title}: {len(cases) - len(found)} of {len(cases)} passed\n")


if __name__ == "__main__":
    typer.run(main)
