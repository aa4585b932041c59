"""Wait for a condition that has to come true, however busy the machine is."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def until(condition: Callable[[], T], seconds: float = 120, every_s: float = 0.05) -> T:
    """Return the condition's value once it is true. Raises AssertionError if it is still false after that many seconds."""
    ends = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > ends:
            raise AssertionError(f"still {found!r} after {seconds:g} s")
        time.sleep(every_s)
    return found
