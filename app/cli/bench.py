"""`edgewise bench`: compare what Edgewise predicts with what it measured."""

from __future__ import annotations

from typing import Annotated

import orjson
import typer
from rich.table import Table

from app.cli.console import Database, Json, out, print_json, require_known
from scheduler.cost.evaluation import evaluate_stored
from scheduler.store import Store


def command(
    what: Annotated[str, typer.Argument(help="cost-model.")] = "cost-model", db: Database = None, json: Json = False
) -> None:
    """Evaluate how well the cost model predicts measurements that it was not fitted to, by kind of kernel.

    edgewise bench cost-model
    """
    require_known("benchmark", what, ("cost-model",))
    with Store(db) as store:
        found = evaluate_stored(store)
    if json:
        print_json(orjson.dumps(found))
        return
    if not found:
        out.print("nothing was measured on this machine with this build yet, run `edgewise tune MODEL` first")
        return
    table = Table(title="held-out measurements, by signature", title_justify="left")
    for name in (
        "kernels",
        "points",
        "fitted %",
        "median error %",
        "works ranked",
        "Spearman",
        "ceiling",
        "pairs apart",
        "their rank",
    ):
        table.add_column(name, justify="left" if name == "kernels" else "right")
    for row in found:
        rank, ceiling, gamma = ("" if r is None else f"{r:.3f}" for r in (row.spearman, row.ceiling, row.gamma))
        numbers = (str(row.points), f"{row.fitted_percent:.0f}", f"{row.error_percent:.1f}", str(row.works))
        table.add_row(row.kind, *numbers, rank, ceiling, str(row.pairs), gamma)
    out.print(table)
