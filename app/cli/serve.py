"""`edgewise serve`: run the HTTP service and its dashboard."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from app import logs
from app.cli.console import ArgumentError, Database, Threads, notes
from app.cli.environment import read_settings
from app.cli.stored import stored_plan
from app.http import server
from app.main import create_app
from app.settings import DEMO_MODELS
from scheduler.errors import StalePlanError


def command(
    models: Annotated[
        Path, typer.Option(envvar="EDGEWISE_MODELS", help="Folder with name.onnx or name/<version>/model.onnx.")
    ] = DEMO_MODELS,
    host: Annotated[str, typer.Option(envvar="EDGEWISE_HOST", help="Address to bind.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(envvar="EDGEWISE_PORT", min=0, max=65535, help="Port to bind, 0 = any free one.")] = 8000,
    grpc_port: Annotated[
        int | None,
        typer.Option(envvar="EDGEWISE_GRPC_PORT", min=0, max=65535, help="Port of gRPC, 0 = any free one.", show_default=False),
    ] = None,
    db: Database = None,
    threads: Threads = None,
    plan: Annotated[
        list[str], typer.Option(help="Id of a stored plan that its model runs, whatever the plan was made for; repeatable.")
    ] = [],  # noqa: B006  typer reads the default, and nothing changes it
) -> None:
    """Serve a folder of models over HTTP, with the dashboard at /; with --grpc-port over gRPC too.

    edgewise serve --models models --port 8000
    edgewise serve --models models --plan 948aef4db6d8
    """
    if not models.is_dir():
        raise ArgumentError(f"--models: {str(models)!r} is not a folder, need one that holds models")
    logs.configure()
    pinned = {"plans": tuple(_pinned(plan_id, db) for plan_id in plan)} if plan else {}
    settings = read_settings(models=models, host=host, port=port, grpc_port=grpc_port, db=db, threads=threads, **pinned)
    notes.print(f"Edgewise serves {models.name} on http://{host}:{port}/", markup=False)
    if grpc_port:
        notes.print(f"and over gRPC on {host}:{grpc_port}", markup=False)
    if not settings.loopback or settings.keyless is False:
        notes.print("every route but health needs an API key, see `edgewise keys create`", markup=False)
    server.run(create_app(settings), settings)


def _pinned(plan_id: str, db: str | None) -> str:
    """Return the whole id of a stored plan that may run here. Raises NotFoundError, StalePlanError."""
    plan = stored_plan(plan_id, db)
    if plan.state.status == "stale":
        raise StalePlanError(
            f"--plan: plan {plan.id[:12]} of {plan.model_name} is stale, {plan.state.reason}; tune or plan again"
        )
    return plan.id
