"""The models that are served: `name.onnx` or `name/<version>/model.onnx` below one folder, each with its state.

A model that cannot be loaded is listed with the reason and affects no other. `name.json` (or `name/config.json`) may hold rules,
a description and labels of outputs.

Reloading builds the new sessions first, then replaces the old ones at once. Running requests keep the session with which they
began, and a failed reload leaves the served model unchanged. Unloading a model stops a load of it that is in progress, and `stop`
stops all loads.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

import msgspec
import structlog

from app.engine.memory import release
from app.engine.policy import Rules
from app.errors import RequestError
from app.models.config import NO_OVERRIDE, Override, check_override, parse_override
from app.models.files import MODEL_FILE, Card, check_name, find_versions, models_in, read_card, single_file, sweep, unpacked
from app.models.stopping import LoadBounds
from graph.budget import ProcessMemory
from graph.errors import LoadStoppedError
from graph.formats.registry import read
from graph.ir import Model
from graph.limits import Limits
from kernels.errors import EdgewiseError, OutOfMemoryError, memory_errors_of
from kernels.record import record
from scheduler.errors import NotFoundError
from scheduler.session import Session, SessionLimits

log = structlog.get_logger("edgewise.repository")


UNLOADED = "unloaded"


class State(StrEnum):
    """State of a model version, in the protocol's spelling."""

    LOADING = "LOADING"
    READY = "READY"
    UNAVAILABLE = "UNAVAILABLE"
    UNLOADING = "UNLOADING"


@dataclass(slots=True)
class Served:
    """One version of one model.

    reason: why it is not ready. users: number of requests that hold its session. load_ns: time that loading took.
    leaving: the unloaded entry that this one replaced, while requests still hold its session.
    kept: whether its file stays in the repository; a file that came with a load request does not.
    """

    name: str
    version: str
    path: Path
    card: Card = field(default_factory=Card)
    state: State = State.LOADING
    reason: str = ""
    session: Session | None = None
    override: Override = NO_OVERRIDE
    users: int = 0
    load_ns: int = 0
    leaving: Served | None = None
    kept: bool = True

    @property
    def rules(self) -> Rules:
        """Its batching and planning rules: the config of the load request over the file beside the model."""
        return self.override.over(self.card)

    @property
    def file(self) -> Path | None:
        """The file from which an engine process can load it; None if it was not kept."""
        return self.path if self.kept else None


@record
class ModelLimits:
    """Limits.

    models: their number. model_bytes: of one model's file and weights. arena_bytes: of its runs (`SessionLimits`). load_s: time
    of one load.
    """

    models: int = 256
    model_bytes: int = 2**31 - 1
    arena_bytes: int | None = None
    load_s: float = 300


_DEFAULT_LIMITS = ModelLimits()
_Versions = Mapping[str, Served]


