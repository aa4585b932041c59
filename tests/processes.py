"""Start processes that need not import the program's modules: they are forks of a server that has loaded them."""

import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")
# app.cli.console must not be preloaded: it inspects the terminal on import, and the fork server has another than the command.
CONTEXT.set_forkserver_preload(["app.main", "rich.progress", "scheduler.tuning.tuner", "typer"])


def start(target: Callable[..., object], *arguments: object) -> BaseProcess:
    """Run a function in a new process, which ends with this one at the latest. Return the process."""
    process = CONTEXT.Process(target=_run, args=(dict(os.environ), target, *arguments), daemon=True)
    process.start()
    return process


def edgewise(*arguments: str, environment: Mapping[str, str] = {}) -> "subprocess.CompletedProcess[str]":
    """Run the command line with these arguments in a new process. Return its exit code and output.

    Raises AssertionError if it still runs after 300 s.
    """
    with tempfile.TemporaryDirectory() as folder:
        streams = [Path(folder, name) for name in ("out", "err")]
        process = CONTEXT.Process(target=_command, args=({**os.environ, **environment}, arguments, *streams))
        process.start()
        process.join(300)
        if process.is_alive():
            process.kill()
            process.join()
            raise AssertionError(f"edgewise {' '.join(arguments)}: still running; it said {streams[1].read_text()}")
        code = process.exitcode
        assert code is not None
        return subprocess.CompletedProcess(["edgewise", *arguments], code, *(stream.read_text() for stream in streams))


def _run(environment: Mapping[str, str], target: Callable[..., object], *arguments: object) -> None:
    os.environ.clear()  # removes what the fork server was started with
    os.environ.update(environment)
    target(*arguments)


def _command(environment: Mapping[str, str], arguments: tuple[str, ...], out: Path, err: Path) -> None:
    for number, path in enumerate((out, err), 1):
        with path.open("wb") as stream:
            os.dup2(stream.fileno(), number)
    sys.argv = ["edgewise", *arguments]
    from app.cli.main import main

    _run(environment, main)
