"""What the reader knows of ONNX without importing the package `onnx` agrees with that package."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from graph.errors import CorruptModelError
from graph.formats.onnx.attributes import NEWEST_OPSET, OLDEST_OPSET, attribute_kinds
from graph.formats.registry import read
from kernels.spec import ELEMENT_CODES, ELEMENT_TYPES, DType, element_bits
from tests.graph.protos import model, relu

OPERATORS = sorted({schema.name for schema in onnx.defs.get_all_schemas_with_history() if not schema.domain})
TYPED = ["float16", "bfloat16", "complex64", "complex128", "float8_e4m3fn", "float8_e8m0fnu"]
TYPED += ["bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float32", "float64"]


def schemas(op: str) -> Iterator[onnx.defs.OpSchema]:
    """Yield the schemas of an operator in every opset that is read."""
    for opset in range(OLDEST_OPSET, NEWEST_OPSET + 1):
        try:
            yield onnx.defs.get_schema(op, opset)
        except onnx.defs.SchemaError:  # the opset does not have it
            continue


def test_the_newest_opset_is_that_of_the_package() -> None:
    assert onnx.defs.onnx_opset_version() == NEWEST_OPSET


@pytest.mark.parametrize("op", OPERATORS)
def test_attributes_have_the_types_of_all_schemas(op: str) -> None:
    found = {(name, str(held.type).rpartition(".")[2]) for schema in schemas(op) for name, held in schema.attributes.items()}
    assert {*attribute_kinds(op).items()} == found


def test_an_operator_that_onnx_lacks_has_no_attributes() -> None:
    assert attribute_kinds("Relux") == {}


@pytest.mark.parametrize("implementation", ["upb", "python"])
@pytest.mark.parametrize("imports", ["import onnx, graph.formats.onnx.messages", "import graph.formats.onnx.messages, onnx"])
def test_the_message_classes_are_those_of_the_package(imports: str, implementation: str) -> None:
    code = f"{imports}; mine = graph.formats.onnx.messages; print([name for name in mine.__all__"
    code += " if getattr(mine, name) is not getattr(onnx, name)])"
    environment = {**os.environ, "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": implementation}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_reading_a_file_does_not_import_the_package(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(model([relu()]).SerializeToString())
    code = f"import sys; from graph.formats.registry import read; read({str(path)!r}); print('onnx' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def typed(dtype: DType) -> onnx.TensorProto:
    """Make a tensor of six elements whose data lie in the field of its type, not as raw bytes."""
    values = np.array([0, 1, 2, 1, 0, 2], np.float32).astype(dtype) * np.ones((), dtype)
    return helper.make_tensor("w", ELEMENT_CODES[dtype], (2, 3), values)


@pytest.mark.parametrize("name", TYPED)
def test_typed_data_are_decoded_as_by_the_package(name: str) -> None:
    (dtype,) = (known for known in ELEMENT_TYPES.values() if known.name == name)
    proto = typed(dtype)
    assert not proto.HasField("raw_data")
    made = read(model([relu()], [proto])).graph.constants["w"]
    assert (made.dtype, made.shape) == (dtype, (2, 3))
    np.testing.assert_array_equal(made.view(np.uint8), numpy_helper.to_array(proto).view(np.uint8))


@pytest.mark.parametrize("name", ["int4", "uint4", "int2", "uint2", "float4_e2m1fn", "float6_e2m3fn", "float6_e3m2fn"])
@pytest.mark.parametrize("count", [0, 1, 7, 12])
@pytest.mark.parametrize("where", ["raw", "typed", "external"])
def test_types_below_a_byte_are_unpacked(name: str, count: int, where: str, tmp_path: Path) -> None:
    (dtype,) = (known for known in ELEMENT_TYPES.values() if known.name == name)
    codes = np.random.default_rng(count).integers(0, 1 << element_bits(dtype), count).astype(np.uint8)
    wanted = codes.view(dtype).astype(np.float32)
    (code,) = (code for code, known in ELEMENT_TYPES.items() if known == dtype)
    proto = numpy_helper.from_array(codes.view(dtype), "w")
    if where == "typed":
        proto = helper.make_tensor("w", code, [count], wanted.tolist())
    onnx.save(model([relu()], [proto]), tmp_path / "m.onnx", save_as_external_data=where == "external", size_threshold=0)
    np.testing.assert_array_equal(read(tmp_path / "m.onnx").graph.constants["w"].astype(np.float32), wanted)


def test_packed_bytes_of_another_length_are_refused() -> None:
    proto = TensorProto(name="w", data_type=TensorProto.INT4, dims=[3], raw_data=b"123")
    with pytest.raises(CorruptModelError, match="3 bytes, i4"):
        read(model([relu()], [proto]))


@pytest.mark.parametrize(
    ("proto", "says"),
    [
        (TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2], float_data=[1.0]), "do not make a"),
        (TensorProto(name="w", data_type=TensorProto.COMPLEX64, dims=[1], float_data=[1.0]), "typed data"),
        (TensorProto(name="w", data_type=TensorProto.FLOAT, segment=TensorProto.Segment(begin=0, end=1)), "a segment"),
    ],
    ids=["too few", "half a complex number", "segment"],
)
def test_typed_data_that_make_no_tensor_are_refused(proto: onnx.TensorProto, says: str) -> None:
    with pytest.raises(CorruptModelError, match=says):
        read(model([relu()], [proto]))
