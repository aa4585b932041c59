"""`edgewise keys`: create, list and revoke the service's API keys. A running server sees changes within seconds."""

from __future__ import annotations

import getpass
import time
from typing import Annotated

import orjson
import typer
from rich.table import Table

from app.access.auth import Scope, new_key
from app.cli.console import Database, Json, notes, out, print_json
from scheduler.store import AuditEntry, Store, StoredKey

group = typer.Typer(no_args_is_help=True, add_completion=False, help="Create, list and revoke API keys.")
DAY_US = 86_400_000_000
FIRST = (
    "This is the first key of this database: from now on its services ask for a key on every route but health,"
    " on this machine too. Pages ask for it at /login; clients send it as `Authorization: Bearer KEY`."
)
LAST = (
    "No key of scope admin is left, and services go on asking for keys. To get in again, run on a machine that reaches"
    " this database: edgewise keys create --name NAME --scope admin"
)


@group.command("create")
def create(
    name: Annotated[str, typer.Option(help="Name of the key, shown in lists and in the audit log.")],
    scope: Annotated[list[Scope], typer.Option(help="infer, read or admin; repeatable.")],
    expires_days: Annotated[
        float | None, typer.Option(min=0.0001, max=36500, help="Days until it expires; never by default.")
    ] = None,
    rate_per_s: Annotated[
        float | None, typer.Option(min=0.001, max=1e9, help="Requests a second; the server's by default.")
    ] = None,
    db: Database = None,
    json: Json = False,
) -> None:
    """Create a key and print it. It cannot be shown again: the database holds only its hash.

    edgewise keys create --name dashboard --scope read --scope infer
    """
    text, prefix, digest = new_key()
    expires_us = None if expires_days is None else time.time_ns() // 1000 + int(expires_days * DAY_US)
    with Store(db) as store:
        first = not store.keys.ring().made
        store.keys.add(prefix, name, digest, {str(item) for item in scope}, expires_us, rate_per_s)
        _audit(store, "key.create", prefix)
    if first:
        notes.print(FIRST, style="yellow", markup=False, soft_wrap=True)
    if json:
        print_json(
            orjson.dumps({"key": text, "prefix": prefix, "name": name, "scopes": sorted(set(scope)), "expires_us": expires_us})
        )
    else:
        out.print(text, markup=False, soft_wrap=True)


@group.command("list")
def list_keys(db: Database = None, json: Json = False) -> None:
    """List every key, without its secret."""
    found: list[StoredKey] = []
    with Store(db) as store:
        page = store.keys.page()
        found.extend(page.items)
        while page.next is not None:
            page = store.keys.page(cursor=page.next)
            found.extend(page.items)
    if json:
        hidden = [
            {"prefix": key.prefix, "name": key.name, "scopes": key.scopes, "state": _state(key), "rate_per_s": key.rate_per_s}
            | {"created_us": key.created_us, "expires_us": key.expires_us, "last_used_us": key.last_used_us}
            for key in found
        ]
        print_json(orjson.dumps({"keys": hidden}))
        return
    table = Table()
    for column in ("prefix", "name", "scopes", "state", "created", "expires", "last used"):
        table.add_column(column)
    for key in found:
        times = [_day(key.created_us), _day(key.expires_us), _day(key.last_used_us)]
        table.add_row(key.prefix, key.name, " ".join(key.scopes), _state(key), *times)
    out.print(table)


@group.command("revoke")
def revoke(
    prefix: Annotated[str, typer.Argument(help="The key's prefix, as `list` shows it.")], db: Database = None, json: Json = False
) -> None:
    """Revoke a key for good."""
    with Store(db) as store:
        store.keys.revoke(prefix)
        _audit(store, "key.revoke", prefix)
        left = any(key.active(time.time_ns() // 1000) and Scope.ADMIN in key.scopes for key in store.keys.ring().usable)
    if not left:
        notes.print(LAST, style="yellow", markup=False, soft_wrap=True)
    if json:
        print_json(orjson.dumps({"revoked": prefix}))
    else:
        out.print(f"{prefix} is revoked", markup=False)


def _audit(store: Store, action: str, prefix: str) -> None:
    store.audit.add([AuditEntry(time.time_ns() // 1000, f"cli {getpass.getuser()}", action, prefix)])


def _state(key: StoredKey) -> str:
    return "revoked" if key.revoked_us is not None else "active" if key.active(time.time_ns() // 1000) else "expired"


def _day(moment_us: int | None) -> str:
    return "" if moment_us is None else time.strftime("%Y-%m-%d %H:%M", time.gmtime(moment_us / 1e6))
