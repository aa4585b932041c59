"""Model files that are attacks, or broken beyond what an exporter would do: each gives a typed error that names its place."""

import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from graph.errors import CorruptModelError, LimitError, UnsafePathError
from graph.formats.registry import read
from graph.limits import Limits
from graph.passes.optimise import optimise
from graph.shapes import bind, propagate
from kernels.errors import EdgewiseError, ShapeError, UnknownOpError
from tests.graph.protos import model, relu


def pool(**attrs: Any) -> onnx.NodeProto:
    return helper.make_node("MaxPool", ["x"], ["y"], name="p", **attrs)


@pytest.mark.parametrize(("value", "found"), [("ab", "STRING"), ([2.5], "FLOATS"), (2, "INT")], ids=str)
def test_attribute_of_another_kind(value: object, found: str) -> None:
    with pytest.raises(CorruptModelError, match=rf"'kernel_shape' is {found}, need INTS \(node 'p'\)"):
        read(model([pool(kernel_shape=value)]))


def test_attribute_given_twice() -> None:
    node = pool(kernel_shape=[2])
    node.attribute.append(helper.make_attribute("kernel_shape", [3]))
    with pytest.raises(CorruptModelError, match=r"'kernel_shape' is given twice \(node 'p'\)"):
        read(model([node]))


def test_output_listed_twice() -> None:
    with pytest.raises(CorruptModelError, match="output 'y' is listed twice"):
        read(model([relu()], outputs=("y", "y")))


def test_node_without_outputs() -> None:
    with pytest.raises(CorruptModelError, match=r"no output.*'r'"):
        read(model([helper.make_node("Relu", ["x"], [], "r"), relu("x", "y", "s")]))


def test_required_input_left_absent() -> None:
    graph = read(model([helper.make_node("Sub", ["", "x"], ["y"], "s")])).graph
    with pytest.raises(ShapeError, match=r"input 0 \(.*\) is absent.*node 's'"):
        propagate(graph, bind(graph, dims={"batch": 1}))


@pytest.mark.parametrize("field", [b"alpha", b"named", b"wide!"], ids=["attribute", "node", "dimension"])
def test_names_that_are_not_utf8(field: bytes) -> None:
    ports = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["wide!"])]
    data = model([helper.make_node("LeakyRelu", ["x"], ["y"], "named", alpha=0.5)], inputs=ports).SerializeToString()
    assert data.count(field) == 1
    with pytest.raises(CorruptModelError, match="not UTF-8"):
        read(data.replace(field, field[:1] + b"\xff\xfe\xff\xff"))


def test_name_longer_than_the_limit() -> None:
    with pytest.raises(LimitError, match="101 characters, the limit is 100"):
        read(model([relu(name="n" * 101)]), Limits(text_length=100))


def test_text_attribute_longer_than_the_limit() -> None:
    with pytest.raises(LimitError, match="101 bytes of text, the limit is 100"):
        read(model([pool(kernel_shape=[2], auto_pad="S" * 101)]), Limits(text_length=100))


def test_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "m.onnx")
    with pytest.raises(UnsafePathError, match=r"it is a pipe.*m\.onnx"):
        read(tmp_path / "m.onnx")


def test_folder_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(UnsafePathError, match="it is a folder"):
        read(tmp_path)


def function(name: str, calls: list[str]) -> onnx.FunctionProto:
    """Return a function that applies each of `calls` to its input. A call is "Relu" or a function of the domain f."""
    values = ["a", *(f"v{i}" for i in range(len(calls) - 1)), "b"]
    nodes = [
        helper.make_node(call, [values[i]], [values[i + 1]], domain="" if call == "Relu" else "f") for i, call in enumerate(calls)
    ]
    return helper.make_function("f", name, ["a"], ["b"], nodes, [helper.make_opsetid("", 17), helper.make_opsetid("f", 1)])


def calling(functions: list[onnx.FunctionProto]) -> onnx.ModelProto:
    proto = model([helper.make_node("F0", ["x"], ["y"], domain="f")], opset=17)
    proto.opset_import.append(helper.make_opsetid("f", 1))
    proto.functions.extend(functions)
    return proto


def test_functions_are_inlined() -> None:
    made = read(calling([function("F0", ["F1", "Relu"]), function("F1", ["Relu", "Relu"])]))
    assert [node.op for node in made.graph.nodes] == ["Relu"] * 3


def test_functions_that_multiply_are_counted_before_they_are_expanded() -> None:
    levels = 60  # 2 ** 60 nodes, in a file of a few kilobytes
    functions = [function(f"F{i}", [f"F{i + 1}"] * 2 if i < levels - 1 else ["Relu"] * 2) for i in range(levels)]
    with pytest.raises(LimitError, match=f"{2**levels} nodes once its functions are inlined"):
        read(calling(functions))


