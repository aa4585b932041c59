"""The repository's files: allowed names, versions of a model, the file beside a model, and files of a load request."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Final

import msgspec
import structlog

from app.engine.policy import Rules
from app.errors import RequestError
from graph.formats import registry
from kernels.private import make_private_folder, private_opener

log = structlog.get_logger("edgewise.repository")

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
FORBIDDEN_NAMES = frozenset({"stats"})  # /v2/models/stats is a route
MAX_CARD_BYTES = 4 * 2**20
MAX_ENTRIES = 100_000  # entries of the repository's folder that are looked at
SUFFIXES: Final = registry.suffixes()  # of model files
MODEL_FILE: Final = Path(f"model{SUFFIXES[0]}")  # where no suffix is given
_STAGED: Final = ".upload-"  # begins the names of folders for uploads; no model is named so
_UPLOAD = re.compile(r"([0-9]{1,18})/([A-Za-z0-9][A-Za-z0-9._-]{0,127}(?:/[A-Za-z0-9][A-Za-z0-9._-]{0,127}){0,7})")


class Card(Rules, frozen=True):
    """The file beside a model: rules, a description, and labels (output name -> the label of each class)."""

    description: str = ""
    labels: dict[str, list[str]] = msgspec.field(default_factory=dict)


def check_name(asked: str) -> str:
    """Return a model's name, trimmed and checked before any path is made from it. Raises RequestError 400."""
    name = asked.strip()
    if not name:
        raise RequestError(400, "model name: it is empty, need one")
    if ".." in name or "/" in name or "\\" in name or "\0" in name:
        raise RequestError(400, "model name: it must not contain path traversal characters")
    if not NAME.fullmatch(name) or name in FORBIDDEN_NAMES:
        raise RequestError(400, f"model name: need one that matches {NAME.pattern} and is not stats")
    return name


def models_in(folder: Path) -> list[str]:
    """Return the names of the models in a folder, sorted."""
    names = set()
    for count, path in enumerate(folder.iterdir()):
        if count >= MAX_ENTRIES:
            log.warning("repository entries skipped", limit=MAX_ENTRIES)
            break
        name = path.stem if path.suffix in SUFFIXES else path.name
        if path.suffix not in SUFFIXES and not (path.is_dir() and _numbered(path)):
            continue
        if not NAME.fullmatch(name) or ".." in name or name in FORBIDDEN_NAMES:
            log.warning("model skipped", name=name[:128], rule=f"need a name like {NAME.pattern}")
            continue
        names.add(name)
    return sorted(names)


def find_versions(folder: Path, name: str) -> dict[str, Path]:
    """Return version -> file for a checked name; a single file is version 1. Empty if there is no such model."""
    if (single := single_file(folder, name)) is not None:
        return {"1": single}
    return _numbered(folder / name) if (folder / name).is_dir() else {}


def single_file(folder: Path, name: str) -> Path | None:
    """The file `name.<suffix>` of a name that was checked; None where there is none."""
    return next((path for path in (folder / f"{name}{suffix}" for suffix in SUFFIXES) if path.is_file()), None)


def _numbered(folder: Path) -> dict[str, Path]:
    numbers = [path for path in folder.iterdir() if path.name.isdecimal() and path.name.isascii() and len(path.name) < 19]
    found = {str(int(path.name)): single_file(path, MODEL_FILE.stem) for path in sorted(numbers, key=lambda path: int(path.name))}
    return {version: file for version, file in found.items() if file is not None}


def read_card(folder: Path, name: str) -> Card:
    """Read the file beside a model; a default if there is none. Raises RequestError 400, msgspec.DecodeError."""
    for path in (folder / f"{name}.json", folder / name / "config.json"):
        if path.is_file():
            if path.stat().st_size > MAX_CARD_BYTES:
                raise RequestError(400, f"{path.name}: larger than {MAX_CARD_BYTES} bytes, the limit")
            return msgspec.json.decode(path.read_bytes(), type=Card)
    return Card()


@contextlib.contextmanager
def staging(folder: Path) -> Iterator[Path]:
    """Make a folder inside the repository's for one upload, which is removed when the block ends. Raises OSError.

    It is locked all the while, and the lock ends with the process: so `sweep` knows which folders a killed process has left.
    """
    while True:
        with tempfile.TemporaryDirectory(prefix=_STAGED, dir=folder) as made, _locked(Path(made)) as held:
            if held:
                yield Path(made)
                return
        # Another process swept between the making and the locking, and takes the new folder for one that was left.


def sweep(folder: Path) -> None:
    """Remove what uploads have left in the repository's folder when their process was killed. Those going on are left alone."""
    for path in folder.glob(f"{_STAGED}*"):
        if path.is_symlink() or not path.is_dir():  # not made by `staging`
            continue
        try:
            with _locked(path) as held:
                if held:
                    shutil.rmtree(path)
                    log.info("rest of an upload removed", name=path.name)
        except OSError as error:
            log.warning("rest of an upload not removed", name=path.name, reason=error.strerror)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Lock a folder for the block. Yields False where another process holds its lock or has removed it. Raises OSError."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        yield False
        return
    try:
        held = True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            held = False
        yield held and folder.exists()
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def unpacked(files: Mapping[str, bytes] | None) -> Iterator[Path | None]:
    """Write the files of a load request into a temporary folder, as versions of `model`; yield it, or None without files.

    files: "<version>/<path>" -> content.
    Raises: RequestError 400 for a path that is not made of plain names, or that cannot be written.
    """
    if not files:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="edgewise-upload-") as made:
        root = Path(made)
        for path, data in files.items():
            parts = _UPLOAD.fullmatch(path)
            if parts is None or ".." in path:
                raise RequestError(400, "file: need file:<version>/<path> of plain names, without path traversal characters")
            target = root / MODEL_FILE.stem / str(int(parts[1])) / PurePosixPath(parts[2])
            try:
                make_private_folder(target.parent)
                with open(target, "xb", opener=private_opener) as file:
                    file.write(data)
            except OSError as error:
                raise RequestError(400, f"file: it cannot be kept, {error.strerror}") from None
        yield root
