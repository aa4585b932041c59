"""A sweep as data: JSON, and a page that opens in any browser and loads nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import orjson

from app.load.figures import Step, doubts, knee
from app.pages.shell import STATIC, render
from kernels.record import record

_WIDTH, _HEIGHT, _MARGIN = 720, 320, 48  # of the chart, in pixels
_SHARES: Final = (("p50", "p50_ns"), ("p90", "p90_ns"), ("p99", "p99_ns"))


@record
class Report:
    """The steps of a sweep, and of what. interrupted: by Ctrl-C, before all were done."""

    url: str
    model: str
    version: str
    encoding: str
    steps: Sequence[Step]
    interrupted: bool

    @property
    def knee(self) -> Step | None:
        """The load up to which throughput is worth its latency; see `figures.knee`."""
        return knee(self.steps)

    def to_json(self) -> bytes:
        """Return it as JSON: times in nanoseconds, unless their names say seconds."""
        found = self.knee
        told: dict[str, Any] = {
            "url": self.url,
            "model": self.model,
            "version": self.version,
            "encoding": self.encoding,
            "interrupted": self.interrupted,
            "steps": self.steps,
            "knee": None if found is None else self.steps.index(found),
            "doubts": [doubts(each) for each in self.steps],
        }
        return orjson.dumps(told)

    def write_html(self, path: Path) -> None:
        """Write it as a page."""
        found = self.knee
        html = render(
            "load.html",
            report=self,
            knee=None if found is None else found.label,
            rows=[(each, doubts(each)) for each in self.steps],
            chart=_chart(self.steps),
            style=(STATIC / "style.css").read_text("utf-8"),
        )
        path.write_text(html, "utf-8")


def _chart(steps: Sequence[Step]) -> dict[str, Any] | None:
    """Return the lines of a chart, throughput to the right and latency upwards; None for fewer than two steps with answers."""
    answered = [each for each in steps if each.max_ns]
    if len(answered) < 2:
        return None
    most_per_s, most_ns = max(each.requests_per_s for each in answered), max(each.p99_ns or 0 for each in answered)
    lines = []
    for name, attribute in _SHARES:
        points = [(_x(each.requests_per_s / most_per_s), _y(getattr(each, attribute) / most_ns)) for each in answered]
        lines.append((name, " ".join(f"{x:.1f},{y:.1f}" for x, y in points), points))
    return {
        "width": _WIDTH,
        "height": _HEIGHT,
        "left": _x(0),
        "right": _x(1),
        "bottom": _y(0),
        "top": _y(1),
        "most_per_s": most_per_s,
        "most_ms": most_ns / 1e6,
        "lines": lines,
    }


def _x(share: float) -> float:
    return _MARGIN + share * (_WIDTH - 2 * _MARGIN)


def _y(share: float) -> float:
    return _HEIGHT - _MARGIN - share * (_HEIGHT - 2 * _MARGIN)
