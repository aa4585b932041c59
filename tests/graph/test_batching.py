"""Models that are proven to keep the rows of a batch apart also compute so, and models that mix rows are refused."""

import ast
import inspect
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from graph import batching
from graph.batching import mixes_rows
from graph.formats.registry import read
from graph.passes.optimise import optimise
from graph.run.executor import Executor
from graph.shapes import bind
from kernels.registry import operators

F, I64 = TensorProto.FLOAT, TensorProto.INT64


def model(
    nodes: list[Any], out: list[Any], constants: dict[str, Any] | None = None, shape: tuple[Any, ...] = ("n", 4, 6, 6)
) -> Any:
    value = helper.make_tensor_value_info
    stored = [numpy_helper.from_array(np.asarray(array), name) for name, array in (constants or {}).items()]
    graph = helper.make_graph(nodes, "g", [value("x", F, shape)], [value("y", F, out)], stored)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return read(made.SerializeToString())


def node(op: str, inputs: str, output: str = "y", **attrs: Any) -> Any:
    return helper.make_node(op, inputs.split(), [output], **attrs)


def ints(*values: int) -> Any:
    return np.array(values, np.int64)


RANDOM = np.random.default_rng(0)
W = RANDOM.standard_normal((5, 4, 3, 3), np.float32)
KEEPS = {
    "convolution": model([node("Conv", "x w")], ["n", 5, 4, 4], {"w": W}),
    "channel mean": model([node("ReduceMean", "x", axes=[2, 3])], ["n", 4, 1, 1]),
    "flatten and gemm": model(
        [node("Flatten", "x", "f"), node("Gemm", "f w b")],
        ["n", 3],
        {"w": RANDOM.standard_normal((144, 3), np.float32), "b": np.ones(3, np.float32)},
    ),
    "reshape by its own size": model(
        [
            node("Shape", "x", "s"),
            node("Gather", "s zero", "n"),
            node("Unsqueeze", "n axis", "n1"),
            node("Concat", "n1 rest", "t", axis=0),
            node("Reshape", "x t"),
        ],
        ["n", 144],
        {"zero": np.int64(0), "axis": ints(0), "rest": ints(-1)},
    ),
    "attention": model(
        [
            node("Transpose", "x", "k", perm=[0, 1, 3, 2]),
            node("MatMul", "x k", "s"),
            node("Softmax", "s", "p", axis=-1),
            node("MatMul", "p x"),
        ],
        ["n", 4, 6, 6],
    ),
    "a token for every row": model(
        [
            node("Shape", "x", "s"),
            node("Expand", "token s", "t"),
            node("Concat", "t x", axis=1),
        ],
        ["n", 8, 6, 6],
        {"token": RANDOM.standard_normal((1, 4, 6, 6), np.float32)},
    ),
    "padded and cut": model(
        [node("Pad", "x p", "q"), node("Slice", "q a b c")],
        ["n", 4, 4, 6],
        {"p": ints(0, 0, 1, 0, 0, 0, 1, 0), "a": ints(1), "b": ints(5), "c": ints(2)},
    ),
    "a bias for every channel": model([node("Add", "x b")], ["n", 4, 6, 6], {"b": np.ones((4, 1, 1), np.float32)}),
}
MIXES = {
    "mean over the batch": (model([node("ReduceMean", "x", axes=[0], keepdims=1)], ["m", 4, 6, 6]), "reduces axis 0"),
    "mean of everything": (model([node("ReduceMean", "x", "m"), node("Sub", "x m")], ["n", 4, 6, 6]), "reduces axis 0"),
    "softmax over the batch": (model([node("Softmax", "x", axis=0)], ["n", 4, 6, 6]), "works along axis 0"),
    "sum along the batch": (model([node("CumSum", "x a")], ["n", 4, 6, 6], {"a": np.int64(-4)}), "adds up along axis 0"),
    "reversed rows": (
        model([node("Slice", "x a b c d")], ["n", 4, 6, 6],
              {"a": ints(-1), "b": ints(-(2**60)), "c": ints(0), "d": ints(-1)}),
        "cuts axis 0",
    ),
    "axis 0 moved": (model([node("Transpose", "x", perm=[1, 0, 2, 3])], ["m", "n", 6, 6]), "moves axis 0"),
    "rows against rows": (
        model([node("Flatten", "x", "f"), node("Transpose", "f", "t", perm=[1, 0]), node("MatMul", "f t")], ["n", "n"]),
        "moves axis 0",
    ),
    "divided by the batch's size": (
        model(
            [node("Shape", "x", "s"), node("Cast", "s", "t", to=F), node("Gather", "t zero", "n"), node("Div", "x n")],
            ["n", 4, 6, 6], {"zero": np.int64(0)},
        ),
        "depends on the batch's size",
    ),
    "numbered rows": (
        model(
            [
                node("Shape", "x", "s"), node("Gather", "s zero", "n"), node("Range", "zero n one", "r"),
                node("Cast", "r", "f", to=F), node("Reshape", "f t", "c"), node("Add", "x c"),
            ],
            ["n", 4, 6, 6], {"zero": np.int64(0), "one": np.int64(1), "t": ints(-1, 1, 1, 1)},
        ),
        "depends on the batch's size",
    ),
    "a fixed batch": (model([node("Relu", "x")], [1, 4, 6, 6], shape=(1, 4, 6, 6)), "axis 0 has a fixed size"),
    "rows folded into channels": (model([node("Reshape", "x t")], ["m", 144], {"t": ints(5, -1)}), ""),
    "noise": (model([node("RandomNormalLike", "x")], ["n", 4, 6, 6]), "random"),
    "no rule": (model([node("MeanVarianceNormalization", "x")], ["n", 4, 6, 6]), "nothing is known"),
    "an output of no rows": (model([node("Shape", "x", "s"), node("Cast", "s", to=F)], ["m"]), "is not the batch"),
    "strides over the batch": (
        model([node("Add", "x b")], ["n", 4, 6, 6], {"b": np.ones((1, 1, 4, 6, 6), np.float32)}), "broadcast across axis 0"
    ),
}  # fmt: skip


