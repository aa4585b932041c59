"""The models that are served: `name.onnx` or `name/<version>/model.onnx` below one folder, each with its state.

A model that cannot be loaded is listed with the reason and harms no other. `name.json` (or `name/config.json`) may hold a
description and labels of outputs.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import msgspec
import structlog

from app.engine.policy import DynamicBatching, InstanceGroup
from app.errors import RequestError
from kernels.errors import EdgewiseError
from scheduler.session import Session

log = structlog.get_logger("edgewise.repository")

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
FORBIDDEN_NAMES = frozenset({"stats"})  # /v2/models/stats is a route
MAX_CARD_BYTES = 4 * 2**20


class State(StrEnum):
    """As the protocol spells them."""

    LOADING = "LOADING"
    READY = "READY"
    UNAVAILABLE = "UNAVAILABLE"


class Card(msgspec.Struct, frozen=True):
    """What the file beside a model may say. labels: output name -> label of each class.

    max_batch_size: rows that may share a run, without a proof that they keep apart; 0 = none share, absent = what is proven.
    """

    description: str = ""
    labels: dict[str, list[str]] = {}
    max_batch_size: Annotated[int, msgspec.Meta(ge=0, le=65_536)] | None = None
    dynamic_batching: DynamicBatching | None = None
    instance_group: tuple[InstanceGroup, ...] = ()

    @property
    def instances(self) -> int | None:
        """Runs side by side; None where the file does not say."""
        return sum(group.count for group in self.instance_group) or None


@dataclass(slots=True)
class Served:
    """One version of one model."""

    name: str
    version: str
    path: Path
    card: Card = field(default_factory=Card)
    state: State = State.LOADING
    reason: str = ""
    session: Session | None = None


class Repository:
    """Finds and loads the models of a folder. Reads are lock-free: the table is replaced, never changed."""

    def __init__(self, folder: Path, threads: int | None = None, max_models: int = 256) -> None:
        self.folder = folder
        self.threads = threads
        self._max_models = max_models
        self._models: Mapping[str, Mapping[str, Served]] = {}
        self.loaded = threading.Event()

    def load_all(self) -> None:
        """Find every model, then load one after another; sets `loaded` at the end, whatever failed."""
        try:
            found = list(self._scan())
            table: dict[str, dict[str, Served]] = {}
            for served in found:
                table.setdefault(served.name, {})[served.version] = served
            self._models = table
            for served in found:
                self._load(served)
        finally:
            self.loaded.set()

    def _scan(self) -> Iterator[Served]:
        if not self.folder.is_dir():
            raise RequestError(404, f"models: {self.folder.name!r} is no folder, give one with --models")
        count = 0
        for path in sorted(self.folder.iterdir()):
            versions = {"1": path} if path.suffix == ".onnx" else _versions(path) if path.is_dir() else {}
            name = path.name.removesuffix(".onnx")
            if not versions:
                continue
            if not NAME.fullmatch(name) or name in FORBIDDEN_NAMES:
                log.warning("model skipped", name=name[:128], rule=f"need a name like {NAME.pattern}")
                continue
            for version, file in versions.items():
                count += 1
                if count > self._max_models:
                    log.warning("models skipped", limit=self._max_models)
                    return
                yield Served(name, version, file)

    def _load(self, served: Served) -> None:
        try:
            served.card = _card(self.folder, served.name)
            served.session = Session(served.path, threads=self.threads)
            served.state = State.READY
        except (EdgewiseError, OSError, msgspec.DecodeError) as error:
            served.state, served.reason = State.UNAVAILABLE, str(error).replace(str(self.folder), "")
            log.warning("model failed", model=served.name, version=served.version, reason=served.reason)

    @property
    def models(self) -> list[Served]:
        """Every version of every model, in order."""
        return [served for versions in self._models.values() for served in versions.values()]

    def find(self, name: str, version: str | None = None) -> Served:
        """That version, or the highest one that is ready. Raises RequestError 404 for what does not exist."""
        versions = self._models.get(name)
        if versions is None:
            raise RequestError(404, f"Request for unknown model: '{name[:128]}' is not found")
        if version is not None:
            if version not in versions:
                raise RequestError(404, f"Request for unknown model: '{name}' version {version[:20]} is not found")
            return versions[version]
        ready = [served for served in versions.values() if served.state is State.READY]
        return max(ready or versions.values(), key=lambda served: int(served.version))

    def ready(self, name: str, version: str | None = None) -> tuple[Served, Session]:
        """Like `find`, and able to run. Raises RequestError 503 where it is not."""
        served = self.find(name, version)
        if served.session is None:
            raise RequestError(503, f"model '{name}' version {served.version} is not ready: {served.reason or 'it is loading'}")
        return served, served.session


def _versions(folder: Path) -> dict[str, Path]:
    numbered = [path for path in folder.iterdir() if path.name.isdecimal() and path.name.isascii() and len(path.name) < 19]
    found = {str(int(path.name)): path / "model.onnx" for path in sorted(numbered, key=lambda path: int(path.name))}
    return {version: file for version, file in found.items() if file.is_file()}


def _card(folder: Path, name: str) -> Card:
    for path in (folder / f"{name}.json", folder / name / "config.json"):
        if path.is_file():
            if path.stat().st_size > MAX_CARD_BYTES:
                raise RequestError(400, f"{path.name}: larger than {MAX_CARD_BYTES} bytes, the limit")
            return msgspec.json.decode(path.read_bytes(), type=Card)
    return Card()
