"""How the steps of work grow with the size of its input, counted line by line: no clock, so a busy machine changes nothing."""

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

ROOT = str(Path(__file__).parent.parent)
FACTOR = 4  # between the two sizes
MOST = 1.5  # times FACTOR: n log n passes, n² does not
LEAST = 20  # executions of a line for each unit of size, from which on it counts

Line = tuple[CodeType, int]


def steep_lines(work: Callable[[int], object], size: int) -> list[str]:
    """Return the lines of the project that run more often than in proportion to the size, as "file:line few -> many".

    work: given a size, does work of that size. It runs three times, first to fill caches.
    """
    work(size)
    few, many = _counted(work, size), _counted(work, FACTOR * size)
    steep = {line: n for line, n in many.items() if n > LEAST * FACTOR * size and n > MOST * FACTOR * max(few[line], size)}
    return [f"{code.co_filename.removeprefix(ROOT)}:{at} {few[code, at]} -> {n}" for (code, at), n in steep.items()]


def _counted(work: Callable[[int], object], size: int) -> Counter[Line]:
    """Count how often each line of the project runs; a comprehension or generator counts once for every element."""
    counts: Counter[Line] = Counter()

    def step(frame: FrameType, event: str, _: Any) -> Any:
        counts[frame.f_code, frame.f_lineno] += event == "line"
        return step

    def enter(frame: FrameType, event: str, argument: Any) -> Any:
        return step if frame.f_code.co_filename.startswith(ROOT) else None

    before = sys.gettrace()
    sys.settrace(enter)
    try:
        work(size)
    finally:
        sys.settrace(before)
    return counts