class Repository:
    """Finds, loads and unloads the models of a folder. Reads take no lock: the table is replaced, never changed.

    memory: where the weights of all models, and what sessions take, are counted. A model that does not fit is not loaded.
    """

    def __init__(
        self,
        folder: Path,
        threads: int | None = None,
        limits: ModelLimits = _DEFAULT_LIMITS,
        memory: ProcessMemory | None = None,
    ) -> None:
        self.folder = folder
        self.threads = threads
        self.limits = limits
        self._memory = memory or ProcessMemory()
        self._models: Mapping[str, _Versions] = {}
        self._loading = threading.Lock()  # one load at a time, since peaks of memory would add up
        self._changing = threading.Lock()  # of the table; never held while a model is read
        self._load: LoadBounds | None = None  # of the version that is being loaded
        self._stopped = ""  # why no more models are loaded
        self.loaded = threading.Event()

    def load_all(self) -> None:
        """Find every model, load one after another, and set `loaded` at the end even after failures.

        What uploads to a process that was killed have left in the folder is removed before.
        """
        try:
            with self._loading:
                sweep(self.folder)
                found = list(self._scan())
                table: dict[str, dict[str, Served]] = {}
                for served in found:
                    table.setdefault(served.name, {})[served.version] = served
                self._models = table
                for served in found:
                    if self._stopped:
                        break
                    if self._models[served.name].get(served.version) is served:  # it was not unloaded meanwhile
                        with self._bounded(served.name) as bounds:
                            self._attempt(served, bounds)
        finally:
            self.loaded.set()

    def stop(self, reason: str) -> None:
        """End the load in progress, and all those that follow. reason: as in "the server is stopping"."""
        with self._changing:
            self._stopped = reason
            if self._load is not None:
                self._load.stop(reason)

    @contextlib.contextmanager
    def _bounded(self, name: str) -> Iterator[LoadBounds]:
        """Return the bounds of a load that lasts for the block. Raises RequestError 503 for one that is stopped in it."""
        bounds = LoadBounds(name, self.limits.load_s)
        with self._changing:
            self._load = bounds
            if self._stopped:
                bounds.stop(self._stopped)
        try:
            yield bounds
        except LoadStoppedError as error:
            raise RequestError(503, str(error)) from None
        finally:
            with self._changing:
                self._load = None

    def _scan(self) -> Iterator[Served]:
        if not self.folder.is_dir():
            raise RequestError(404, f"models: {self.folder.name!r} is not a folder, give one with --models")
        count = 0
        for name in models_in(self.folder):
            for version, file in find_versions(self.folder, name).items():
                count += 1
                if count > self.limits.models:
                    log.warning("models skipped", limit=self.limits.models)
                    return
                yield Served(name, version, file)

    def load(self, asked: str, config: str | None = None, files: Mapping[str, bytes] | None = None) -> list[Served]:
        """Load or reload a model: all its versions, or those that the config's version_policy chooses.

        Args:   config: JSON that overrides the file beside the model. files: "<version>/<path>" -> content, used instead of the
                folder's files.
        Raises: RequestError 404 for an unknown model, 400 for a name, config or model that breaks a rule, 503 when the load was
                stopped. After an error the model is served as before.
        """
        name = check_name(asked)
        override = NO_OVERRIDE if config is None else parse_override(name, config)
        with self._loading, self._bounded(name) as bounds, unpacked(files) as folder:
            root = self.folder if folder is None else folder
            versions = find_versions(root, name) if folder is None else find_versions(root, MODEL_FILE.stem)
            if not versions:
                raise RequestError(404, f"Request for unknown model: '{name}' is not found in the repository")
            before = self._models.get(name, {})
            if name not in self._models and len(self.models) + len(versions) > self.limits.models:
                raise RequestError(
                    400, f"model '{name}': {len(self.models)} models are served, the limit is {self.limits.models}"
                )
            made = {
                version: Served(name, version, versions[version], override=override, kept=folder is None)
                for version in override.version_policy.choose(versions)
            }
            serving = any(served.session is not None for served in before.values())
            if not serving:
                self._replace(name, made, bounds)  # so that the index shows it loading
            if errors := [error for served in made.values() if (error := self._attempt(served, bounds)) is not None]:
                raise errors[0]
            self._replace(name, made, bounds)
        if serving:
            before = {}
            release()
        return list(made.values())

    def admit(self, asked: str, staged: Path, *, replace: bool) -> Served:
        """Load a staged file, rename it to the folder's file of that name, and serve it.

        staged: a file on the same file system. replace: replace an existing single file of this name.
        Raises: RequestError 409 for a name that is taken; 400 for a name or a model that breaks a rule; OSError. After an error
                the staged file and the served model are unchanged.
        """
        name = check_name(asked)
        with self._loading, self._bounded(name) as bounds:
            self.check_place(name, replace=replace)
            served = Served(name, "1", staged)
            if (error := self._attempt(served, bounds)) is not None:
                raise error
            bounds.check()
            served.path = staged.replace(self.folder / f"{name}{staged.suffix}")
            self._replace(name, {served.version: served}, bounds)
        release()
        return served

    def check_place(self, name: str, *, replace: bool) -> None:
        """Check that a file may take that name in the folder. Raises RequestError 400 at the limit, 409 if the name is taken."""
        single, known = single_file(self.folder, name) is not None, name in self._models
        if not single and (known or find_versions(self.folder, name)):
            raise RequestError(409, f"model '{name}': it has versions in a folder, an upload can only replace a single file")
        if single and not replace:
            raise RequestError(409, f"model '{name}': this name is taken, choose another or set replace=true")
        if not known and len(self.models) >= self.limits.models:
            raise RequestError(400, f"model '{name}': {len(self.models)} models are served, the limit is {self.limits.models}")

    def _attempt(self, served: Served, bounds: LoadBounds) -> RequestError | None:
        """Load one version and set its state. Returns the error if it failed."""
        started_ns = time.perf_counter_ns()
        try:
            served.card = read_card(self.folder, served.name)
            with memory_errors_of("model"):
                session = self._session(served.path, bounds)
            check_override(served.name, served.override, served.rules, session)
            with self._changing:
                bounds.check()  # `unload` comes before and stops it here, or behind and finds it loaded
                served.session, served.reason, served.state = session, "", State.READY
        except LoadStoppedError as error:
            served.reason, served.state = str(error), State.UNAVAILABLE
            log.info("load stopped", model=served.name, version=served.version, reason=served.reason)
            return RequestError(503, served.reason)
        except (EdgewiseError, OSError, msgspec.DecodeError) as error:
            reason = error.strerror or "unreadable" if isinstance(error, OSError) else str(error)
            served.reason = reason.replace(str(served.path.parent), "").replace(str(self.folder), "")
            served.state = State.UNAVAILABLE
            log.warning("model failed", model=served.name, version=served.version, reason=served.reason)
            status = 503 if isinstance(error, OutOfMemoryError) else 400
            return RequestError(status, f"load failed for model '{served.name}' version {served.version}: {served.reason}")
        served.load_ns = time.perf_counter_ns() - started_ns
        return None

    def _session(self, path: Path, bounds: LoadBounds) -> Session:
        """Read a file and make a session of it, with its weights counted for as long as the session lives.

        Raises: OutOfMemoryError where the weights do not fit beside those of other models: before the file is read where its own
                size says so, else when external data is read too. LoadStoppedError if the load was stopped.
        """
        with self._memory.holding(path.stat().st_size, "model: its file"):
            # Not memory-mapped: files are overwritten in place while they are served.
            model = read(path, Limits.of_bytes(self.limits.model_bytes), mapped=False, check=bounds.check)
        if model.nbytes > self.limits.model_bytes:
            raise RequestError(400, f"model: {model.nbytes} bytes, the limit is {self.limits.model_bytes}")
        limits = SessionLimits(arena_bytes=self.limits.arena_bytes, process=self._memory)
        session = Session(model, threads=self.threads, limits=limits)
        self._memory.take_for(session, model.nbytes, "model: its weights")
        return session

    def _replace(self, name: str, versions: _Versions, bounds: LoadBounds) -> None:
        """Put the versions of a model into the table. Raises LoadStoppedError if the load was stopped."""
        with self._changing:
            bounds.check()
            self._models = {**self._models, name: versions}

    def unload(self, asked: str) -> list[Session]:
        """Refuse new requests at once, and stop a load of it in progress. Raises RequestError 400, 404.

        Returns the sessions that running requests may still hold.
        """
        name = check_name(asked)
        with self._changing:
            if name not in self._models:
                raise RequestError(404, f"Request for unknown model: '{name}' is not found")
            if self._load is not None and self._load.name == name:
                self._load.stop("the model was unloaded")
            before = self._models[name]
            self._models = {**self._models, name: {served.version: _unloaded(served) for served in before.values()}}
            self._settle()
        release()
        return [served.session for served in before.values() if served.session is not None]

    def _settle(self) -> None:
        """Drop unloaded entries that no request holds any more."""
        for served in self.models:
            leaving = served.leaving
            if leaving is not None and leaving.users == 0:
                served.state, served.leaving = State.UNAVAILABLE, None

    def index(self) -> list[dict[str, str]]:
        """List every version of every model with its state, and the names of models in the folder that were never loaded."""
        self._settle()
        table = self._models
        rows = [
            {"name": served.name, "version": served.version, "state": str(served.state), "reason": served.reason}
            for versions in table.values()
            for served in versions.values()
        ]
        unknown = [name for name in models_in(self.folder) if name not in table] if self.folder.is_dir() else []
        return rows + [{"name": name} for name in unknown[: self.limits.models]]

    @contextlib.contextmanager
    def lease(self, name: str, version: str | None = None) -> Iterator[tuple[Served, Session]]:
        """Hold a ready model for the block, though it may be unloaded meanwhile. Raises what `ready` raises."""
        served, session = self.ready(name, version)
        served.users += 1
        try:
            yield served, session
        finally:
            served.users -= 1
            if served.users == 0 and self._models.get(served.name, {}).get(served.version) is not served:
                self._settle()

    @property
    def models(self) -> list[Served]:
        """Every version of every model, in order."""
        return [served for versions in self._models.values() for served in versions.values()]

    @property
    def failed(self) -> list[Served]:
        """Versions that failed to load; those unloaded on request are not among them."""
        return [served for served in self.models if served.state is State.UNAVAILABLE and served.reason != UNLOADED]

    def serves(self, digest: str | None) -> bool:
        """Whether a ready model has this digest."""
        return any(served.session is not None and served.session.model.digest == digest for served in self.models)

    def by_digest(self, digest: str) -> Served:
        """Return the ready model with this digest. Raises NotFoundError."""
        for served in self.models:
            if served.session is not None and served.session.model.digest == digest:
                return served
        raise NotFoundError(f"model {digest[:64]}: not served")

    def model(self, digest: str) -> Model:
        """Return the graph and weights of the ready model with this digest. Raises NotFoundError."""
        session = self.by_digest(digest).session
        assert session is not None, "by_digest() found it by its session"  # noqa: S101
        return session.model

    def versions(self, name: str) -> list[Served]:
        """Return every version of one model. Raises RequestError 404 for an unknown model."""
        versions = self._models.get(name)
        if versions is None:
            raise RequestError(404, f"Request for unknown model: '{name[:128]}' is not found")
        return list(versions.values())

    def find(self, name: str, version: str | None = None) -> Served:
        """Return that version, or the highest ready one. Raises RequestError 404 for an unknown model or version."""
        versions = self.versions(name)
        if version is not None:
            found = next((served for served in versions if served.version == version), None)
            if found is None:
                raise RequestError(404, f"Request for unknown model: '{name}' version {version[:20]} is not found")
            return found
        ready = [served for served in versions if served.state is State.READY]
        return max(ready or versions, key=lambda served: int(served.version))

    def ready(self, name: str, version: str | None = None) -> tuple[Served, Session]:
        """Return a model that can run, with its session. Raises RequestError 404 like `find`, 503 if it is not ready."""
        served = self.find(name, version)
        session = served.session
        if session is None:
            raise RequestError(503, f"model '{name}' version {served.version} is not ready: {served.reason or 'it is loading'}")
        return served, session

    def close(self) -> None:
        """Unload everything."""
        self._models = {}


def _unloaded(served: Served) -> Served:
    """Return the entry that replaces an unloaded one; requests that hold the old entry keep its session."""
    leaving = served.leaving if served.session is None else served
    state = State.UNAVAILABLE if leaving is None else State.UNLOADING
    return Served(served.name, served.version, served.path, state=state, reason=UNLOADED, leaving=leaving)
