"""`python -m bench.forests` compares forests of decision trees with other engines: how many trees, how deep, how many rows."""

from __future__ import annotations

import itertools
import math
import tempfile
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import onnx
import typer
from onnx import TensorProto, helper
from rich.console import Console
from rich.table import Table

from bench.race import race

FEATURES, CLASSES, SAMPLES = 20, 3, 1000
Kind = Literal["regressor", "classifier"]


class _Trees:
    """Trees grown on random samples, with random splits, as lists of ONNX's attributes."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self.samples = self._rng.standard_normal((SAMPLES, FEATURES)).astype(np.float32)
        self.nodes: list[tuple[int, int, int, float, str, int, int]] = []  # tree, node, feature, split, mode, true, false
        self.leaves: list[tuple[int, int]] = []  # tree, node

    def grow(self, tree: int, depth: int) -> None:
        """Grow one tree until its leaves hold one sample, or to a depth."""
        waiting, count = [(0, np.arange(SAMPLES), 0)], 1
        while waiting:
            node, rows, level = waiting.pop()
            if len(rows) < 2 or level == depth:
                self.nodes.append((tree, node, 0, 0.0, "LEAF", 0, 0))
                self.leaves.append((tree, node))
                continue
            feature = int(self._rng.integers(FEATURES))
            values = self.samples[rows, feature]
            split = float(values[self._rng.integers(len(rows))])
            below = values <= split
            if below.all():
                split = float(np.partition(values, -2)[-2])
                below = values <= split
            self.nodes.append((tree, node, feature, split, "BRANCH_LEQ", count, count + 1))
            waiting += [(count, rows[below], level + 1), (count + 1, rows[~below], level + 1)]
            count += 2


def forest_model(kind: Kind, trees: int, depth: int | None) -> onnx.ModelProto:
    """Return a forest of that many trees. depth: None grows them until every leaf holds one sample."""
    grown = _Trees(trees)
    for tree in range(trees):
        grown.grow(tree, SAMPLES if depth is None else depth)
    names = ("treeids", "nodeids", "featureids", "values", "modes", "truenodeids", "falsenodeids")
    attrs: dict[str, Any] = {
        f"nodes_{name}": list(column) for name, column in zip(names, zip(*grown.nodes, strict=True), strict=True)
    }
    width, prefix = (1, "target") if kind == "regressor" else (CLASSES, "class")
    weights = np.random.default_rng(0).dirichlet(np.ones(CLASSES), len(grown.leaves)).astype(np.float32)[:, :width] / trees
    attrs |= {
        f"{prefix}_treeids": [tree for tree, _ in grown.leaves for _ in range(width)],
        f"{prefix}_nodeids": [node for _, node in grown.leaves for _ in range(width)],
        f"{prefix}_ids": list(range(width)) * len(grown.leaves),
        f"{prefix}_weights": weights.reshape(-1).tolist(),
    }
    attrs |= {"n_targets": 1} if kind == "regressor" else {"classlabels_int64s": list(range(CLASSES))}
    op, outputs = (
        ("TreeEnsembleRegressor", ["scores"]) if kind == "regressor" else ("TreeEnsembleClassifier", ["label", "scores"])
    )
    node = helper.make_node(op, ["x"], outputs, domain="ai.onnx.ml", **attrs)
    types: dict[str, tuple[int, list[int | None]]] = {
        "label": (TensorProto.INT64, [None]),
        "scores": (TensorProto.FLOAT, [None, width]),
    }
    graph = helper.make_graph(
        [node],
        "forest",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, FEATURES])],
        [helper.make_tensor_value_info(name, *types[name]) for name in outputs],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 3)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def main(
    trees: Annotated[str, typer.Option(help="Comma-separated numbers of trees.")] = "10,100,500",
    depths: Annotated[str, typer.Option(help="Comma-separated depths; 0 is unlimited.")] = "6,0",
    rows: Annotated[str, typer.Option(help="Comma-separated numbers of rows.")] = "1,1000",
    kinds: Annotated[str, typer.Option(help="regressor, classifier or both.")] = "regressor,classifier",
    engines: Annotated[str, typer.Option(help="Comma-separated engines, as for `python -m bench`.")] = "edgewise,onnxruntime",
    threads: Annotated[str, typer.Option(help="Comma-separated thread counts.")] = "1,2",
    rounds: Annotated[int, typer.Option(help="Turns per engine.")] = 5,
    seconds: Annotated[float, typer.Option(help="Seconds of one turn.")] = 0.2,
) -> None:
    """Compare the forests and print one table: µs of each engine, and ours divided by the best peer's."""
    table = Table(title=f"µs per run of a forest; best median of {rounds} rounds, in turns")
    names = engines.split(",")
    for column in ("forest", "rows", "threads", *names, "ours / best peer"):
        table.add_column(column, justify="left" if column == "forest" else "right")
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        for kind, count, depth in itertools.product(kinds.split(","), map(int, trees.split(",")), map(int, depths.split(","))):
            path = Path(folder) / f"{kind}-{count}-{depth}.onnx"
            onnx.save(forest_model("regressor" if kind == "regressor" else "classifier", count, depth or None), path)
            for size, threads_used in itertools.product(map(int, rows.split(",")), map(int, threads.split(","))):
                feeds = {"x": np.random.default_rng(1).standard_normal((size, FEATURES), np.float32)}
                ran = {
                    each.name: each.best_median_ns
                    for each in race(path, names, threads_used, feeds, rounds=rounds, seconds=seconds)
                }
                ours = [ns for name, ns in ran.items() if name.startswith("edgewise")]
                peers = [ns for name, ns in ran.items() if not name.startswith("edgewise")]
                ratio = min(ours) / min(peers) if ours and peers else math.nan
                ratios.append(ratio)
                cells = [f"{ran[name] / 1e3:.1f}" if name in ran else "–" for name in names]
                table.add_row(
                    f"{kind}, {count} trees, depth {depth or '∞'}", str(size), str(threads_used), *cells, f"{ratio:.2f}"
                )
    console = Console(width=120)
    console.print(table)
    known = [ratio for ratio in ratios if not math.isnan(ratio)]
    if known:
        mean = math.exp(sum(map(math.log, known)) / len(known))
        console.print(f"geometric mean {mean:.2f}, worst {max(known):.2f}")


if __name__ == "__main__":
    typer.run(main)
