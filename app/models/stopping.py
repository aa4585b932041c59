"""Ending the load of a model from another thread, or once it has taken too long.

A load asks between the nodes of the model, so it ends within milliseconds. What it does in one piece is not interrupted: reading,
hashing and parsing the file, which take about a second for a gigabyte.
"""

from __future__ import annotations

import time

from graph.errors import LimitError, LoadStoppedError


class LoadBounds:
    """The bounds of one load. `check` is for the thread that loads, `stop` for any other.

    Args: name: of the model. timeout_s: from now on.
    """

    def __init__(self, name: str, timeout_s: float) -> None:
        self.name = name
        self._timeout_s = timeout_s
        self._ends = time.monotonic() + timeout_s
        self._reason = ""

    def stop(self, reason: str) -> None:
        """End the load at its next check. reason: for the message; the first one counts."""
        self._reason = self._reason or reason

    def check(self) -> None:
        """Raise LoadStoppedError if the load was stopped, LimitError if it has taken too long."""
        if self._reason:
            raise LoadStoppedError(f"load of model '{self.name}': stopped, {self._reason}")
        if time.monotonic() > self._ends:
            raise LimitError(f"load: not done after {self._timeout_s:g} s, the limit load_timeout_s (model '{self.name}')")
