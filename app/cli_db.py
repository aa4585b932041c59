"""`edgewise db`: what the strategy database holds, and moving it."""

from __future__ import annotations

import orjson
import typer

from app.console import Database, Json, out, print_json
from scheduler.build import current_build
from scheduler.local import local_fingerprint
from scheduler.store import Here, Store

databases = typer.Typer(no_args_is_help=True, add_completion=False, help="The strategy database: what it holds, and moving it.")


@databases.command("info")
def info_command(db: Database = None, json: Json = False) -> None:
    """Say what the database holds."""
    _tell(db, json, upgrade=False)


@databases.command("upgrade")
def upgrade_command(db: Database = None, json: Json = False) -> None:
    """Migrate the database's schema to this build's.

    edgewise db upgrade --db postgresql://user:password@host/edgewise
    """
    _tell(db, json, upgrade=True)


def _tell(db: str | None, json: bool, *, upgrade: bool) -> None:
    with Store(db, upgrade=upgrade) as store:
        devices = store.devices.page().items
        plans = store.plans.page(Here(local_fingerprint(), current_build())).items
        facts = {"database": store.label, "revision": store.revision(), "devices": len(devices), "recent_plans": len(plans)}
    if json:
        print_json(orjson.dumps(facts))
        return
    for name, value in facts.items():
        out.print(f"{name:14} {value}", markup=False)
