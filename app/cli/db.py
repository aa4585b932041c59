"""`edgewise db`: what the strategy database holds, and moving it."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import IO, Annotated

import orjson
import typer

from app.cli.console import ArgumentError, Database, Json, out, print_json
from scheduler.build import current_build
from scheduler.local import local_fingerprint
from scheduler.store import Here, Store
from scheduler.store.transfer import MAX_LINE_BYTES, export_measurements, import_measurements

group = typer.Typer(no_args_is_help=True, add_completion=False, help="The strategy database: what it holds, and moving it.")


@group.command("info")
def info(db: Database = None, json: Json = False) -> None:
    """Say what the database holds."""
    _tell(db, json, upgrade=False)


@group.command("upgrade")
def upgrade(db: Database = None, json: Json = False) -> None:
    """Migrate the database's schema to this build's.

    edgewise db upgrade --db postgresql://user:password@host/edgewise
    """
    _tell(db, json, upgrade=True)


@group.command("prune")
def prune(
    older_than: Annotated[float | None, typer.Option(help="Days: delete only what is older.", show_default=False)] = None,
    stale: Annotated[
        bool, typer.Option("--stale", help="Delete only measurements and plans of another build or kernel source than this.")
    ] = False,
    db: Database = None,
    json: Json = False,
) -> None:
    """Make room: delete old measurements, plans, profiles and ended jobs, or what no build that runs here can use.

    edgewise db prune --older-than 90 --stale
    """
    if older_than is None and not stale:
        raise ArgumentError("db prune: need --older-than DAYS, --stale or both")
    with Store(db, create=False) as store:
        pruned = asdict(store.prune(_here(), older_than, stale=stale))
    _print_facts(pruned, json=json)


@group.command("export")
def export(
    file: Annotated[Path, typer.Argument(help="Where to write, - for stdout.", show_default=False)],
    device: Annotated[str | None, typer.Option(help="Only what this device measured: its fingerprint.")] = None,
    db: Database = None,
) -> None:
    """Write measurements and the devices they were taken on as JSON lines.

    edgewise db export measurements.jsonl
    """
    with Store(db, create=False) as store:
        lines = export_measurements(store, _here(), device)
        if str(file) == "-":
            _write(sys.stdout, lines)
            return
        partial = file.with_name(f"{file.name}.part")
        with partial.open("w", encoding="utf-8", newline="\n") as stream:
            _write(stream, lines)
        partial.replace(file)


def _lines(stream: IO[str]) -> Iterator[str]:
    """Lines of a file that may be one endless line: of such a one a piece that import refuses."""
    return iter(lambda: stream.readline(MAX_LINE_BYTES + 1), "")


def _write(stream: IO[str], lines: Iterable[str]) -> None:
    for line in lines:
        stream.write(f"{line}\n")


@group.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="What `db export` wrote, - for stdin.", show_default=False)],
    db: Database = None,
    json: Json = False,
) -> None:
    """Merge measurements from a file: of two of one thing the one of more samples is kept, of as many the newer.

    edgewise db import measurements.jsonl
    """
    with Store(db) as store:
        if str(file) == "-":
            imported = import_measurements(store, _lines(sys.stdin))
        else:
            with file.open(encoding="utf-8", newline="\n") as stream:
                imported = import_measurements(store, _lines(stream))
    _print_facts(asdict(imported), json=json)


@group.command("merge")
def merge(
    source: Annotated[str, typer.Argument(help="URL of the database to read.", show_default=False)],
    db: Database = None,
    json: Json = False,
) -> None:
    """Merge the measurements of another database into this one, by the rules of import. The other one stays as it is.

    edgewise db merge sqlite:///laptop.db --db postgresql://user:password@host/edgewise
    """
    with Store(source, create=False, upgrade=False) as other, Store(db) as store:
        imported = import_measurements(store, export_measurements(other, _here()))
    _print_facts(asdict(imported), json=json)


def _here() -> Here:
    return Here(local_fingerprint(), current_build())


def _tell(db: str | None, json: bool, *, upgrade: bool) -> None:
    with Store(db, upgrade=upgrade) as store:
        devices = store.devices.page().items
        plans = store.plans.page(_here()).items
        facts = {"database": store.label, "revision": store.revision(), "devices": len(devices), "recent_plans": len(plans)}
    _print_facts(facts, json=json)


def _print_facts(facts: Mapping[str, object], *, json: bool) -> None:
    if json:
        print_json(orjson.dumps(facts))
        return
    for name, value in facts.items():
        out.print(f"{name:14} {value}", markup=False)
