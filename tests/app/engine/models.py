"""Write small models that the engine's tests serve, and load them. Every writer returns the file's path."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from app.models.files import Card
from app.models.repository import Served, State
from scheduler.session import Session

F = TensorProto.FLOAT


def _save(folder: Path, name: str, nodes: list[Any], inputs: list[Any], outputs: list[Any], constants: list[Any]) -> Path:
    graph = helper.make_graph(nodes, name, inputs, outputs, constants)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = folder / f"{name}.onnx"
    path.write_bytes(made.SerializeToString())
    return path


def dense(folder: Path, name: str = "dense") -> Path:
    """Write y = relu(x·w) over rows of 16, in which each row is independent of the others."""
    weights = numpy_helper.from_array(np.random.default_rng(3).standard_normal((16, 8), np.float32), "w")
    value = helper.make_tensor_value_info
    nodes = [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Relu", ["m"], ["y"])]
    return _save(folder, name, nodes, [value("x", F, ["n", 16])], [value("y", F, ["n", 8])], [weights])


def pick(folder: Path, name: str = "pick") -> Path:
    """Write y = table[ids]. A run is refused if an id is outside of the table."""
    table = numpy_helper.from_array(np.arange(20, dtype=np.float32).reshape(10, 2), "table")
    value = helper.make_tensor_value_info
    nodes = [helper.make_node("Gather", ["table", "ids"], ["y"])]
    return _save(folder, name, nodes, [value("ids", TensorProto.INT64, ["n"])], [value("y", F, ["n", 2])], [table])


def slow(folder: Path, rounds: int, name: str = "slow") -> Path:
    """Write a model that adds 1 to x `rounds` times, in a Loop that the executor runs step by step."""
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["d"]), helper.make_node("Add", ["v", "one"], ["u"])],
        "body",
        [value("i", TensorProto.INT64, []), value("c", TensorProto.BOOL, []), value("v", F, ["n"])],
        [value("d", TensorProto.BOOL, []), value("u", F, ["n"])],
    )
    constants = [
        numpy_helper.from_array(np.array(rounds, np.int64), "trips"),
        numpy_helper.from_array(np.array(True), "go"),
        numpy_helper.from_array(np.array([1], np.float32), "one"),
    ]
    nodes = [helper.make_node("Loop", ["trips", "go", "x"], ["y"], body=body)]
    return _save(folder, name, nodes, [value("x", F, ["n"])], [value("y", F, ["n"])], constants)


def chain(folder: Path, length: int, name: str = "chain") -> Path:
    """Write a chain of `length` products, each of another size: there is much to compile and little to compute."""
    random, widths = np.random.default_rng(5), range(16, 16 + length + 1)
    pairs = list(itertools.pairwise(widths))
    weights = [numpy_helper.from_array(random.standard_normal(pair, np.float32), f"w{n}") for n, pair in enumerate(pairs)]
    steps = ["x", *(f"v{n}" for n in range(1, length)), "y"]
    nodes = [helper.make_node("MatMul", [steps[n], f"w{n}"], [steps[n + 1]]) for n in range(length)]
    value = helper.make_tensor_value_info
    return _save(folder, name, nodes, [value("x", F, ["n", 16])], [value("y", F, ["n", 16 + length])], weights)


def wide(folder: Path, name: str = "wide") -> Path:
    """Write a model that repeats its input a thousand times, so that a small input has a large output."""
    value = helper.make_tensor_value_info
    shape = numpy_helper.from_array(np.array([1000], np.int64), "times")
    nodes = [helper.make_node("Tile", ["x", "times"], ["y"])]
    return _save(folder, name, nodes, [value("x", F, ["n"])], [value("y", F, ["m"])], [shape])


def served(path: Path, threads: int | None = None, **card: Any) -> Served:
    """Return a loaded entry of a model repository. card: fields of the model's card."""
    return Served(path.stem, "1", path, Card(**card), State.READY, "", Session(path, threads))