def run(made: Any, x: Any) -> Any:
    ready = optimise(made.graph, bind(made.graph, {"x": x.shape}))
    return Executor(ready.graph, ready.specs).run({"x": x})["y"]


@pytest.mark.parametrize("name", KEEPS)
def test_what_is_proven_is_true(name: str) -> None:
    made = KEEPS[name]
    assert mixes_rows(made.graph, {"x": (4, 6, 6)}) == ""
    x = np.random.default_rng(1).standard_normal((3, 4, 6, 6), np.float32)
    together = run(made, x)
    alone = np.concatenate([run(made, x[row : row + 1]) for row in range(3)])
    np.testing.assert_allclose(together, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", MIXES)
def test_what_mixes_rows_is_refused_with_its_reason(name: str) -> None:
    made, says = MIXES[name]
    reason = mixes_rows(made.graph, {"x": (4, 6, 6)})
    assert reason
    assert says in reason


def test_an_embedding_keeps_rows_and_a_lookup_among_rows_does_not() -> None:
    value = helper.make_tensor_value_info
    table = numpy_helper.from_array(np.random.default_rng(1).standard_normal((9, 4), np.float32), "table")
    ids = value("ids", I64, ["n", 3])
    kept = helper.make_graph([node("Gather", "table ids")], "g", [ids], [value("y", F, ["n", 3, 4])], [table])
    mixed = helper.make_graph([node("Gather", "x ids")], "g", [ids, value("x", F, ["n", 4])], [value("y", F, ["n", 3, 4])])
    opset = [helper.make_opsetid("", 17)]
    graphs = [read(onnx.helper.make_model(g, opset_imports=opset, ir_version=8).SerializeToString()).graph for g in (kept, mixed)]
    assert mixes_rows(graphs[0], {"ids": (3,)}) == ""
    assert "both depend on the batch" in mixes_rows(graphs[1], {"ids": (3,), "x": (4,)})


def test_the_proof_names_no_op() -> None:
    strings = {node.value for node in ast.walk(ast.parse(inspect.getsource(batching))) if isinstance(node, ast.Constant)}
    words = {word for text in strings if isinstance(text, str) for word in text.split()}
    assert not words & set(operators())
