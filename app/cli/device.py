"""`edgewise device`: measure this machine; list, show, import and export the profiles of devices."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import orjson
import typer
from rich.bar import Bar
from rich.progress import Progress
from rich.table import Table

from app.cli.console import ArgumentError, Database, Json, notes, out, print_json
from profiler.device.measure import Figure
from profiler.device.profile import DeviceProfile
from profiler.device.sheet import read_profile
from profiler.units import quantity
from scheduler.local import local_device
from scheduler.store import Store, StoredDevice

BAR_WIDTH = 30
MAX_PROFILE_BYTES = 4 << 20


def command(
    seconds: Annotated[float, typer.Option(min=0.1, max=600, help="About how many seconds to measure.")] = 8.0,
    export: Annotated[Path | None, typer.Option("--export", help="Write the profile here, as JSON.", show_default=False)] = None,
    import_: Annotated[
        Path | None, typer.Option("--import", help="Store the device profile or data sheet in this file.", show_default=False)
    ] = None,
    show: Annotated[str | None, typer.Option(help="Show the stored device with this fingerprint instead.")] = None,
    list_: Annotated[bool, typer.Option("--list", help="List the stored devices.")] = False,
    db: Database = None,
    json: Json = False,
) -> None:
    """Measure this machine and store its profile: peak rates per precision, bandwidth per cache level, overheads.

    edgewise device --export laptop.json
    edgewise device --import phone.json
    edgewise device --list
    """
    if sum((import_ is not None, show is not None, list_)) > 1:
        raise ArgumentError("device: need at most one of --import, --show and --list")
    if list_:
        _list(db, json=json)
        return
    if import_ is not None:
        profile = _import(import_, db)
    elif show is not None:
        with Store(db) as store:
            profile = DeviceProfile.from_json(store.devices.get(show).profile)
    else:
        profile = _probe(seconds, db)
    if export is not None:
        export.write_text(profile.to_json(), encoding="utf-8")
    if json:
        print_json(profile.to_json())
    else:
        _print(profile)


def _list(db: str | None, *, json: bool) -> None:
    devices: list[StoredDevice] = []
    with Store(db) as store:
        cursor: str | None = None
        while True:
            page = store.devices.page(cursor=cursor)
            devices += page.items
            if (cursor := page.next) is None:
                break
    if json:
        print_json(orjson.dumps([{"fingerprint": found.fingerprint, "name": found.name} for found in devices]))
        return
    table = Table("fingerprint", "name", "numbers")
    for found in devices:
        table.add_row(found.fingerprint, found.name, _sources(DeviceProfile.from_json(found.profile)))
    out.print(table)


def _sources(profile: DeviceProfile) -> str:
    """Count the figures of a profile by their source (measured, derived, entered)."""
    counts: dict[str, int] = {}
    for figure in profile.figures:
        counts[figure.source] = counts.get(figure.source, 0) + 1
    return ", ".join(f"{count} {source}" for source, count in sorted(counts.items()))


def _import(path: Path, db: str | None) -> DeviceProfile:
    if path.stat().st_size > MAX_PROFILE_BYTES:
        raise ArgumentError(f"--import: {path.name} has {path.stat().st_size} bytes, need at most {MAX_PROFILE_BYTES}")
    profile = read_profile(path.read_bytes())
    with Store(db) as store:
        store.devices.save(profile)
    return profile


def _probe(seconds: float, db: str | None) -> DeviceProfile:
    """Measure this machine, with a progress bar on a terminal, and store its profile."""
    with Store(db) as store, Progress(console=notes, transient=True, disable=not notes.is_terminal) as bar:
        task = bar.add_task("measuring", total=None)

        def progress(done: int, total: int, what: str) -> None:
            bar.update(task, completed=done, total=total, description=what)

        return local_device(store, seconds, again=True, progress=progress)


def _print(profile: DeviceProfile) -> None:
    what, may = profile.hardware, profile.confinement
    out.print(f"{profile.name}   {profile.fingerprint}   {', '.join(sorted(what.isa))}", markup=False)
    clusters = ", ".join(f"{cluster.cores} cores ({cluster.logical} threads)" for cluster in what.clusters)
    limits = [f"{may.affinity} logical CPUs"]
    limits += [f"{may.cgroup_cpus:g} CPUs by cgroup"] if may.cgroup_cpus else []
    limits += [f"{quantity(may.cgroup_memory_bytes, 'B')} by cgroup"] if may.cgroup_memory_bytes else []
    out.print(f"clusters: {clusters}   NUMA nodes: {len(what.numa)}   memory {quantity(what.memory_bytes, 'B')}", markup=False)
    out.print(f"may use: {', '.join(limits)}; {profile.usable_cores} cores", markup=False)
    peaks = [((p.precision, p.isa, p.kind, str(p.threads)), p.rate) for p in profile.peaks]
    _print_rates("peak rates", ("precision", "ISA", "kind", "threads"), peaks)
    _print_rates(
        "bandwidth", ("level", "pattern", "threads"), [((b.level, b.pattern, str(b.threads)), b.rate) for b in profile.bandwidths]
    )
    costs = [(name.replace("_", " "), getattr(profile.overheads, name)) for name in type(profile.overheads).model_fields]
    for team in profile.teams:
        costs += [(f"team start, {team.threads} threads", team.start), (f"barrier, {team.threads} threads", team.barrier)]
    table = Table("cost", "ns", "spread", "from", title="overheads", title_justify="left")
    for name, figure in costs:
        table.add_row(name, f"{figure.value:.4g}", f"{figure.spread_percent:.0f} %", figure.source)
    out.print(table)
    steady = profile.stability
    stolen = "" if steady.steal_percent is None else f", {steady.steal_percent:.1f} % stolen"
    if steady.quietness.reasons:
        out.print(f"{steady.quietness.text}: its figures are too low", style="bold red", markup=False)
    out.print(f"stability: spread {steady.jitter.spread_percent:.1f} %, drift {steady.drift_percent:+.1f} %{stolen}")
    out.print(f"numbers: {_sources(profile)}; {profile.probed_at:%Y-%m-%d %H:%M}")


def _print_rates(title: str, columns: tuple[str, ...], rows: Sequence[tuple[tuple[str, ...], Figure]]) -> None:
    """Print a table with a bar for each rate, relative to the largest rate."""
    table = Table(*columns, "rate", "", "from", title=title, title_justify="left")
    largest = max((figure.value for _, figure in rows), default=1.0) or 1.0
    for names, figure in rows:
        rate = quantity(figure.value, figure.unit)
        table.add_row(*names, rate, Bar(largest, 0, figure.value, width=BAR_WIDTH), figure.source)
    out.print(table)
