"""Maps of ai.onnx.ml in files, and files that have operators of that domain alone."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import edgewise
from graph.errors import FeedError
from graph.formats.registry import read
from kernels.errors import UnsupportedError
from kernels.spec import STRING

ML = "ai.onnx.ml"


def map_input(name: str, key: int, value: int) -> onnx.ValueInfoProto:
    info = onnx.ValueInfoProto(name=name)
    info.type.map_type.key_type = key
    info.type.map_type.value_type.tensor_type.elem_type = value
    return info


def model(nodes, inputs, outputs, opsets=((ML, 1),)):
    graph = helper.make_graph(nodes, "g", inputs, outputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid(*opset) for opset in opsets], ir_version=8)


def vectorizer():
    made = helper.make_node("DictVectorizer", ["words"], ["y"], domain=ML, string_vocabulary=["b", "a", "c"])
    return model([made], [map_input("words", TensorProto.STRING, TensorProto.FLOAT)],
                 [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)])  # fmt: skip


def test_a_map_is_two_inputs_of_one_size():
    session = edgewise.Session(vectorizer())
    assert [port.name for port in session.inputs] == ["words.keys", "words.values"]
    feeds = {"words.keys": np.array(["a", "z"], STRING), "words.values": np.array([1.5, 9], np.float32)}
    np.testing.assert_array_equal(session.run(feeds)["y"], [[0, 1.5, 0]])
    with pytest.raises(FeedError, match=r"need words.size=2"):
        session.run({**feeds, "words.values": np.ones(3, np.float32)})


def test_keys_of_a_map_are_put_in_order():
    cast = helper.make_node("CastMap", ["m"], ["y"], domain=ML)
    proto = model([cast], [map_input("m", TensorProto.INT64, TensorProto.FLOAT)],
                  [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)])  # fmt: skip
    feeds = {"m.keys": np.array([7, 3], np.int64), "m.values": np.array([1, 2], np.float32)}
    np.testing.assert_array_equal(edgewise.Session(proto).run(feeds)["y"], [[2, 1]])


def test_other_operators_read_no_maps():
    proto = model([helper.make_node("Identity", ["m"], ["y"])], [map_input("m", TensorProto.INT64, TensorProto.FLOAT)],
                  [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)], (("", 17), (ML, 1)))  # fmt: skip
    with pytest.raises(
        UnsupportedError, match=r"Identity: input 'm' is a map, need ai.onnx.ml.CastMap or ai.onnx.ml.DictVectorizer"
    ):
        read(proto)


def zipped(output_type: onnx.TypeProto) -> onnx.ModelProto:
    made = helper.make_node("ZipMap", ["x"], ["maps"], domain=ML, classlabels_strings=["no", "yes"])
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 2])
    return model([made], [x], [helper.make_value_info("maps", output_type)])


def test_maps_of_scores_are_the_scores():
    row = helper.make_map_type_proto(TensorProto.STRING, helper.make_tensor_type_proto(TensorProto.FLOAT, None))
    session = edgewise.Session(zipped(helper.make_sequence_type_proto(row)))
    x = np.array([[0.25, 0.75], [1, 0]], np.float32)
    np.testing.assert_array_equal(session.run({"x": x})["maps"], x)


def test_other_sequences_are_refused():
    sparse = helper.make_sparse_tensor_type_proto(TensorProto.FLOAT, None)
    with pytest.raises(UnsupportedError, match=r"need tensors, their sequences or optionals \(output 'maps'\)"):
        read(zipped(helper.make_sequence_type_proto(sparse)))


def test_the_opset_of_onnx_may_be_missing_where_no_node_needs_it():
    scaler = helper.make_node("Scaler", ["x"], ["y"], domain=ML, offset=[1.0], scale=[2.0])
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in "xy"]
    assert [node.op for node in read(model([scaler], ports[:1], ports[1:])).graph.nodes] == [f"{ML}.Scaler"]
    relu = helper.make_node("Relu", ["x"], ["y"])
    with pytest.raises(UnsupportedError, match="opset is 0"):
        read(model([relu], ports[:1], ports[1:]))
