"""Runs that have not ended though their deadline has passed, since one of their steps takes that long."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import structlog

from app.engine.requests import Batch, Clock
from graph.errors import RunTimeoutError

log = structlog.get_logger("edgewise.engine")

PATIENCE_S = 1.0  # for a run to notice its deadline, between two of its steps, or for its process to be killed


class OverdueRuns:
    """The runs of an engine that are still computing PATIENCE_S after their deadline. Event loop only.

    Their clients are answered then; their cores stay in use until they end.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._models: dict[Batch, str] = {}

    def __len__(self) -> int:
        return len(self._models)

    @contextmanager
    def watch(self, model: str, batch: Batch, ends_ns: int) -> Iterator[None]:
        """Watch the run of a batch that lasts for the block. ends_ns: its deadline, on the clock."""
        timer = self._clock.call_at(ends_ns + round(PATIENCE_S * 1e9), lambda: self._note(model, batch))
        try:
            yield
        finally:
            timer.cancel()
            if self._models.pop(batch, None) is not None:
                log.info("overdue run ended", model=model)

    def reason(self, model: str | None = None) -> str:
        """Say which run is overdue, of all or of one model; "" if none is."""
        late = next((name for name in self._models.values() if model in (None, name)), None)
        return "" if late is None else f"a run of model '{late}' has not ended {PATIENCE_S:g} s after its deadline"

    def _note(self, model: str, batch: Batch) -> None:
        self._models[batch] = model
        log.warning("run overdue", model=model, requests=len(batch.requests))
        batch.answer(RunTimeoutError(f"run: not done at its deadline, one of its steps goes on (model '{model}')"))
