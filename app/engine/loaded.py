"""The models loaded in one process, and their runs: the same code in an engine process and in the service's own process."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from app.engine.memory import release
from app.engine.messages import ModelFile, Shapes
from app.errors import UnbuiltError
from graph.batching import mixes_rows
from graph.budget import ProcessMemory
from graph.formats.registry import read
from graph.ir import Model
from graph.limits import Limits
from graph.run.bounds import RunBounds
from kernels.errors import DeviceLostError
from kernels.record import record
from kernels.spec import STRING, Array, DType
from scheduler.session import Session, SessionLimits

WAIT_S = 0.05  # between looks at the bounds of a run that waits for a session
RELEASE_S = 1.0  # after a model was dropped, or a run of it has ended: by then its last answer is out, and holds no memory of it


@record
class _LoadedModel:
    sessions: tuple[Session, ...]
    idle: queue.SimpleQueue[Session]


@record
class Computed:
    """Result of a run. compute_ns: time of the run alone, without waiting or building. plan_id: of the plan that it followed."""

    outputs: dict[str, Array]
    compute_ns: int
    plan_id: str


class LoadedModels:
    """Loads and runs models by number. Any number of threads may call it; a model has as many runs at once as instances.

    memory: that all of them and their runs take together; None = a budget of their own, as large as the first file says.
    """

    def __init__(self, memory: ProcessMemory | None = None) -> None:
        self._memory = memory
        self._lock = threading.Lock()
        self._models: dict[int, _LoadedModel | None] = {}  # None: expected

    def expect(self, number: int) -> None:
        """Announce that a model is about to be loaded, so that a later `drop` wins over the load."""
        self._models.setdefault(number, None)

    def load(self, number: int, file: ModelFile) -> None:
        """Read a model and make its sessions.

        Raises: what `read` raises; DeviceLostError when the file's content has changed; OutOfMemoryError where its weights do not
                fit beside those of other models.
        """
        if self._memory is None:
            self._memory = ProcessMemory(file.process_bytes)
        model = read(Path(file.path), Limits.of_bytes(file.model_bytes), mapped=False)
        if model.digest != file.digest:
            raise DeviceLostError(
                f"model '{file.name}': its file is {model.digest[:12]} now, {file.digest[:12]} was loaded, load it again"
            )
        sessions = self._sessions(file, model)
        self._memory.take_for(sessions[0], model.nbytes, f"model '{file.name}': its weights")
        self._keep(number, sessions)

    def adopt(self, number: int, file: ModelFile, model: Model) -> None:
        """Make the sessions of a model that has been read already, and whose weights are counted already."""
        self._keep(number, self._sessions(file, model))

    def _sessions(self, file: ModelFile, model: Model) -> tuple[Session, ...]:
        limits = SessionLimits(arena_bytes=file.arena_bytes, process=self._memory)
        return tuple(Session(model, threads=file.threads, limits=limits) for _ in range(file.instances))

    def _keep(self, number: int, sessions: tuple[Session, ...]) -> None:
        idle: queue.SimpleQueue[Session] = queue.SimpleQueue()
        for session in sessions:
            idle.put(session)
        with self._lock:
            if number in self._models:
                self._models[number] = _LoadedModel(sessions, idle)

    def follow(self, number: int, plan: bytes) -> None:
        """Run a plan, given as JSON, from now on. Runs go on meanwhile. Raises what `Session.follow` raises; PlanFormatError."""
        from scheduler.plan import Plan  # noqa: PLC0415  imports pydantic, which runs without a plan do not need

        sessions, found = self._find(number).sessions, Plan.from_json(plan)
        for session in sessions:
            session.follow(found)

    def drop(self, number: int) -> None:
        """Unload a model and give its memory back."""
        with self._lock:
            self._models.pop(number, None)
        release()
        _release_later()

    def arena_bytes(self, number: int) -> int:
        """Return the bytes of activations that a model keeps; 0 if it is not loaded."""
        loaded = self._models.get(number)
        return 0 if loaded is None else sum(session.memory_bytes - session.model.nbytes for session in loaded.sessions)

    def prove(self, number: int, shapes: Shapes) -> str:
        """Return why rows of these shapes (without axis 0) may not share a run; "" if they may."""
        return mixes_rows(self._find(number).sessions[0].model.graph, shapes)

    def prepare(self, number: int, shapes: Shapes) -> None:
        """Build the code for these input shapes, so that no request waits for it."""
        for session in self._find(number).sessions:
            session.executor({port.name: _blank(shapes[port.name], port.dtype) for port in session.inputs})

    def run(self, number: int, feeds: Mapping[str, Array], bounds: RunBounds, *, build: bool) -> Computed:
        """Run a model once.

        Args:   bounds: of the run; the wait for a session and the building of code count. build: build missing code here.
        Raises: UnbuiltError if code is missing and `build` is False; DeviceLostError if the model is not loaded; RunStoppedError
                where the bounds end the run.
        """
        loaded = self._find(number)
        session = _idle_session(loaded, bounds)
        try:
            ready = session.ready(feeds) if build else session.built(feeds)
            if ready is None:
                raise UnbuiltError("engine: the code for these shapes has to be built first")
            began_ns = time.perf_counter_ns()
            outputs = ready.executor.run(feeds, bounds)
            return Computed(outputs, time.perf_counter_ns() - began_ns, ready.plan_id)
        finally:
            loaded.idle.put(session)
            if number not in self._models:
                _release_later()

    def _find(self, number: int) -> _LoadedModel:
        loaded = self._models.get(number)
        if loaded is None:
            raise DeviceLostError(f"engine: model {number} is not loaded")
        return loaded


def _idle_session(loaded: _LoadedModel, bounds: RunBounds) -> Session:
    """Wait for a session that no other run uses. Raises RunStoppedError where the bounds end the run."""
    while True:
        bounds.check()
        with contextlib.suppress(queue.Empty):
            return loaded.idle.get(timeout=WAIT_S)


def _release_later() -> None:
    timer = threading.Timer(RELEASE_S, release)
    timer.daemon = True
    timer.start()


def _blank(shape: tuple[int, ...], dtype: DType) -> Array:
    return np.full(shape, "", dtype) if dtype == STRING else np.zeros(shape, dtype)
