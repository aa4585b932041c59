"""A private PostgreSQL server that a test can stop and start. The server's programs have to be installed."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

START_S = 60.0


def missing() -> str:
    """Return why this machine cannot run a PostgreSQL server, or "" if it can."""
    if _programs() is None:
        return "no PostgreSQL server programs (initdb, postgres) on this machine"
    if os.getuid():
        return ""
    user = subprocess.run(["id", "postgres"], capture_output=True, check=False).returncode == 0
    return "" if user and shutil.which("runuser") else "running as root, and there is no user postgres to run the server as"


def _programs() -> Path | None:
    """Return the folder of initdb and postgres, or None. Debian keeps it off the PATH."""
    folders = [Path(found).resolve().parent] if (found := shutil.which("initdb")) else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((folder for folder in folders if (folder / "postgres").exists() and (folder / "initdb").exists()), None)


class Cluster:
    """One server with an empty database `postgres`. It writes durably: a stop loses nothing that it acknowledged."""

    def __init__(self) -> None:
        programs = _programs()
        assert programs is not None, "missing() says whether there are programs"
        self._programs = programs
        # The server refuses to run as root.
        self._as_user = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
        self.folder = Path(tempfile.mkdtemp(prefix="edgewise-pg-"))
        if self._as_user:
            shutil.chown(self.folder, "postgres")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self._command("initdb", "-U", "edgewise", "-A", "trust", "-E", "UTF8", "--locale=C")
        self.start()

    @property
    def url(self) -> str:
        """Return the URL of the server's database."""
        return f"postgresql://edgewise@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        """Start the server and wait until it answers."""
        options = f"-c listen_addresses=127.0.0.1 -c port={self.port} -c unix_socket_directories={self.folder}"
        self._command("pg_ctl", "-w", "-t", str(int(START_S)), "-l", str(self.folder / "log"), "-o", options, "start")

    def stop(self) -> None:
        """End every connection and stop the server."""
        self._command("pg_ctl", "-w", "-m", "fast", "stop")

    def remove(self) -> None:
        """Stop the server if it is running, and remove its files."""
        if (self.folder / "data" / "postmaster.pid").exists():
            self._command("pg_ctl", "-w", "-m", "immediate", "stop")
        shutil.rmtree(self.folder)

    def _command(self, program: str, *arguments: str) -> None:
        command = [*self._as_user, str(self._programs / program), "-D", str(self.folder / "data"), *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=self.folder, timeout=2 * START_S)
