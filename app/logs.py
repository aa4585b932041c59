"""Structured logs: one JSON object a line on stderr, and the protocol's settings of what is logged."""

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
    """What is logged, in the protocol's words. One for the process, as its log is."""

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
        """All settings."""
        return dict(self._values)

    def update(self, asked: Mapping[str, Any]) -> None:
        """Change settings, all or none of them; null leaves one as it is. Raises RequestError 400, 501."""
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
                raise RequestError(400, "logging: log_format is neither default nor ISO8601")
        elif key == "log_verbose_level":
            if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_VERBOSE:
                raise RequestError(400, f"logging: log_verbose_level is no integer in [0, {MAX_VERBOSE}]")
        elif not isinstance(value, bool):
            raise RequestError(400, f"logging: {key} is neither true nor false")

    def passes(self, _: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        """A structlog processor: drops what is not to be logged, stamps the rest."""
        wanted = self._values[_SWITCHES[method]] if method in _SWITCHES else self._values["log_verbose_level"] > 0
        if not wanted:
            raise structlog.DropEvent
        now = datetime.datetime.now(datetime.UTC)
        iso = self._values["log_format"] == "ISO8601"
        event["timestamp"] = now.isoformat().replace("+00:00", "Z") if iso else now.strftime("%m%d %H:%M:%S.%f")
        return event


SETTINGS: Final = LogSettings()


def configure() -> None:
    """One JSON object a line on stderr, as the settings say."""
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
