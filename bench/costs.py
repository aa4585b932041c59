"""Measure the start-up time with and without compiled code on disk, the speedup by threads, and the overhead of timing steps."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

import edgewise
from bench.models import exports_folder, feeds_of

TURN_RUNS = 5  # consecutive runs of one variant

_START = """
import sys, numpy as np, edgewise
edgewise.Session(sys.argv[1], threads=int(sys.argv[3])).run(dict(np.load(sys.argv[2])))
"""


def start_seconds(model: Path, threads: int, code: Path) -> float:
    """Return the seconds from starting Python to a model's first result. code: folder of the compiled code."""
    with tempfile.TemporaryDirectory() as folder:
        feeds = Path(folder) / "feeds.npz"
        np.savez(feeds, allow_pickle=False, **feeds_of(model))
        environment = {**os.environ, "EDGEWISE_CODE_CACHE": str(code)}
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", _START, str(model), str(feeds), str(threads)], check=True, env=environment)
        return time.perf_counter() - began


def medians_ns(model: Path, threads: int, seconds: float) -> tuple[float, float, float]:
    """Measure, in turns, the median run on one thread, on `threads`, and on `threads` with every step timed."""
    feeds = feeds_of(model)
    one, many = edgewise.Session(model, threads=1), edgewise.Session(model, threads=threads)
    ways: tuple[Callable[[Mapping[str, Any]], object], ...] = (
        one.executor(feeds).run,
        many.executor(feeds).run,
        many.executor(feeds).run_timed,
    )
    times: list[list[int]] = [[], [], []]
    for way in ways:
        way(feeds)
    deadline = time.perf_counter() + seconds
    while time.perf_counter() < deadline:
        for way, taken in zip(ways, times, strict=True):
            for _ in range(TURN_RUNS):
                began = time.perf_counter_ns()
                way(feeds)
                taken.append(time.perf_counter_ns() - began)
    one_ns, many_ns, timed_ns = (statistics.median(taken) for taken in times)
    return one_ns, many_ns, timed_ns


def compare_costs(names: list[str], threads: int, seconds: float) -> None:
    """Print, for each export, its start-up times, the speedup by threads and the overhead of timing each step."""
    table = Table(title=f"Start-up time, speedup by threads, overhead of timing; {threads} threads, medians in turns")
    for column in ("model", "cold start s", "warm start s", f"speedup by {threads} threads", "timed / untimed"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for name in names:
        path = exports_folder() / f"{name}.onnx"
        with tempfile.TemporaryDirectory() as code:
            cold, *warm = (start_seconds(path, threads, Path(code)) for _ in range(4))
        one_ns, many_ns, timed_ns = medians_ns(path, threads, seconds)
        gain, cost = one_ns / many_ns, timed_ns / many_ns
        table.add_row(name, f"{cold:.2f}", f"{min(warm):.2f}", f"{gain:.2f}", f"{cost:.3f}")
    Console(width=120).print(table)
