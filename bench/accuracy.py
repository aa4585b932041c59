"""Measure each export's error against the same arithmetic in float64, and the peak memory of a process that runs it."""

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
    """Return a copy of the model in which every float32 tensor, and every cast to float32, is float64."""
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
    """Return the largest difference from the float64 run, relative to the largest output."""
    feeds = feeds_of(path)
    ours = edgewise.Session(path, threads=threads).run(feeds)
    double = {name: array.astype(np.float64) if array.dtype == np.float32 else array for name, array in feeds.items()}
    exact = edgewise.Session(in_double(onnx.load(path)), backend="numpy").run(double)
    return max(float(np.abs(ours[name] - exact[name]).max() / np.abs(exact[name]).max()) for name in exact)


def peak_bytes(name: str, path: Path, threads: int) -> int:
    """Return the peak resident memory, in bytes, of a process that loads the model into one engine and runs it for 0.2 s."""
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
        raise EngineFailedError(f"{name}: the worker answered {found!r} to `memory`, need a number of bytes")
    return found


def compare_accuracy(names: list[str], threads: int) -> None:
    """Print, for each export, its error and peak memory, and the peak memory of ONNX Runtime."""
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
    console.print(f"error above {LIMIT:.0e}: {', '.join(wrong) or 'none'}")
