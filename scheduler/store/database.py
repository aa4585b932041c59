"""A connection to SQLite or PostgreSQL: opening, migrating, transactions that are retried, and errors that say what to do."""

from __future__ import annotations

import random
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar
from urllib.parse import quote

from sqlalchemy import Connection, Engine, create_engine, event, inspect, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import Session

from scheduler.errors import (
    StoreCorruptError,
    StoreError,
    StoreLockedError,
    StoreMissingError,
    StoreMovedError,
    StoreReadOnlyError,
    StoreUnreachableError,
    StoreVersionError,
)
from scheduler.store.file import DatabaseFile
from scheduler.store.schema import HEAD
from scheduler.store.urls import checked_url

if TYPE_CHECKING:
    from alembic.config import Config
    from sqlalchemy import URL
    from sqlalchemy.pool import ConnectionPoolEntry

VERSION_TABLE: Final = "edgewise_version"
BUSY_SECONDS: Final = 10.0
ATTEMPTS: Final = 4
_UPGRADE_LOCK: Final = 0x65646765  # "edge": key of the PostgreSQL advisory lock that one migrating process holds
_WRITES: Final = "edgewise_writes"
_FILES: Final = "edgewise_files"  # of a pooled connection: the files that it opened

T = TypeVar("T")


class _Joined(threading.local):
    """session: of the transaction that reads and writes of this thread join; None where each has a transaction of its own."""

    session: Session | None = None


