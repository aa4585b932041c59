"""The format of a model file is recognised, and an unknown format gives a helpful error."""

import os
from pathlib import Path

import onnx
import pytest

from graph.errors import CorruptModelError, LimitError, UnsafePathError
from graph.formats import registry
from graph.formats.registry import format_of, read
from graph.limits import Limits
from tests.graph.protos import model, relu

NEED = r"need a file of ONNX \(\.onnx\)"


def data() -> bytes:
    return model([relu()]).SerializeToString()


def test_the_formats_there_are() -> None:
    assert [str(each) for each in registry.formats()] == ["ONNX (.onnx)"]
    assert registry.suffixes() == (".onnx",)


@pytest.mark.parametrize("name", ["m.onnx", "M.ONNX", "m", "m.bin"])
def test_a_file_is_known_by_its_suffix_or_its_first_bytes(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(data())
    assert format_of(path).name == format_of(str(path)).name == "ONNX"
    assert read(path).source == name


def test_bytes_and_messages_are_known_by_themselves() -> None:
    assert format_of(data()).name == "ONNX"
    assert format_of(model([relu()])).name == "ONNX"
    assert read(data()).digest == read(model([relu()])).digest


@pytest.mark.parametrize("first", ["ir_version", "producer_name", "graph", "opset_import", "metadata_props", "functions"])
def test_any_field_of_an_onnx_file_may_come_first(first: str) -> None:
    made = onnx.ModelProto()
    target = getattr(made, first)
    if first == "graph":
        made.graph.name = "g"
    elif hasattr(target, "add"):
        target.add()
    else:
        setattr(made, first, 8 if first == "ir_version" else "by hand")
    assert format_of(made.SerializeToString()).name == "ONNX"


@pytest.mark.parametrize(("content", "begins"), [(b"PK\x03\x04zip", "50 4b 03 04 7a 69 70"), (b"", "nothing")])
def test_a_file_of_no_known_format_names_those_there_are(tmp_path: Path, content: bytes, begins: str) -> None:
    path = tmp_path / "m.zip"
    path.write_bytes(content)
    with pytest.raises(CorruptModelError, match=rf"model: {len(content)} bytes that begin with {begins}, {NEED} \(m\.zip\)"):
        read(path)
    with pytest.raises(CorruptModelError, match=rf"{NEED} \(<bytes>\)"):
        read(content)


def test_an_object_that_is_no_model() -> None:
    with pytest.raises(CorruptModelError, match=r"model: it is a GraphProto, need a path, bytes or a message of ONNX \(\.onnx\)"):
        read(onnx.GraphProto())


def test_a_file_of_a_known_suffix_is_read_as_that_format(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"PK\x03\x04")
    with pytest.raises(CorruptModelError, match=r"model: not an ONNX file, or truncated after 4 bytes \(m\.onnx\)"):
        read(path)


def test_a_pipe_without_a_suffix_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "m")
    with pytest.raises(UnsafePathError, match=r"it is a pipe, need a file \(m\)"):
        read(tmp_path / "m")
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "missing")


def test_limits_hold_whatever_the_format_is_found_by(tmp_path: Path) -> None:
    path = tmp_path / "m"
    path.write_bytes(data())
    for source in (path, data(), model([relu()])):
        with pytest.raises(LimitError, match="the limit model_bytes is 9"):
            read(source, Limits(model_bytes=9))
