"""`edgewise agent`: measure, count and tune on this machine for a service that runs elsewhere."""

from __future__ import annotations

import hashlib
import signal
import sys
from pathlib import Path
from typing import Annotated

import orjson
import platformdirs
import structlog
import typer

from app.agent.agent import Agent
from app.cli.console import Database, Json, Threads, out, print_json


def command(
    server: Annotated[str, typer.Option(help="Address of the service, as in http://host:8000.", show_default=False)],
    key: Annotated[str | None, typer.Option(envvar="EDGEWISE_KEY", help="API key of scope admin.", show_envvar=True)] = None,
    once: Annotated[bool, typer.Option("--once", help="Run the jobs that are waiting, then exit.")] = False,
    seconds: Annotated[
        float, typer.Option(min=0.1, max=600, help="About how many seconds to measure a machine that is not in the database yet.")
    ] = 8.0,
    folder: Annotated[
        Path | None,
        typer.Option(
            help="Where to keep models and undelivered results; the user's state directory by default.", show_default=False
        ),
    ] = None,
    threads: Threads = None,
    db: Database = None,
    json: Json = False,
) -> None:
    """Run the jobs that a service has for this machine, and send back measurements, plans and profiles.

    EDGEWISE_KEY=… edgewise agent --server https://edgewise.example
    """
    _configure_logging()
    own = platformdirs.user_state_path("edgewise") / "agent" if folder is None else folder
    of_server = own / hashlib.sha256(server.encode()).hexdigest()[:12]  # another service has not acknowledged what this one has
    agent = Agent(server, key, db, of_server, probe_s=seconds, threads=threads)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: agent.close())
    worked = agent.run(once=once)
    if json:
        print_json(orjson.dumps({"jobs": worked}))
    else:
        out.print(f"{worked} jobs run")


def _configure_logging() -> None:
    """Log one JSON object a line on stderr."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.dict_tracebacks,
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
