"""`edgewise models`: list the models of a folder and what each needs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import orjson
import typer
from rich.table import Table

from app.cli.console import Json, out, print_json
from app.cli.environment import read_settings
from app.models.repository import ModelLimits, Repository
from app.settings import DEMO_MODELS
from app.v1.models import describe


def command(
    folder: Annotated[Path, typer.Argument(envvar="EDGEWISE_MODELS", help="A folder of models.")] = DEMO_MODELS,
    json: Json = False,
) -> None:
    """List the models of a folder as `serve` would load them."""
    settings = read_settings(models=folder)
    limits = ModelLimits(settings.max_models, settings.max_model_bytes, settings.max_arena_bytes)
    repository = Repository(settings.models, settings.threads, limits)
    repository.load_all()
    described = [describe(served) for served in repository.models]
    if json:
        print_json(orjson.dumps([model.model_dump() for model in described]))
        return
    table = Table()
    for column in ("model", "version", "state", "inputs", "about"):
        table.add_column(column)
    for model in described:
        table.add_row(
            model.name,
            model.version,
            model.state,
            ", ".join(f"{t.name}: {t.dtype}{t.shape}" for t in model.inputs),
            model.reason or model.description,
        )
    out.print(table)
