"""The command line: the table of commands, and what runs the one that is called.

Each command prints for people, or JSON with --json; the program exits with 0 when it is done, 1 when it failed, 2 when it was
called wrongly. Errors are one line on stderr that names the value, the rule and the place; EDGEWISE_DEBUG=1 adds the traceback.

A command is the module `app.cli.<name>`, which holds a function `command`, or a `group` of commands. It is imported only when
it is called, and this module imports nothing else, so that `--help` does not wait for typer to be imported.
"""

from __future__ import annotations

import importlib
import os
import sys

TYPE_CHECKING = False  # type checkers take it as true; `typing` takes 15 ms to import
if TYPE_CHECKING:
    from collections.abc import Iterable

    import typer

ABOUT = "Profile an ONNX model op by op, plan how this device should run it, and serve it with that plan."
COMMANDS = {
    "profile": "Count what a model costs: MACs, FLOPs, bytes, parameters and peak memory, per op and in total.",
    "plan": "Choose how a device should run a model: kernel, threads and precision of every step, and why.",
    "tune": "Measure which kernels run a model fastest here, store the results, and print the plan. Ctrl-C ends it early.",
    "run": "Run a model and print its outputs and latency.",
    "serve": "Serve a folder of models over HTTP, with the dashboard at /; with --grpc-port over gRPC too.",
    "load": "Send a server requests at set loads, and tell how fast it answers and where the time goes. Ctrl-C ends it early.",
    "models": "List the models of a folder as `serve` would load them.",
    "device": "Measure this machine and store its profile: peak rates per precision, bandwidth per cache level, overheads.",
    "agent": "Run the jobs that a service has for this machine, and send back measurements, plans and profiles.",
    "bench": "Time a model by threads, batch and precision, beside ONNX Runtime where that is there; or evaluate the cost model.",
    "db": "Inspect, upgrade, prune, export, import and merge the strategy database.",
    "keys": "Create, list and revoke API keys.",
    "doctor": "Show the versions, cores and memory of this installation, or with --knobs every setting.",
}


def main() -> None:
    """Run the command line in `sys.argv` and exit."""
    words = sys.argv[1:]
    if not words:
        _print_help()
        sys.exit(2)
    for word in words:  # the options before the command
        if word == "--help":
            _print_help()
            return
        if word == "--version":
            from kernels.version import VERSION  # noqa: PLC0415

            sys.stdout.write(f"edgewise {VERSION}\n")
            return
        if not word.startswith("-"):
            break
    called = next((word for word in words if not word.startswith("-")), "")
    _run([called] if called in COMMANDS else COMMANDS)  # for an unknown one typer suggests a similar name


def command_line(names: Iterable[str] = COMMANDS) -> typer.Typer:
    """Build the command line with these commands, importing their modules."""
    import typer  # noqa: PLC0415

    root = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")
    root.callback(help=ABOUT)(lambda: None)
    for name in names:
        module = importlib.import_module(f"app.cli.{name}")
        if hasattr(module, "group"):
            root.add_typer(module.group, name=name)
        else:
            root.command(name)(module.command)
    return root


def _run(names: Iterable[str]) -> None:
    """Run with these commands imported; typer itself exits with 2 where an option or a command is unknown."""
    from app.cli.console import ArgumentError, notes  # noqa: PLC0415
    from kernels.errors import EdgewiseError  # noqa: PLC0415

    try:
        command_line(names)(prog_name="edgewise")
    except (EdgewiseError, FileNotFoundError, PermissionError, IsADirectoryError) as error:
        if os.environ.get("EDGEWISE_DEBUG"):
            raise
        text = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else str(error)
        notes.print(f"edgewise: {text}", style="red", markup=False, soft_wrap=True)
        sys.exit(2 if isinstance(error, ArgumentError) else 1)


def _print_help() -> None:
    from app.cli.overview import overview  # noqa: PLC0415

    sys.stdout.write(overview(ABOUT, COMMANDS))