class Database:
    """A connection pool to one database. Thread-safe: every transaction takes a connection of its own.

    Args:   url: sqlite:///path or postgresql://user:password@host/name. create: the file and its folder where they are missing.
    Raises: StoreError, by kind, naming the database and what to do about it.
    """

    def __init__(self, url: str, create: bool = True) -> None:
        self.url = checked_url(url)
        self.label = self.url.render_as_string(hide_password=True)
        self._file = DatabaseFile(Path(str(self.url.database)), self.error) if self.is_sqlite else None
        if self._file is None:
            # No ping before a transaction, one of four round trips: a transaction that meets a closed connection is run again.
            self._engine = create_engine(self.url, pool_timeout=30, connect_args={"connect_timeout": 10})
        else:
            self._file.prepare(create=create)
            self._engine = _sqlite_engine(self.url, self._file)
        self._joined = _Joined()

    @property
    def is_sqlite(self) -> bool:
        """Whether it is SQLite; else it is PostgreSQL."""
        return self.url.get_backend_name() == "sqlite"

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()

    def read(self, work: Callable[[Session], T]) -> T:
        """Run `work` in a read transaction, which sees one state of the database. Returns its result."""
        session = self._joined.session
        return self._attempt(work, writes=False) if session is None else work(session)

    def write(self, work: Callable[[Session], T]) -> T:
        """Run `work` in a transaction and commit it as a whole. Returns its result; `work` runs again when writers collide."""
        session = self._joined.session
        return self._attempt(work, writes=True) if session is None else work(session)

    def together(self, work: Callable[[], T]) -> T:
        """Run `work` with all its reads and writes on this thread in one transaction, which is committed as a whole.

        Returns: its result. `work` runs again when writers collide, so it does nothing but read and write this database.
        """

        def joined(session: Session) -> T:
            before, self._joined.session = self._joined.session, session
            try:
                return work()
            finally:
                self._joined.session = before

        return self.write(joined)

    def ping(self) -> None:
        """Ask the database for nothing. Raises StoreError where it does not answer."""
        self.read(lambda session: session.execute(text("SELECT 1")))

    def revision(self) -> str | None:
        """Return the migration that the schema is at; None for an empty database."""

        def find(session: Session) -> str | None:
            if not inspect(session.connection()).has_table(VERSION_TABLE):
                return None
            found: str | None = session.execute(text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar()  # noqa: S608  a constant
            return found

        return self.read(find)

    def upgrade(self) -> None:
        """Migrate the schema to this build's, in one transaction; of several processes one migrates and the others wait.

        Raises: StoreVersionError when the database was made by a newer build.
        """
        if self.pending():
            self.write(lambda session: self._migrate(session.connection()))

    def pending(self) -> bool:
        """Say whether the schema is older than this build's. Raises StoreVersionError for a newer one."""
        revision = self.revision()
        if revision == HEAD:
            return False
        from alembic.script import ScriptDirectory  # noqa: PLC0415  alembic takes longer to import than a lookup to answer

        known = {item.revision for item in ScriptDirectory.from_config(_alembic()).walk_revisions()}
        if revision is not None and revision not in known:
            raise self.error(StoreVersionError, f"schema is at {revision}, this build knows up to {HEAD} (upgrade Edgewise)")
        return True

    def _migrate(self, connection: Connection) -> None:
        from alembic import command  # noqa: PLC0415

        if not self.is_sqlite:
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _UPGRADE_LOCK})
        config = _alembic()
        config.attributes["connection"] = connection
        command.upgrade(config, "head")

    def _attempt(self, work: Callable[[Session], T], writes: bool) -> T:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                connecting = self._engine.connect().execution_options(**{_WRITES: writes})
                with connecting as connection, Session(connection, expire_on_commit=False) as session:
                    self._require_same_file(connection)
                    with session.begin():
                        result = work(session)
                    if writes:  # what is acknowledged is in the file that the path leads to
                        self._require_same_file(connection)
                    return result
            except (DBAPIError, PoolTimeoutError) as error:
                if attempt == ATTEMPTS or not _collided(error):
                    raise self._translated(error) from error
            time.sleep(random.uniform(0.01, 0.05) * attempt)  # noqa: S311  spreads the writers, guards nothing
        raise AssertionError("the last attempt returns or raises")

    def _require_same_file(self, connection: Connection) -> None:
        if self._file is not None:
            self._file.require_same(connection.info[_FILES])

    def _translated(self, error: DBAPIError | PoolTimeoutError) -> StoreError:
        cause = error.orig if isinstance(error, DBAPIError) else error
        found = _sqlite_error(cause) if isinstance(cause, sqlite3.Error) else _postgres_error(cause)
        kind, advice = found or (StoreError, "not a known condition")
        return self.error(kind, advice, str(cause).strip().partition("\n")[0])

    def error(self, kind: type[StoreError], fact: str, cause: str = "") -> StoreError:
        """Return an error of this database. cause: the driver's words, which may hold paths: a service does not repeat them."""
        return kind(f"{self.label}: {cause}, {fact}" if cause else f"{self.label}: {fact}", f"database: {fact}")


def _sqlite_engine(url: URL, file: DatabaseFile) -> Engine:
    # mode=rw: a file that vanished is an error, never an empty database.
    # isolation_level None: `_on_begin` says BEGIN, not sqlite3.
    uri = f"file:{quote(str(file.path))}?mode=rw"

    def connect() -> sqlite3.Connection:
        file.require_same()
        connection = sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        try:
            file.opened()
        except StoreMovedError:
            connection.close()
            raise
        return connection

    engine = create_engine(url, creator=connect)

    @event.listens_for(engine, "connect")
    def _on_connect(connection: sqlite3.Connection, record: ConnectionPoolEntry) -> None:
        # WAL: readers and one writer at once. NORMAL: a killed process loses nothing; only a power cut may lose the last commits.
        for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON", f"busy_timeout={int(BUSY_SECONDS * 1000)}"):
            connection.execute(f"PRAGMA {pragma}")
        connection.execute("PRAGMA schema_version")  # a read, which opens the write-ahead log
        record.info[_FILES] = file.identities()

    @event.listens_for(engine, "begin")
    def _on_begin(connection: Connection) -> None:
        # A writer takes its lock at once: a reader that turns writer later fails without waiting when another one committed.
        writes = connection.get_execution_options().get(_WRITES, False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _alembic() -> Config:
    from alembic.config import Config  # noqa: PLC0415

    import migrations  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__path__[0])).replace("%", "%%"))
    return config


