"""Reading hostile and honest model files."""

import contextlib
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from graph.errors import CorruptModelError, CyclicGraphError, LimitError, ModelError, UnsafePathError
from graph.formats.registry import read
from graph.limits import Limits
from graph.shapes import bind
from kernels.errors import EdgewiseError, UnknownOpError, UnsupportedError
from tests.graph.protos import model, relu


def weight(name: str = "w") -> onnx.TensorProto:
    return numpy_helper.from_array(np.arange(4, dtype=np.float32), name)


def external(location: str, **extra: int) -> onnx.ModelProto:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, **extra}.items():
        tensor.external_data.add(key=key, value=str(value))
    return model([helper.make_node("Add", ["x", "w"], ["y"])], [tensor])


def save(folder: Path, proto: onnx.ModelProto) -> Path:
    path = folder / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


def test_nodes_constants_and_ports_are_read() -> None:
    made = read(model([helper.make_node("Add", ["x", "w"], ["s"], "add"), relu("s")], [weight()]))
    assert [node.op for node in made.graph.nodes] == ["Add", "Relu"]
    assert [str(port) for port in made.graph.inputs] == ["x: float32[batch,4]"]
    np.testing.assert_array_equal(made.graph.constants["w"], np.arange(4))
    assert made.initializers == {"w"}


def test_nodes_out_of_order_are_sorted() -> None:
    made = read(model([relu("s"), helper.make_node("Add", ["x", "x"], ["s"], "add")]))
    assert [node.op for node in made.graph.nodes] == ["Add", "Relu"]


def test_constant_nodes_become_constants() -> None:
    nodes = [helper.make_node("Constant", [], ["w"], value_float=2.0), helper.make_node("Add", ["x", "w"], ["y"])]
    made = read(model(nodes))
    assert made.graph.constants["w"] == 2
    assert not made.initializers


def test_nodes_without_names_get_unique_ones() -> None:
    made = read(model([relu("x", "a", ""), relu("a", "b", "same"), relu("b", "y", "same")]))
    names = [node.name for node in made.graph.nodes]
    assert len(set(names)) == 3
    assert all(names)


def test_old_opset_is_rewritten_to_the_newest_form() -> None:
    made = read(model([helper.make_node("Clip", ["x"], ["y"], "c", min=0.0, max=6.0)], opset=7))
    (node,) = made.graph.nodes
    assert [float(made.graph.constants[name]) for name in node.inputs[1:]] == [0, 6]


def test_digest_depends_on_every_byte(tmp_path: Path) -> None:
    plain = read(model([relu()]))
    assert plain.digest != read(model([relu(name="other")])).digest
    (tmp_path / "w.bin").write_bytes(np.arange(4, dtype=np.float32).tobytes())
    path = save(tmp_path, external("w.bin"))
    before = read(path).digest
    (tmp_path / "w.bin").write_bytes(np.ones(4, np.float32).tobytes())
    assert read(path).digest != before


def test_subgraph_reads_outer_values() -> None:
    branch = helper.make_graph([relu("x", "b")], "then", [], [helper.make_tensor_value_info("b", TensorProto.FLOAT, None)])
    other = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["n"])], "else", [], [helper.make_tensor_value_info("n", TensorProto.FLOAT, None)]
    )
    condition = numpy_helper.from_array(np.array(True), "c")
    made = read(model([helper.make_node("If", ["c"], ["y"], "if", then_branch=branch, else_branch=other)], [condition]))
    (node,) = made.graph.nodes
    assert set(node.reads()) == {"c", "x"}


