"""Structured logs: one JSON object per line on stderr, and the protocol's logging settings."""

from __future__ import annotations

import datetime
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any, Final

import structlog

from app.errors import RequestError

MAX_VERBOSE: Final = 100
_SWITCHES: Final = {"info": "log_info", "warning": "log_warning", "error": "log_error", "critical": "log_error"}


class LogSettings:
    """The logging settings of the Open Inference Protocol. One for the process, as its log is."""

    def __init__(self) -> None:
        self._values: dict[str, Any] = {
            "log_file": "",
            "log_info": True,
            "log_warning": True,
            "log_error": True,
            "log_verbose_level": 0,
            "log_format": "ISO8601",
        }

    def shown(self) -> dict[str, Any]:
        """Return all settings by name."""
        return dict(self._values)

    def update(self, asked: Mapping[str, Any]) -> None:
        """Change settings, all or none of them; null leaves a setting unchanged.

        Raises: RequestError 400 for an unknown setting or a wrong value, 501 for log_file.
        """
        given = {key: value for key, value in asked.items() if value is not None}
        for key, value in given.items():
            self._check(key, value)
        self._values.update(given)

    def _check(self, key: str, value: Any) -> None:
        if key not in self._values:
            raise RequestError(400, f"logging: unknown setting {key[:40]!r}, it has {', '.join(self._values)}")
        if key == "log_file":
            raise RequestError(501, "logging: log_file cannot be set over the network, the log goes to standard error")
        if key == "log_format":
            if value not in ("default", "ISO8601"):
                raise RequestError(400, "logging: log_format needs to be default or ISO8601")
        elif key == "log_verbose_level":
            if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_VERBOSE:
                raise RequestError(400, f"logging: log_verbose_level needs to be an integer in [0, {MAX_VERBOSE}]")
        elif not isinstance(value, bool):
            raise RequestError(400, f"logging: {key} needs to be true or false")

    def passes(self, _: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        """A structlog processor: drop events that the settings exclude, and add a timestamp to the others."""
        wanted = self._values[_SWITCHES[method]] if method in _SWITCHES else self._values["log_verbose_level"] > 0
        if not wanted:
            raise structlog.DropEvent
        now = datetime.datetime.now(datetime.UTC)
        iso = self._values["log_format"] == "ISO8601"
        event["timestamp"] = now.isoformat().replace("+00:00", "Z") if iso else now.strftime("%m%d %H:%M:%S.%f")
        return event


SETTINGS: Final = LogSettings()


def configure() -> None:
    """Configure structlog: one JSON object per line on stderr, filtered by SETTINGS."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            SETTINGS.passes,
            structlog.processors.dict_tracebacks,
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