def test_functions_whose_constants_multiply_are_counted_too() -> None:
    heavy = function("F1", ["Relu"])
    heavy.node[0].doc_string = "d" * 1000
    with pytest.raises(LimitError, match="bytes once its functions are inlined, the limit model_bytes is 20000"):
        read(calling([function("F0", ["F1"] * 50), heavy]), Limits(model_bytes=20_000))


@pytest.mark.parametrize("calls", [{"F0": ["F0"]}, {"F0": ["F1"], "F1": ["F0"]}], ids=["itself", "each-other"])
def test_functions_that_call_themselves(calls: dict[str, list[str]]) -> None:
    with pytest.raises(LimitError, match="deep or by itself"):
        read(calling([function(name, body) for name, body in calls.items()]))


def test_functions_nested_too_deep() -> None:
    functions = [function(f"F{i}", [f"F{i + 1}"] if i < 99 else ["Relu"]) for i in range(100)]
    with pytest.raises(LimitError, match="the limit function_depth is 64"):
        read(calling(functions))


def test_subgraphs_nested_too_deep() -> None:
    value = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    node = relu("x", "y", "inner")
    for level in range(4):
        body = helper.make_graph([node], f"level{level}", [], [value])
        node = helper.make_node("If", ["c"], ["y"], f"if{level}", then_branch=body, else_branch=body)
    condition = numpy_helper.from_array(np.array(True), "c")
    with pytest.raises(LimitError, match="nested 3 deep, the limit is 2"):
        read(model([node], [condition]), Limits(depth=2))


@pytest.mark.parametrize(
    ("op", "inputs"),
    [
        ("ConstantOfShape", {"s": np.array([2**40, 2**40])}),
        ("Range", {"a": np.float32(0), "b": np.float32(1e30), "c": np.float32(1e-30)}),
        ("Tile", {"t": np.ones((2, 2), np.float32), "s": np.array([2**62, 2**62])}),
        ("Expand", {"t": np.ones((1, 1), np.float32), "s": np.array([2**40, 2**40])}),
    ],
)
def test_small_files_that_make_huge_tensors(op: str, inputs: dict[str, np.ndarray]) -> None:
    initializers = [numpy_helper.from_array(np.asarray(array), name) for name, array in inputs.items()]
    graph = read(model([helper.make_node(op, list(inputs), ["y"], "bomb"), relu("x", "z")], initializers)).graph
    with pytest.raises(LimitError, match="'bomb'"):
        propagate(graph, bind(graph, dims={"batch": 1}))


def _mutants() -> list[onnx.ModelProto]:
    convolution = [
        helper.make_node("Conv", ["x", "w"], ["c"], "conv", pads=[1, 1, 1, 1], kernel_shape=[3, 3]),
        helper.make_node("Resize", ["c", "", "s"], ["r"], "resize", mode="linear"),
        helper.make_node("Reshape", ["r", "t"], ["f"], "reshape"),
        helper.make_node("Gemm", ["f", "k", "b"], ["y"], "gemm", transB=1),
    ]
    tensors = {"w": np.ones((2, 3, 3, 3)), "k": np.ones((4, 128)), "b": np.ones(4), "s": np.array([1, 1, 2, 2])}
    initializers = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in tensors.items()]
    initializers.append(numpy_helper.from_array(np.array([1, -1]), "t"))
    ports = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 4, 4])]
    branch = helper.make_graph([relu("x", "q")], "b", [], [helper.make_tensor_value_info("q", TensorProto.FLOAT, None)])
    control = [helper.make_node("If", ["c"], ["y"], "if", then_branch=branch, else_branch=branch)]
    return [model(convolution, initializers, ports), model(control, [numpy_helper.from_array(np.array(True), "c")], ports)]


@pytest.mark.parametrize("proto", _mutants(), ids=["convolution", "control-flow"])
def test_mutated_models_never_escape_the_error_tree(proto: onnx.ModelProto) -> None:
    whole, source, accepted = proto.SerializeToString(), random.Random(0), 0
    for _ in range(1500):
        data = bytearray(whole)
        for _ in range(source.randint(1, 3)):
            data[source.randrange(len(data))] = source.randrange(256)
        try:
            graph = read(bytes(data), Limits(tensor_elements=1 << 20)).graph
            accepted += bool(optimise(graph, bind(graph)).graph.outputs)
        except EdgewiseError:
            continue
    assert accepted  # the loop does reach the end for some


def test_of_very_many_unknown_operators_some_are_named() -> None:
    nodes = [helper.make_node(f"Strange{i}", ["x"], ["y" if i == 99 else f"v{i}"]) for i in range(100)]
    with pytest.raises(UnknownOpError, match=r"^Strange0: no such operator.*; Strange19: [^;]*; and 80 more$"):
        read(model(nodes))
