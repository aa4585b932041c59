"""Processes of their own without a wait for their imports: forks of a server that has the program's modules loaded."""

import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")
# Not app.cli.console: it looks at its terminal when it is imported, and the fork server's is not the command's.
CONTEXT.set_forkserver_preload(["app.main", "rich.progress", "scheduler.tuning.tuner", "typer"])


def start(target: Callable[..., object], *arguments: object) -> BaseProcess:
    """Run a function in a process that ends with this one."""
    process = CONTEXT.Process(target=_run, args=(dict(os.environ), target, *arguments), daemon=True)
    process.start()
    return process


def edgewise(*arguments: str, environment: Mapping[str, str] = {}) -> "subprocess.CompletedProcess[str]":
    """The command line with these arguments, as a user calls it, in a process of its own."""
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
    os.environ.clear()  # what the fork server was started with
    os.environ.update(environment)
    target(*arguments)


def _command(environment: Mapping[str, str], arguments: tuple[str, ...], out: Path, err: Path) -> None:
    for number, path in enumerate((out, err), 1):
        with path.open("wb") as stream:
            os.dup2(stream.fileno(), number)
    sys.argv = ["edgewise", *arguments]
    from app.cli.main import main

    _run(environment, main)
