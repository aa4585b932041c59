"""The protocol's trace settings, and the request timestamps that they request, which are logged."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any, Final

import structlog

from app.errors import RequestError
from app.watch.statistics import Timed

log = structlog.get_logger("edgewise.trace")

LEVELS: Final = ("OFF", "TIMESTAMPS", "TENSORS")
_START: Final[Mapping[str, Any]] = {
    "trace_level": ["OFF"],
    "trace_rate": "1000",
    "trace_count": "-1",
    "log_frequency": "0",
    "trace_file": "",
    "trace_mode": "triton",
}
_LEAST: Final = {"trace_rate": 1, "trace_count": -1, "log_frequency": 0}
MAX_NUMBER: Final = 2**31 - 1


class TraceSettings:
    """Trace settings of the server, and of single models that override them. Event loop only."""

    def __init__(self) -> None:
        self._server: dict[str, Any] = dict(_START)
        self._models: dict[str, dict[str, Any]] = {}
        self._seen = itertools.count()
        self._left: dict[str | None, int] = {}

    def shown(self, name: str | None) -> dict[str, Any]:
        """Return the settings that apply to a model, or to the server (None)."""
        return {**self._server, **self._models.get(name or "", {})}

    def update(self, name: str | None, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Change settings, all or none of them; null resets one. Raises RequestError 400, or 501 for an unsupported setting."""
        checked = {key: None if value is None else _checked(key, value) for key, value in asked.items() if _known(key)}
        target = self._server if name is None else self._models.setdefault(name, {})
        for key, value in checked.items():
            if value is not None:
                target[key] = value
            elif name is None:
                target[key] = _START[key]
            else:
                target.pop(key, None)
        if "trace_count" in checked:
            self._left[name] = int(self.shown(name)["trace_count"])
        return self.shown(name)

    def wanted(self, name: str) -> bool:
        """Whether to trace this request: every trace_rate-th one, until trace_count of them are traced."""
        holds = self.shown(name)
        if "TIMESTAMPS" not in holds["trace_level"]:
            return False
        if next(self._seen) % int(holds["trace_rate"]):
            return False
        key = name if "trace_count" in self._models.get(name, {}) else None
        left = self._left.get(key, -1)
        if left > 0:
            self._left[key] = left - 1
        return left != 0

    def record(self, name: str, version: str, timed: Timed) -> None:
        """Log the timestamps of a request, if it is to be traced."""
        if self.wanted(name):
            outcome = timed.outcome
            log.info(
                "timestamps",
                model=name,
                version=version,
                total_ns=timed.total_ns,
                compute_input_ns=timed.input_ns,
                queue_ns=outcome.queue_ns,
                compute_infer_ns=outcome.compute_ns,
                compute_output_ns=timed.output_ns,
                plan_id=outcome.plan_id,
                batch_rows=outcome.batch_rows,
            )


def _known(key: str) -> bool:
    if key not in _START:
        raise RequestError(400, f"trace: unknown setting {key[:40]!r}, it has {', '.join(_START)}")
    return True


def _checked(key: str, value: Any) -> Any:
    if key == "trace_file":
        raise RequestError(501, "trace: trace_file cannot be set over the network, traces go to the log")
    if key == "trace_level":
        levels = [value] if isinstance(value, str) else value
        if not isinstance(levels, list) or not levels or any(level not in LEVELS for level in levels):
            raise RequestError(400, f"trace: trace_level needs a list of {', '.join(LEVELS)}")
        if "OFF" in levels and len(levels) > 1:
            raise RequestError(400, "trace: trace_level OFF excludes other levels")
        if "TENSORS" in levels:
            raise RequestError(501, "trace: trace_level TENSORS is not supported, it would log clients' data")
        return list(dict.fromkeys(levels))
    if key == "trace_mode":
        if value not in ("triton", "opentelemetry"):
            raise RequestError(400, "trace: trace_mode needs to be triton or opentelemetry")
        return value
    text = str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""
    if not text.removeprefix("-").isdecimal() or len(text) > 11 or not _LEAST[key] <= int(text) <= MAX_NUMBER:
        raise RequestError(400, f"trace: {key} is {str(value)[:40]!r}, need an integer in [{_LEAST[key]}, {MAX_NUMBER}]")
    return str(int(text))
