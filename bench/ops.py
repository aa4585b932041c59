"""`python -m bench.ops` compares single ops with other engines, at shapes of real networks. Each shape gives one ratio."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnx
import typer
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console
from rich.table import Table

from bench.race import race

OPSET = 18


@dataclass(frozen=True, slots=True)
class Single:
    """One op on one image. net: network that the shape is from. inputs: its other inputs, as arrays or as shapes of weights."""

    net: str
    op: str
    shape: tuple[int, ...]
    inputs: Mapping[str, np.ndarray | tuple[int, ...]]
    attrs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """Return the op and its sizes, for the table."""
        given = {name: value if isinstance(value, tuple) else value.tolist() for name, value in self.inputs.items()}
        inputs = (f"{name} {_by(value)}" for name, value in given.items())
        attrs = (f"{name} {value}" for name, value in self.attrs.items() if name in ("mode", "strides", "group"))
        return f"{self.op} {_by(self.shape)}, {', '.join((*inputs, *attrs))}"

    def model(self) -> onnx.ModelProto:
        """Return a model of this op alone. An input given as a shape gets seeded weights."""
        rng, constants = np.random.default_rng(0), []
        for name, given in self.inputs.items():
            array = given if isinstance(given, np.ndarray) else rng.standard_normal(given, np.float32) / np.float32(given[0])
            constants.append(numpy_helper.from_array(array, name))
        named = list(self.inputs)
        read = ["x", "", *named] if self.op == "Resize" and named == ["scales"] else ["x", "", "", *named]
        node = helper.make_node(self.op, read if self.op == "Resize" else ["x", *named], ["y"], **self.attrs)
        x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name, dims in (("x", self.shape), ("y", None)))
        graph = helper.make_graph([node], self.net, [x], [y], constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)


def _by(sizes: Sequence[float]) -> str:
    return "×".join(f"{size:g}" for size in sizes)


def _scaled(net: str, shape: tuple[int, ...], factor: float, **attrs: Any) -> Single:
    return Single(net, "Resize", shape, {"scales": np.array((1, 1, factor, factor), np.float32)}, attrs)


def _sized(net: str, shape: tuple[int, ...], size: tuple[int, int], **attrs: Any) -> Single:
    return Single(net, "Resize", shape, {"sizes": np.array((*shape[:2], *size))}, attrs)


def _transposed(net: str, shape: tuple[int, ...], weights: tuple[int, ...], stride: int, pad: int = 0, group: int = 1) -> Single:
    rank = len(shape) - 2
    attrs = {"strides": [stride] * rank, "pads": [pad] * (2 * rank), "group": group}
    return Single(net, "ConvTranspose", shape, {"w": weights, "b": (weights[1] * group,)}, attrs)


_NEAREST = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
_CORNERS = {"mode": "linear", "coordinate_transformation_mode": "align_corners"}
SINGLES: Sequence[Single] = (
    _scaled("FPN", (1, 256, 25, 25), 2, **_NEAREST),
    _scaled("FPN", (1, 256, 100, 100), 2, **_NEAREST),
    _scaled("YOLO neck", (1, 128, 40, 40), 2, **_NEAREST),
    _scaled("U-Net", (1, 512, 32, 32), 2, mode="linear"),
    _scaled("U-Net", (1, 128, 128, 128), 2, **_CORNERS),
    _sized("DeepLab head", (1, 21, 65, 65), (513, 513), mode="linear"),
    _sized("SegFormer", (1, 256, 16, 16), (128, 128), mode="linear"),
    _scaled("super-resolution", (1, 64, 112, 112), 2, mode="cubic"),
    _scaled("super-resolution", (1, 3, 224, 224), 2, mode="cubic"),
    _sized("input", (1, 3, 640, 480), (224, 224), mode="linear", antialias=1),
    _transposed("U-Net", (1, 512, 32, 32), (512, 256, 2, 2), 2),
    _transposed("U-Net", (1, 128, 128, 128), (128, 64, 2, 2), 2),
    _transposed("DCGAN", (1, 100, 1, 1), (100, 1024, 4, 4), 1),
    _transposed("DCGAN", (1, 1024, 4, 4), (1024, 512, 4, 4), 2, 1),
    _transposed("DCGAN", (1, 256, 16, 16), (256, 128, 4, 4), 2, 1),
    _transposed("DCGAN", (1, 128, 32, 32), (128, 3, 4, 4), 2, 1),
    _transposed("pose", (1, 256, 32, 32), (256, 256, 4, 4), 2, 1),
    _transposed("super-resolution", (1, 56, 128, 128), (56, 1, 9, 9), 2, 4),
    _transposed("FCN", (1, 24, 64, 64), (24, 1, 4, 4), 2, 1, 24),
    _transposed("vocoder", (1, 512, 128), (512, 256, 16), 8, 4),
)


def compare_singles(singles: Sequence[Single], engines: Sequence[str], threads: int, rounds: int, seconds: float) -> None:
    """Print the µs of each engine and our time / the best peer's, for each op, and the geometric mean of these ratios."""
    table = Table(title=f"µs per run of one op, {threads} thread{'s' * (threads > 1)}; best median of {rounds} rounds, in turns")
    for column in ("from", "op", *engines, "ours / best peer"):
        table.add_column(column, justify="left" if column in ("from", "op") else "right")
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        for number, single in enumerate(singles):
            path = Path(folder) / f"single-{number}.onnx"
            onnx.save(single.model(), path)
            feeds = {"x": np.random.default_rng(0).standard_normal(single.shape, np.float32)}
            ran = {engine.name: engine for engine in race(path, list(engines), threads, feeds, rounds=rounds, seconds=seconds)}
            cells = [f"{ran[name].best_median_ns / 1e3:.0f}" if name in ran else "–" for name in engines]
            ours = [engine.best_median_ns for name, engine in ran.items() if name.startswith("edgewise")]
            peers = [engine.best_median_ns for name, engine in ran.items() if not name.startswith("edgewise")]
            if ours and peers:
                ratios.append(min(ours) / min(peers))
            table.add_row(single.net, single.text, *cells, f"{ratios[-1]:.2f}" if ours and peers else "–")
    console = Console(width=160)
    console.print(table)
    if ratios:
        mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
        console.print(f"geometric mean {mean:.2f}, worst {max(ratios):.2f}")


def main(
    ops: Annotated[str, typer.Option(help="Comma-separated ops.")] = "Resize,ConvTranspose",
    engines: Annotated[str, typer.Option(help="Comma-separated engines, as for `python -m bench`.")] = "edgewise,onnxruntime",
    threads: Annotated[str, typer.Option(help="Comma-separated thread counts.")] = "1,2",
    rounds: Annotated[int, typer.Option(help="Turns per engine.")] = 5,
    seconds: Annotated[float, typer.Option(help="Seconds of one turn.")] = 0.2,
) -> None:
    """Compare the ops and print one table per thread count."""
    wanted = [single for single in SINGLES if single.op in ops.split(",")]
    for count in map(int, threads.split(",")):
        compare_singles(wanted, engines.split(","), count, rounds, seconds)


if __name__ == "__main__":
    typer.run(main)
