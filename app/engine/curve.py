"""The batch curve t(n): the time of a batch of n rows, which tells how much waiting for another row may save.

Plans predict the first curve. Once batches of one size have run, it is scaled to their measured time; once batches of two sizes
have run, it is the least-squares line through them, t(n) = a + b·n.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from itertools import pairwise
from typing import Literal

SAMPLES = 64  # batches remembered: a machine that becomes busy shows within that many
ENOUGH = 3  # runs of a size before its fastest one is compared
WORTH = 0.97  # of the time per row at the size below: a larger size must be faster than that
Source = Literal["none", "plan", "scaled", "measured"]
_ARRIVAL_SHARE = 0.2  # weight of the newest gap between arrivals


class BatchCurve:
    """A least-squares fit over the last batches, and the rate at which requests arrive."""

    def __init__(self) -> None:
        self._samples: deque[tuple[int, int]] = deque()
        self._sums = [0, 0, 0, 0]  # of rows, ns, rows², rows·ns over the samples: integers, so that they stay exact
        self._planned: tuple[tuple[int, float], ...] = ()
        self._last_ns: int | None = None
        self.gap_ns: float | None = None

    def arrived(self, now_ns: int, rows: int) -> None:
        """Note the arrival of a request with that many rows."""
        if self._last_ns is not None:
            gap = (now_ns - self._last_ns) / max(rows, 1)
            self.gap_ns = gap if self.gap_ns is None else self.gap_ns + _ARRIVAL_SHARE * (gap - self.gap_ns)
        self._last_ns = now_ns

    def planned(self, times_ns: Mapping[int, float]) -> None:
        """Set the curve that plans predict: rows -> nanoseconds."""
        self._planned = tuple(sorted(times_ns.items()))

    @property
    def source(self) -> Source:
        """What the curve is based on: plans, plans scaled to measured runs, or measured runs alone."""
        if self._line() is not None:
            return "measured"
        if not self._planned:
            return "none"
        return "scaled" if self._samples else "plan"

    def ran(self, rows: int, compute_ns: int) -> None:
        """Note the measured time of a batch with that many rows."""
        self._samples.append((rows, compute_ns))
        self._add(rows, compute_ns, 1)
        if len(self._samples) > SAMPLES:
            self._add(*self._samples.popleft(), -1)

    def _add(self, rows: int, ns: int, sign: int) -> None:
        for index, term in enumerate((rows, ns, rows * rows, rows * ns)):
            self._sums[index] += sign * term

    def predict_ns(self, rows: int) -> float | None:
        """Predict the time of a batch in nanoseconds; None without a plan and without runs of two different sizes."""
        line = self._line()
        if line is not None:
            return max(line[0] + line[1] * rows, 0.0)
        if not self._planned:
            return None
        planned_ns = _between(self._planned, rows)
        if not self._samples:
            return planned_ns
        ran_rows, ran_ns = self._samples[0][0], self._sums[1] / len(self._samples)  # without a line all runs have the same size
        return planned_ns * ran_ns / _between(self._planned, ran_rows)

    def gains(self, small: int, large: int) -> bool | None:
        """Whether the larger size takes less time per row; None until both sizes have run often enough to tell."""
        best = []
        for size in (small, large):
            times = [ns for rows, ns in self._samples if rows == size]
            if len(times) < ENOUGH:
                return None
            best.append(min(times) / size)
        return best[1] < WORTH * best[0]

    def _line(self) -> tuple[float, float] | None:
        count, (rows, ns, squares, products) = len(self._samples), self._sums
        spread = count * squares - rows * rows
        if not spread:
            return None
        slope = (count * products - rows * ns) / spread
        return (ns - slope * rows) / count, slope

    def patience_ns(self, rows: int, aim: int) -> int | None:
        """Return how many nanoseconds to hold `rows` waiting rows for a batch of `aim` rows; None without a curve or arrivals.

        Each row gains t(rows)/rows - t(aim)/aim, which bounds the time it may be held. If the missing rows are not expected
        within that time, holding costs more than it gains, and the result is 0.
        """
        if not rows:
            return 0
        here, there = self.predict_ns(rows), self.predict_ns(aim)
        if here is None or there is None or self.gap_ns is None:
            return None
        gain = here / rows - there / aim
        return int(gain) if self.gap_ns * (aim - rows) <= gain else 0


def _between(points: tuple[tuple[int, float], ...], rows: int) -> float:
    """Interpolate a polyline of (rows, ns); beyond its ends, scale the end point in proportion to the rows."""
    (first, low_ns), (last, high_ns) = points[0], points[-1]
    if rows <= first:
        return low_ns * rows / first
    for (left, left_ns), (right, right_ns) in pairwise(points):
        if rows <= right:
            return left_ns + (right_ns - left_ns) * (rows - left) / (right - left)
    return high_ns * rows / last
