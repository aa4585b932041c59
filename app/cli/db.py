"""`edgewise db`: inspect, upgrade, prune, export, import and merge the strategy database."""

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

group = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Inspect, upgrade, prune, export, import and merge the strategy database."
)


@group.command("info")
def info(db: Database = None, json: Json = False) -> None:
    """Show which database is used, its schema revision, and how many devices and plans it holds."""
    _tell(db, json, upgrade=False)


@group.command("upgrade")
def upgrade(db: Database = None, json: Json = False) -> None:
    """Migrate the database's schema to this build's.

    edgewise db upgrade --db postgresql://user:password@host/edgewise
    """
    _tell(db, json, upgrade=True)


@group.command("prune")
def prune(
    older_than: Annotated[
        float | None, typer.Option(help="Delete only what is older than this many days.", show_default=False)
    ] = None,
    stale: Annotated[
        bool, typer.Option("--stale", help="Delete only measurements and plans that another build or other kernel sources made.")
    ] = False,
    db: Database = None,
    json: Json = False,
) -> None:
    """Delete old measurements, plans, profiles and finished jobs, or those that this build cannot use.

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
    device: Annotated[str | None, typer.Option(help="Export only the measurements of the device with this fingerprint.")] = None,
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
    """Yield the lines of a file. A line that is too long is cut where the import still refuses it, so that it fits in memory."""
    return iter(lambda: stream.readline(MAX_LINE_BYTES + 1), "")


def _write(stream: IO[str], lines: Iterable[str]) -> None:
    for line in lines:
        stream.write(f"{line}\n")


@group.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="A file that `db export` wrote, - for stdin.", show_default=False)],
    db: Database = None,
    json: Json = False,
) -> None:
    """Merge the measurements of a file into the database.

    Where both hold one of the same strategy, the one with more samples is kept; with equally many, the newer one.

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
    """Merge the measurements of another database into this one, as `db import` does. The other one is not changed.

    edgewise db merge sqlite:///laptop.db --db postgresql://user:password@host/edgewise
    """
    with Store(source, create=False, upgrade=False) as other, Store(db) as store:
        imported = import_measurements(store, export_measurements(other, _here()))
    _print_facts(asdict(imported), json=json)


def _here() -> Here:
    return Here(local_fingerprint(), current_build())


def _tell(db: str | None, json: bool, *, upgrade: bool) -> None:
    with Store(db, create=upgrade, upgrade=upgrade) as store:
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
