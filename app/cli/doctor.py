"""`edgewise doctor`: show versions, hardware and settings of this installation."""

from __future__ import annotations

import platform
import time
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from rich.progress import Progress
from rich.table import Table

from app.cli.console import ArgumentError, Json, notes, out, print_json
from app.settings import knobs
from kernels.confinement import (
    ROOT,
    address_space_bytes,
    cgroup_memory_bytes,
    cpu_list,
    free_memory_bytes,
    installed_memory_bytes,
    read_cpus,
    usable_cores,
    usable_memory_bytes,
)
from kernels.cuda.driver import Driver
from kernels.errors import EdgewiseError
from kernels.version import VERSION


def describe_nvidia() -> str:
    """Return what NVIDIA's driver supports and which GPUs it sees, or why there is none."""
    try:
        driver = Driver()
        gpus = [
            f"{device.name} of compute capability {device.capability[0]}.{device.capability[1]}" for device in driver.devices()
        ]
        return f"driver for CUDA {driver.version[0]}.{driver.version[1]}: {', '.join(gpus) or 'no GPU'}"
    except EdgewiseError as error:
        return str(error)


def confinement(root: Path = ROOT) -> dict[str, Any]:
    """Return what this process may use of the machine, and the limits by which it is less than all. None: no such limit."""
    cpus = read_cpus(root)
    return {
        "cores": cpus.usable_cores,  # the default thread count
        "cpus": cpus.usable,
        "cpus_allowed": cpu_list(cpus.allowed),
        "cores_allowed": cpus.cores,
        "cpu_quota": None if cpus.quota is None else f"{cpus.quota.cpus:g} ({cpus.quota.source})",
        "memory_bytes": usable_memory_bytes(root),
        "memory_installed": installed_memory_bytes(root),
        "memory_cgroup": cgroup_memory_bytes(root),
        "memory_address_space": address_space_bytes(),
        "memory_free": free_memory_bytes(root),
    }


def warm_up(*, json: bool) -> None:
    """Compile the kernels of common networks into the code cache, and say how many there are."""
    from graph.native.engine import Native  # noqa: PLC0415  neither versions nor settings need the engine
    from scheduler.warming import warm  # noqa: PLC0415

    native, began_s = Native(), time.monotonic()
    if native.cache is None:
        raise ArgumentError("--warm: EDGEWISE_CODE_CACHE is empty, need a folder to keep compiled code in")
    with Progress(console=notes, transient=True) as bar:
        task = bar.add_task("compiling kernels", total=None)
        kernels = warm(native, usable_cores(), lambda ready, total: bar.update(task, completed=ready, total=total))
    seconds, folder = time.monotonic() - began_s, str(native.cache.files.path)
    if json:
        print_json(orjson.dumps({"kernels": kernels, "seconds": round(seconds, 3), "folder": folder}))
        return
    out.print(f"{kernels} kernels are compiled for {native.isa.name}, in {seconds:.1f} s ({folder})", markup=False)


def command(
    show_knobs: Annotated[bool, typer.Option("--knobs", help="Print every setting.")] = False,
    warm: Annotated[
        bool, typer.Option("--warm", help="Compile the kernels of common networks ahead, so that models start sooner.")
    ] = False,
    json: Json = False,
) -> None:
    """Show the versions, cores and memory of this installation, or with --knobs every setting.

    edgewise doctor --warm
    """
    if warm:
        warm_up(json=json)
        return
    if show_knobs:
        rows = knobs()
        if json:
            print_json(orjson.dumps([dict(zip(("name", "type", "default", "meaning"), row, strict=True)) for row in rows]))
            return
        table = Table()
        for column in ("variable", "type", "default", "meaning"):
            table.add_column(column)
        for row in rows:
            table.add_row(*row)
        out.print(table)
        return
    packages = ("numpy", "onnx", "llvmlite", "fastapi", "sqlalchemy")
    facts: dict[str, Any] = {
        "edgewise": VERSION,
        "python": platform.python_version(),
        "platform": platform.platform(),
        **{name: metadata.version(name) for name in packages},
        **confinement(),
        "nvidia": describe_nvidia(),
    }
    if json:
        print_json(orjson.dumps(facts))
        return
    for name, value in facts.items():
        out.print(f"{name:21} {'none' if value is None else value}", markup=False, soft_wrap=True)
