"""A mark which says that API keys were made, and which outlives the database that held them.

A server on loopback lets local callers in while its database has never held a key. The database alone cannot say that: one that
was deleted and made anew holds no key either. So the first key leaves a mark in up to three places, and one of them is enough to
keep the server closed: in the user's state directory under the database's name and under the model folder's, and beside the file
of a SQLite database.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path
from typing import Final

import platformdirs
from sqlalchemy import URL

from kernels.log import warn
from kernels.private import make_private_folder, private_opener
from kernels.record import record

_TEXT: Final = (
    "API keys were made for {subject}.\n"
    "While this file exists, an Edgewise server on loopback asks local callers for a key, even where its database holds none:\n"
    "make one with `edgewise keys create`, or set EDGEWISE_KEYLESS=true. See docs/serving.md.\n"
)
_ADDRESS: Final = frozenset({"host", "hostaddr", "port", "dbname", "service"})  # of a URL's query: what says which database it is
_POSTGRES_PORT: Final = 5432


@record
class KeyMark:
    """The places of one mark, each with what it says. `|` joins the places of two."""

    places: tuple[tuple[Path, str], ...]

    @staticmethod
    def of_database(url: URL) -> KeyMark:
        """Return the mark of a database. User, password and options in the URL are not part of its name."""
        if url.get_backend_name() == "sqlite":
            file = Path(os.path.realpath(str(url.database)))
            subject = f"the database {file}"
            return KeyMark(((_in_state_folder(subject), subject), (file.with_name(f".{file.name}.keyed"), subject)))
        query = {name: value for name, value in url.query.items() if name in _ADDRESS}
        named = URL.create("postgresql", host=url.host, port=url.port or _POSTGRES_PORT, database=url.database, query=query)
        subject = f"the database {named.render_as_string()}"
        return KeyMark(((_in_state_folder(subject), subject),))

    @staticmethod
    def of_models(folder: Path) -> KeyMark:
        """Return the mark of a model folder."""
        subject = f"a service of the models in {os.path.realpath(folder)}"
        return KeyMark(((_in_state_folder(subject), subject),))

    def __or__(self, other: KeyMark) -> KeyMark:
        return KeyMark(self.places + other.places)

    def found(self) -> Path | None:
        """Return the first place where the mark is; None where it is in none."""
        return next((path for path, _ in self.places if os.path.lexists(path)), None)

    def leave(self) -> None:
        """Leave the mark in all places. One that cannot be written to is logged: fewer places then keep the server closed."""
        for path, subject in self.places:
            if os.path.lexists(path):
                continue
            try:
                make_private_folder(path.parent)
                with contextlib.suppress(FileExistsError), open(path, "x", encoding="utf-8", opener=private_opener) as file:
                    file.write(_TEXT.format(subject=subject))
            except OSError as error:
                advice = "set EDGEWISE_KEYLESS=false, so that a lost database does not open the server to local callers"
                warn("mark of API keys not kept", file=str(path), reason=str(error), advice=advice)


def _in_state_folder(subject: str) -> Path:
    name = hashlib.sha256(subject.encode("utf-8", "surrogateescape")).hexdigest()[:32]
    return platformdirs.user_state_path("edgewise") / "keyed" / name