@pytest.mark.parametrize("data", [b"", b"not a model", b"\x08\x08", b"\x00" * 100], ids=["empty", "text", "header", "zeros"])
def test_bytes_that_are_no_model(data: bytes) -> None:
    with pytest.raises(CorruptModelError, match="bytes"):
        read(data)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_truncated_or_flipped_models_give_typed_errors_only(data: st.DataObject) -> None:
    whole = model([helper.make_node("Add", ["x", "w"], ["s"]), relu("s")], [weight()]).SerializeToString()
    cut = bytearray(whole[: data.draw(st.integers(0, len(whole)))])
    for _ in range(data.draw(st.integers(0, 3)) if cut else 0):
        cut[data.draw(st.integers(0, len(cut) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(EdgewiseError):  # anything else escapes and fails
        assert read(bytes(cut)).graph.outputs


def test_cycle_names_its_nodes() -> None:
    nodes = [helper.make_node("Add", ["x", "b"], ["a"], "first"), relu("a", "b", "second"), relu("b")]
    with pytest.raises(CyclicGraphError, match=r"2 nodes.*\['first', 'second'\]"):
        read(model(nodes))


def test_unknown_ops_are_all_named() -> None:
    nodes = [helper.make_node("Relux", ["x"], ["a"], "n1"), helper.make_node("Nope", ["a"], ["y"], "n2", domain="acme")]
    with pytest.raises(UnknownOpError, match=r"Relux.*closest.*Relu.*'n1'.*acme\.Nope.*'n2'"):
        read(model(nodes))


@pytest.mark.parametrize(
    ("proto", "error", "says"),
    [
        (model([relu("missing")]), CorruptModelError, "'missing' is not written by any node"),
        (model([relu("x", "z")]), CorruptModelError, "output 'y' is not written by any node"),
        (model([relu(), relu(name="again")]), CorruptModelError, "'y' is empty or written twice"),
        (model([relu()], opset=6), UnsupportedError, "opset is 6"),
        (model([helper.make_node("Relu", ["x"], ["y"], "r", axis=1)]), UnsupportedError, "'axis'.*'r'"),
    ],
    ids=["undefined", "no-output", "two-writers", "opset", "attribute"],
)
def test_broken_graphs_are_refused(proto: onnx.ModelProto, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        read(proto)


def test_raw_data_of_the_wrong_size() -> None:
    tensor = weight()
    tensor.raw_data = tensor.raw_data[:-1]
    with pytest.raises(CorruptModelError, match="15 bytes"):
        read(model([helper.make_node("Add", ["x", "w"], ["y"])], [tensor]))


@pytest.mark.parametrize(
    ("dims", "error"), [([-1], CorruptModelError), ([2**40, 2**40], LimitError), ([1] * 65, LimitError)], ids=str
)
def test_impossible_dims_are_refused_before_memory_is_taken(dims: list[int], error: type[ModelError]) -> None:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=dims, raw_data=b"")
    with pytest.raises(error, match="initializer 'w'"):
        read(model([relu()], [tensor]))


def test_limits_name_value_and_limit(tmp_path: Path) -> None:
    path = save(tmp_path, model([relu("x", "a"), relu("a", "y", "s")]))
    with pytest.raises(LimitError, match="the limit model_bytes is 10"):
        read(path, Limits(model_bytes=10))
    with pytest.raises(LimitError, match="more than 1 nodes"):
        read(path, Limits(nodes=1))


def test_external_data_is_read_from_the_folder(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "w.bin").write_bytes(b"xxxx" + np.arange(4, dtype=np.float32).tobytes())
    made = read(save(tmp_path, external("sub/w.bin", offset=4, length=16)))
    np.testing.assert_array_equal(made.graph.constants["w"], np.arange(4))
    with pytest.raises(UnsupportedError, match="no folder"):
        read(external("sub/w.bin"))


def hostile_folder(tmp_path: Path) -> Path:
    """Make a model folder with links to a secret file outside of it, and return the folder."""
    folder = tmp_path / "model"
    folder.mkdir()
    secret = tmp_path / "secret.bin"
    secret.write_bytes(np.arange(4, dtype=np.float32).tobytes())
    (folder / "link.bin").symlink_to(secret)
    (folder / "dir").symlink_to(tmp_path)
    os.link(secret, folder / "hard.bin")
    os.mkfifo(folder / "pipe")
    return folder


LOCATIONS = [
    "../secret.bin",
    "a/../../secret.bin",
    "/etc/passwd",
    "link.bin",
    "dir/secret.bin",
    "hard.bin",
    "pipe",
    "",
    ".",
    "a\\b",
]


@pytest.mark.parametrize("location", LOCATIONS)
def test_external_data_outside_the_folder_is_refused(tmp_path: Path, location: str) -> None:
    path = save(hostile_folder(tmp_path), external(location))
    with pytest.raises(UnsafePathError, match="initializer 'w'"):
        read(path)


@pytest.mark.parametrize("extra", [{"offset": 8}, {"length": 8}, {"length": 10**15}, {"offset": -1}, {"offset": 10**30}], ids=str)
def test_external_data_outside_the_file_is_refused(tmp_path: Path, extra: dict[str, int]) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(16))
    with pytest.raises(CorruptModelError, match="initializer 'w'"):
        read(save(tmp_path, external("w.bin", **extra)))


def test_missing_external_file(tmp_path: Path) -> None:
    with pytest.raises(CorruptModelError, match=r"'gone\.bin' is missing"):
        read(save(tmp_path, external("gone.bin")))


@pytest.mark.parametrize("name", ["", " ", "?", "-1", "None", "unk", "unk__0", "unk__17", "unknown"])
def test_dimensions_without_a_name_are_each_free(name: str) -> None:
    """Exporters write these for every size that they do not know, the same for sizes that differ."""
    ports = [helper.make_tensor_value_info(value, TensorProto.FLOAT, [name, name]) for value in "ab"]
    graph = read(model([helper.make_node("MatMul", ["a", "b"], ["y"])], inputs=ports)).graph
    assert [port.dims for port in graph.inputs] == [(None, None)] * 2
    assert bind(graph, {"a": (2, 3), "b": (3, 5)})["b"].shape == (3, 5)


def test_dimensions_with_a_name_keep_it() -> None:
    ports = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "unk__a", "?x", "unknown_size"])]
    assert read(model([relu()], inputs=ports)).graph.inputs[0].dims == ("batch", "unk__a", "?x", "unknown_size")


