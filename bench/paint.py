"""`python -m bench.paint [--rounds N]` measures how soon the dashboard's pages are painted, in Chromium on this machine.

Every load starts with an empty cache. The program exits with 1 if the median first paint of a page takes longer than LIMIT_MS.
The column "whole" says when all data of the page has arrived and is shown.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import structlog
from playwright.sync_api import Browser, sync_playwright
from rich.console import Console
from rich.table import Table

from bench.dashboard.models import mobilenet_v2
from bench.dashboard.pages import CHROMIUM, PAGES, settled
from bench.dashboard.site import site

LIMIT_MS = 1000.0
ROUNDS = 5
_PAINTS = """() => new Promise((found) => new PerformanceObserver((list) => {
    const at = Object.fromEntries(performance.getEntriesByType('paint').map((entry) => [entry.name, entry.startTime]));
    if ('first-contentful-paint' in at) found([at['first-paint'], at['first-contentful-paint']]);
}).observe({ type: 'paint', buffered: true }))"""


class Load(NamedTuple):
    """Times of one load, in milliseconds since the navigation began."""

    paint_ms: float
    content_ms: float
    whole_ms: float


def load(browser: Browser, address: str, path: str) -> Load:
    """Open a page with an empty cache and return its times."""
    context = browser.new_context(base_url=address, viewport={"width": 1280, "height": 860})
    page = context.new_page()
    page.goto(path)
    settled(page)
    whole_ms = page.evaluate("() => performance.now()")
    paint_ms, content_ms = page.evaluate(_PAINTS)
    context.close()
    return Load(paint_ms, content_ms, whole_ms)


def main() -> None:
    """Load every page and print the medians. Exits with a message if a first paint is above LIMIT_MS."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    rounds = parser.parse_args().rounds
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))  # print only the table
    table = Table(title=f"ms until a page is painted, median (and slowest) of {rounds} loads without a cache")
    table.add_column("page")
    for title in ("first paint", "first content", "whole"):
        table.add_column(title, justify="right")
    late = []
    with tempfile.TemporaryDirectory() as folder, site(Path(folder), mobilenet_v2()) as served, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for name, path in PAGES.items():
            loads = [load(browser, served.address, path.format_map(served.__dict__)) for _ in range(rounds)]
            columns = [[of[at] for of in loads] for at in range(len(Load._fields))]
            table.add_row(name, *(f"{statistics.median(column):.0f} ({max(column):.0f})" for column in columns))
            if statistics.median(columns[0]) > LIMIT_MS:
                late.append(name)
        browser.close()
    Console().print(table)
    if late:
        sys.exit(f"paint: first paint of {', '.join(late)} is late, need at most {LIMIT_MS:.0f} ms")


if __name__ == "__main__":
    main()
