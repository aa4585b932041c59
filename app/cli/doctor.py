"""`edgewise doctor`: show versions, hardware and settings of this installation."""

from __future__ import annotations

import platform
from importlib import metadata
from typing import Annotated, Any

import orjson
import psutil
import typer
from rich.table import Table

from app.cli.console import Json, out, print_json
from app.settings import knobs
from kernels.cuda.driver import Driver
from kernels.errors import EdgewiseError
from kernels.version import VERSION
from scheduler.session import available_cores


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


def command(
    show_knobs: Annotated[bool, typer.Option("--knobs", help="Print every setting.")] = False, json: Json = False
) -> None:
    """Show the versions, cores and memory of this installation, or with --knobs every setting."""
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
        "cores": available_cores(),
        "memory_bytes": psutil.virtual_memory().total,
        "nvidia": describe_nvidia(),
    }
    if json:
        print_json(orjson.dumps(facts))
        return
    for name, value in facts.items():
        out.print(f"{name:14} {value}", markup=False)
