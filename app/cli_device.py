"""`edgewise device`: what machines are and were measured to do."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.progress import Progress
from rich.table import Table

from app.console import Database, Json, notes, out, print_json
from app.pages import quantity
from profiler.device import DeviceProfile
from scheduler.local import local_device
from scheduler.store import Store


def device_command(
    seconds: Annotated[float, typer.Option(min=0.1, max=600, help="How long to measure.")] = 8.0,
    db: Database = None,
    json: Json = False,
) -> None:
    """Measure this machine and store its profile: peak rates per precision, bandwidth per cache level, overheads."""
    measured = _probe(seconds, db)
    if json:
        print_json(measured.to_json())
        return
    what = measured.hardware
    out.print(f"{measured.name}   {measured.fingerprint}   {', '.join(sorted(what.isa))}", markup=False)
    peaks = Table(title="peak rates", title_justify="left")
    for column in ("precision", "ISA", "kind", "threads", "rate"):
        peaks.add_column(column)
    for peak in measured.peaks:
        rate = quantity(peak.rate.value, "op/s")
        peaks.add_row(peak.precision, peak.isa, peak.kind, str(peak.threads), rate)
    out.print(peaks)
    bandwidths = Table(title="bandwidth", title_justify="left")
    for column in ("level", "pattern", "threads", "rate"):
        bandwidths.add_column(column)
    for found in measured.bandwidths:
        bandwidths.add_row(found.level, found.pattern, str(found.threads), quantity(found.rate.value, "B/s"))
    out.print(bandwidths)


def _probe(seconds: float, db: str | None) -> DeviceProfile:
    """Measure with a progress bar on a terminal, and store."""
    with Store(db) as store, Progress(console=notes, transient=True, disable=not notes.is_terminal) as bar:
        task = bar.add_task("measuring", total=None)

        def progress(done: int, total: int, what: str) -> None:
            bar.update(task, completed=done, total=total, description=what)

        return local_device(store, seconds, again=True, progress=progress)
