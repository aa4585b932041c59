"""URLs of databases: which ones are supported, and the default."""

from __future__ import annotations

import os

import platformdirs
from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

from scheduler.errors import StoreError


def default_url() -> str:
    """Return the URL in EDGEWISE_DB; where that is not set, of the SQLite database in the user's data directory."""
    if given := os.environ.get("EDGEWISE_DB"):
        return given
    path = platformdirs.user_data_path("edgewise") / "edgewise.db"
    return URL.create("sqlite", database=str(path)).render_as_string()


def checked_url(url: str) -> URL:
    """Return a URL of SQLite or PostgreSQL in SQLAlchemy's form. Raises StoreError for any other text."""
    try:
        parsed = make_url(url)
        backend = parsed.get_backend_name()
        if backend == "postgresql" and parsed.drivername == "postgresql":
            parsed = parsed.set(drivername="postgresql+psycopg")
        parsed.get_dialect()
    except (ArgumentError, NoSuchModuleError):
        raise StoreError("database: the URL cannot be read, need sqlite:///path or postgresql://user@host/name") from None
    if backend not in ("sqlite", "postgresql"):
        raise StoreError(f"database: {backend} is not supported, need sqlite or postgresql")
    if backend == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise StoreError("database: a SQLite database in memory is seen by one connection only, need sqlite:///path")
    return parsed
