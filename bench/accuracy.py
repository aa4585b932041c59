"""How far each export's output is from the same arithmetic in float64, and what memory a process that runs it needs."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper
from rich.console import Console
from rich.table import Table

import edgewise
from bench.models import exports_folder, feeds_of
from bench.race import Engine, EngineFailedError, start

LIMIT = 1e-3  # of the largest output


def in_double(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with every float32 tensor and every cast to one turned into float64."""
    double = onnx.ModelProto()
    double.CopyFrom(model)
    for tensor in double.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name))
    for value in (*double.graph.input, *double.graph.output, *double.graph.value_info):
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT:
            value.type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    for node in double.graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t") and attribute.t.data_type == onnx.TensorProto.FLOAT:
                array = numpy_helper.to_array(attribute.t).astype(np.float64)
                attribute.t.CopyFrom(numpy_helper.from_array(array, attribute.t.name))
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == onnx.TensorProto.FLOAT:
                attribute.i = onnx.TensorProto.DOUBLE
    return double


def error_of(path: Path, threads: int) -> float:
    """The largest difference from float64, relative to the largest output."""
    feeds = feeds_of(path)
    ours = edgewise.Session(path, threads=threads).run(feeds)
    double = {name: array.astype(np.float64) if array.dtype == np.float32 else array for name, array in feeds.items()}
    exact = edgewise.Session(in_double(onnx.load(path)), backend="numpy").run(double)
    return max(float(np.abs(ours[name] - exact[name]).max() / np.abs(exact[name]).max()) for name in exact)


def peak_bytes(name: str, path: Path, threads: int) -> int:
    """The most memory that a process of one engine had resident, from loading to a few runs."""
    with tempfile.TemporaryDirectory() as folder:
        feeds = Path(folder) / "feeds.npz"
        np.savez(feeds, allow_pickle=False, **feeds_of(path))
        engine: Engine = start(name, path, threads, feeds, Path(folder))
        try:
            engine.answer()
            engine.ask("burst 0.2")
            found = engine.ask("memory")
        finally:
            engine.process.kill()
            engine.process.wait()
    if not isinstance(found, int):
        raise EngineFailedError(f"{name}: it answered {found!r} for its memory")
    return found


def compare_accuracy(names: list[str], threads: int) -> None:
    """Print error and peak memory per export, beside ONNX Runtime's memory."""
    table = Table(title=f"fp32 against float64, and peak resident memory, {threads} thread{'s' * (threads > 1)}")
    for column in ("model", "error / largest output", "edgewise MiB", "onnxruntime MiB", "ratio"):
        table.add_column(column, justify="left" if column == "model" else "right")
    wrong = []
    for name in names:
        path = exports_folder() / f"{name}.onnx"
        error = error_of(path, threads)
        wrong += [name] if not error < LIMIT else []
        ours, theirs = (peak_bytes(engine, path, threads) for engine in ("edgewise", "onnxruntime"))
        table.add_row(name, f"{error:.1e}", f"{ours / 2**20:.0f}", f"{theirs / 2**20:.0f}", f"{ours / theirs:.2f}")
    console = Console(width=120)
    console.print(table)
    console.print(f"above {LIMIT:.0e}: {', '.join(wrong) or 'none'}")
