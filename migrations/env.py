"""The entry point of Alembic. `Store.upgrade()` passes its connection; on the command line it is `-x url=…`.

Migrations go forward only. Nothing here reads the working directory or a configuration file of the user.
"""

from __future__ import annotations

from alembic import context
from sqlalchemy import Connection, create_engine

from scheduler.store.database import VERSION_TABLE
from scheduler.store.schema import Base
from scheduler.store.urls import default_url


def _run(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        version_table=VERSION_TABLE,
        transactional_ddl=True,  # SQLite's is too, once Python does not commit on its own
        render_as_batch=connection.dialect.name == "sqlite",  # SQLite alters a table by copying it
    )
    with context.begin_transaction():
        context.run_migrations()


if (given := context.config.attributes.get("connection")) is not None:
    _run(given)
else:
    with create_engine(context.get_x_argument(as_dictionary=True).get("url", default_url())).begin() as opened:
        _run(opened)
