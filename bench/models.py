"""Compare whole models with other engines. All engines are warm and run in turns; each model gives one ratio."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
import onnx
from rich.console import Console
from rich.table import Table

from bench.race import Engine, race

TOKENS = 1000  # different token ids; vocabularies of small models are small, too


def exports_folder() -> Path:
    """Return the folder of exported models. Exits with instructions when EDGEWISE_EXPORTS is unset."""
    folder = os.environ.get("EDGEWISE_EXPORTS")
    if not folder:
        sys.exit("bench: EDGEWISE_EXPORTS is not set, need the folder of exported models (see bench/README.md)")
    return Path(folder)


def feeds_of(model: Path, dims: Mapping[str, int] = MappingProxyType({})) -> dict[str, np.ndarray]:
    """Return seeded inputs: normally distributed images, random token ids, and masks of ones.

    dims: sizes of named dimensions; others that are open are 1.
    """
    rng = np.random.default_rng(0)
    feeds: dict[str, np.ndarray] = {}
    for value in onnx.load(model, load_external_data=False).graph.input:
        shape = [dim.dim_value or dims.get(dim.dim_param, 1) for dim in value.type.tensor_type.shape.dim]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        if dtype.kind == "f":
            feeds[value.name] = rng.standard_normal(shape, np.float32).astype(dtype, copy=False)
        elif "mask" in value.name:
            feeds[value.name] = np.ones(shape, dtype)
        else:
            feeds[value.name] = rng.integers(0, TOKENS, shape).astype(dtype, copy=False)
    return feeds


def is_ours(engine: str) -> bool:
    """Return whether an engine is the Edgewise of this checkout. One of another checkout (`edgewise@DIR`) counts as a peer."""
    return engine.startswith("edgewise") and "@" not in engine


def compare(
    names: list[str],
    engines: list[str],
    threads: int,
    rounds: int,
    seconds: float,
    dims: Mapping[str, int] = MappingProxyType({}),
) -> None:
    """Print the ms of each engine and our time / the best peer's, for each model, and the geometric mean of these ratios.

    dims: sizes of named dimensions, as in `feeds_of`.
    """
    console = Console(width=140)  # wide enough for every engine, also when piped
    rows: list[tuple[str, list[Engine]]] = []
    for name in names:
        model = exports_folder() / f"{name}.onnx"
        rows.append((name, race(model, engines, threads, feeds_of(model, dims), rounds=rounds, seconds=seconds)))
        console.print(f"[dim]{name}: done, spread {max(e.spread_percent for e in rows[-1][1]):.1f} %[/dim]")
    versions = {engine.name: engine.version for _, ran in rows for engine in ran}
    table = Table(
        title=f"ms per inference, batch 1, {threads} thread{'s' * (threads > 1)}; best median of {rounds} rounds, in turns"
    )
    table.add_column("model")
    for name in engines:
        table.add_column(f"{name} {versions.get(name, '')}", justify="right")
    table.add_column("ours / best peer", justify="right")
    ratios = []
    for model_name, ran in rows:
        by_name = {engine.name: engine for engine in ran}
        cells = [f"{by_name[name].best_median_ns / 1e6:.2f}" if name in by_name else "–" for name in engines]
        ours = [e.best_median_ns for e in ran if is_ours(e.name)]
        peers = [e.best_median_ns for e in ran if not is_ours(e.name)]
        if ours and peers:
            ratios.append(min(ours) / min(peers))
        table.add_row(model_name, *cells, f"{ratios[-1]:.2f}" if ours and peers else "–")
    console.print(table)
    if ratios:
        mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
        console.print(f"geometric mean {mean:.2f}, worst {max(ratios):.2f}")