def test_a_model_of_other_domains_alone_needs_no_opset() -> None:
    proto = model([helper.make_node("Gelu", ["x"], ["y"], domain="com.microsoft")])
    proto.opset_import[0].CopyFrom(helper.make_opsetid("com.microsoft", 1))
    assert read(proto).graph.nodes[0].op == "com.microsoft.Gelu"
    proto = model([relu()])
    proto.opset_import[0].CopyFrom(helper.make_opsetid("com.microsoft", 1))
    with pytest.raises(UnsupportedError, match="opset is 0"):
        read(proto)


@pytest.mark.parametrize(
    ("domain", "op", "says"),
    [
        (
            "com.microsoft",
            "LongformerAttention",
            "ONNX Runtime's optimizer.*Olive: set SessionOptions.graph_opt.*ORT_ENABLE_BASIC",
        ),
        ("com.microsoft.nchwc", "Conv", "for one kind of machine"),
        ("org.pytorch.aten", "ATen", "pass dynamo=True"),
        ("", "EfficientNMS_TRT", "written by an exporter for TensorRT"),
    ],
)
def test_an_unknown_operator_names_the_tool_that_wrote_it(domain: str, op: str, says: str) -> None:
    with pytest.raises(UnknownOpError, match=says):
        read(model([helper.make_node(op, ["x"], ["y"], "n", domain=domain)]))


def test_an_unknown_operator_of_an_unknown_tool_is_named_alone() -> None:
    with pytest.raises(UnknownOpError, match=r"registered \(node 'n'\)$"):
        read(model([helper.make_node("Zzz", ["x"], ["y"], "n", domain="acme")]))