def _collided(error: DBAPIError | PoolTimeoutError) -> bool:
    """Say whether trying again may help: writers collided, or the server closed a pooled connection."""
    if isinstance(error, PoolTimeoutError):
        return False
    cause = error.orig
    if isinstance(cause, sqlite3.Error):
        return _sqlite_code(cause).startswith(("SQLITE_BUSY", "SQLITE_LOCKED"))
    return getattr(cause, "sqlstate", None) in ("40001", "40P01") or error.connection_invalidated


def _sqlite_code(cause: sqlite3.Error) -> str:
    return getattr(cause, "sqlite_errorname", "")


_SQLITE_KINDS: Final[tuple[tuple[str, type[StoreError], str], ...]] = (
    ("SQLITE_BUSY", StoreLockedError, f"another process held it for {BUSY_SECONDS:g} s (try again, or stop that process)"),
    ("SQLITE_LOCKED", StoreLockedError, "another connection holds a table (try again)"),
    (
        "SQLITE_READONLY",
        StoreReadOnlyError,
        "the file or its folder is not writable (change that, or choose another place with --db)",
    ),
    (
        "SQLITE_CANTOPEN",
        StoreReadOnlyError,
        "the file is gone, closed to this user or on a read-only disk (check that, or choose another place with --db)",
    ),
    ("SQLITE_PERM", StoreReadOnlyError, "the file may not be opened (check its permissions)"),
    ("SQLITE_FULL", StoreReadOnlyError, "the disk is full (make room; what was stored before is safe)"),
    ("SQLITE_NOTADB", StoreCorruptError, "the file is not a SQLite database (move it away, or choose another place with --db)"),
    ("SQLITE_CORRUPT", StoreCorruptError, "the file is damaged (restore a copy, or move it away to begin with an empty one)"),
    ("SQLITE_IOERR", StoreError, "the disk failed to answer (check the file system)"),
    ("SQLITE_ERROR", StoreError, "the schema is not Edgewise's (is this another program's database?)"),
)


def _sqlite_error(cause: sqlite3.Error) -> tuple[type[StoreError], str] | None:
    code = _sqlite_code(cause)
    return next(((kind, advice) for prefix, kind, advice in _SQLITE_KINDS if code.startswith(prefix)), None)


_POSTGRES_KINDS: Final[tuple[tuple[str, type[StoreError], str], ...]] = (
    ("40", StoreLockedError, "writers kept colliding (try again)"),
    ("55P03", StoreLockedError, "another session holds a lock (try again)"),
    ("28", StoreUnreachableError, "the server refuses the login (check user and password)"),
    ("3D000", StoreMissingError, "the server has no such database (create it first)"),
    ("25006", StoreReadOnlyError, "the server only lets it be read (connect to the primary)"),
    ("42501", StoreReadOnlyError, "the user may not do this (grant it)"),
    ("53100", StoreReadOnlyError, "the server's disk is full (make room)"),
    ("XX001", StoreCorruptError, "the server found damaged data (restore a backup)"),
    ("42P", StoreError, "the schema is not Edgewise's (is this another program's database?)"),
    ("08", StoreUnreachableError, "the connection broke (check that the server runs)"),
    ("57P", StoreUnreachableError, "the server is going down or coming up (try again)"),
)


def _postgres_error(cause: BaseException | None) -> tuple[type[StoreError], str] | None:
    state = getattr(cause, "sqlstate", None)
    if state is None:  # no server answered to give a code
        message = str(cause)
        if "password" in message or "authentication" in message:
            return StoreUnreachableError, "the server refuses the login (check user and password)"
        if 'database "' in message and "does not exist" in message:
            return StoreMissingError, "the server has no such database (create it first)"
        return StoreUnreachableError, "the server does not answer (check that it runs, host and port)"
    return next(((kind, advice) for prefix, kind, advice in _POSTGRES_KINDS if state.startswith(prefix)), None)
