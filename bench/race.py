"""Run engines in turns, each warm in a process of its own, so that a drift of the machine's speed affects all alike."""

from __future__ import annotations

import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from graph.formats.registry import read

ERROR = 1e-3  # of the largest output, that results may differ from a peer's
QUANTISED_ERROR = 0.25  # the same: ONNX Runtime's own fused and unfused ops differ by 0.18 on a quantised ViT
WORKER = Path(__file__).with_name("worker.py")


class EngineFailedError(Exception):
    """An engine could not be loaded, died, or gave a wrong answer. The message says which, or ends with the engine's log."""


@dataclass
class Engine:
    """A warm worker process."""

    name: str
    process: subprocess.Popen[str]
    log: Path
    version: str = ""
    load_ns: int = 0
    bursts: list[list[int]] = field(default_factory=list)

    def ask(self, command: str) -> object:
        """Send one command and wait for its answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        return self.answer()

    def answer(self) -> Any:
        """Read the worker's next line. Raises EngineFailedError if the worker has died."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise EngineFailedError(f"{self.name}: {self.log.read_text(errors='replace').strip()[-400:]}")
        return json.loads(line)

    @property
    def best_median_ns(self) -> float:
        """Return the best round's median in ns. Other work on the machine can only add time."""
        return min(statistics.median(times) for times in self.bursts)

    @property
    def spread_percent(self) -> float:
        """Return by how much the slowest round's median exceeds the fastest round's, in percent."""
        medians = [statistics.median(times) for times in self.bursts]
        return 100 * (max(medians) / min(medians) - 1)


def start(
    name: str, model: Path, threads: int, feeds: Path, folder: Path, settings: Mapping[str, str] = MappingProxyType({})
) -> Engine:
    """Start a worker, whose environment has these settings besides.

    Peers run under the interpreter that EDGEWISE_PEERS_PYTHON names, by default under this one.

    `edgewise@DIR` is the engine of another checkout, such as the commit before a change.
    """
    engine, _, checkout = name.partition("@")
    ours = engine.startswith("edgewise")
    python = sys.executable if ours else os.environ.get("EDGEWISE_PEERS_PYTHON", sys.executable)
    hidden = {"OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"}  # a pinned BLAS kernel could slow an engine down
    environment = {k: v for k, v in os.environ.items() if k not in hidden}
    environment |= {**settings, "OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": str(threads)}
    environment["PIP_NO_INDEX"] = "1"  # MNN's converter installs packages wherever it finds a pip
    if ours:
        environment["PYTHONPATH"] = checkout or str(WORKER.parent.parent)
    log = folder / f"{_file_name(name)}-{threads}.log"
    with log.open("w") as errors:
        process = subprocess.Popen(
            [python, str(WORKER), engine, str(model), str(threads), str(feeds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=environment,
        )
    return Engine(name, process, log)


def _file_name(engine: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in engine)


def race(model: Path, names: list[str], threads: int, feeds: dict[str, np.ndarray], rounds: int, seconds: float) -> list[Engine]:
    """Load the engines, check Edgewise's outputs against the first peer's, then time all engines in turns.

    seconds: length of one turn. Return the engines that ran. A peer that cannot be loaded is left out, with the reason on stderr.
    Raises EngineFailedError if Edgewise cannot be loaded or its outputs differ.
    """
    cache = Path(os.environ.get("EDGEWISE_BENCH_CACHE", tempfile.gettempdir())) / "edgewise-bench"
    cache.mkdir(parents=True, exist_ok=True)
    feeds_path = cache / f"{model.stem}.npz"
    np.savez(feeds_path, allow_pickle=False, **feeds)
    engines: list[Engine] = []
    try:
        for name in names:
            engine = start(name, model, threads, feeds_path, cache)
            try:
                ready = engine.answer()
                engine.version, engine.load_ns = ready["version"], ready["load_ns"]
                engines.append(engine)
            except EngineFailedError as error:
                engine.process.kill()
                if name.startswith("edgewise"):
                    raise
                sys.stderr.write(f"left out: {error}\n")
        reduced = is_quantised(model) or any(name.endswith(":bf16") for name in names)
        agree(engines, cache, QUANTISED_ERROR if reduced else ERROR)
        for turn in range(rounds):
            for engine in engines if turn % 2 == 0 else reversed(engines):
                times = engine.ask(f"burst {seconds}")
                assert isinstance(times, list)
                engine.bursts.append(times)
        return engines
    finally:
        for engine in engines:
            engine.process.kill()
            engine.process.wait()


def is_quantised(model: Path) -> bool:
    """Whether a file has quantised ops, whose results engines round differently, and then compute with."""
    return any("Quantize" in node.op or "QLinear" in node.op for node in read(model).graph.nodes)


def agree(engines: list[Engine], folder: Path, limit: float) -> None:
    """Raise EngineFailedError if an output of Edgewise differs from the first peer's by more than this share of its largest."""
    outputs = {}
    for engine in engines:
        path = folder / f"{_file_name(engine.name)}-out.npz"
        engine.ask(f"outputs {path}")
        outputs[engine.name] = next(iter(dict(np.load(path)).values()))
    ours = [name for name in outputs if name.startswith("edgewise")]
    truths = [value for name, value in outputs.items() if name not in ours][:1]
    for name, truth in itertools.product(ours, truths):
        error, largest = np.abs(outputs[name].ravel() - truth.ravel()).max(), np.abs(truth).max()
        if not error <= limit * largest:
            raise EngineFailedError(f"{name}: differs from the first peer by {error:.1e}, its largest output is {largest:.1e}")
