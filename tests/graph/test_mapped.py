"""Large weights of models that are read from files stay in the files and are mapped into memory."""

import os
import random
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from graph.errors import CorruptModelError, UnsafePathError
from graph.formats.onnx import reader as onnx_reader
from graph.formats.onnx.wire import split
from graph.formats.registry import read
from graph.mapped import LEAST_BYTES, identity, release, resident
from kernels.errors import EdgewiseError
from scheduler.session import Session
from scheduler.strategy import WantedBackend

LARGE = 160  # squared, in fp32: more than LEAST_BYTES


def matrix_model(*, names: tuple[str, ...] = ("w", "v"), size: int = LARGE) -> onnx.ModelProto:
    """Return y = x·w·v…, with a square weight of each name."""
    rng = np.random.default_rng(0)
    values = ["x", *(f"h{n}" for n in range(len(names) - 1)), "y"]
    nodes = [helper.make_node("MatMul", [values[n], name], [values[n + 1]], f"m{n}") for n, name in enumerate(names)]
    weights = [numpy_helper.from_array(rng.standard_normal((size, size), np.float32) / size, name) for name in names]
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", size]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    onnx.save(matrix_model(), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


X = np.random.default_rng(1).standard_normal((3, LARGE), np.float32)


def expected(proto: onnx.ModelProto) -> np.ndarray:
    w, v = (numpy_helper.to_array(tensor).astype(np.float64) for tensor in proto.graph.initializer)
    return X @ w @ v


def test_file_reads_as_its_bytes_do(path: Path) -> None:
    mapped, held = read(path), read(path.read_bytes())
    assert mapped.digest == held.digest
    assert mapped.nbytes == held.nbytes
    assert mapped.files
    assert not held.files
    for name, array in held.graph.constants.items():
        np.testing.assert_array_equal(mapped.graph.constants[name], array)
        assert identity(mapped.graph.constants[name])
        assert identity(array) is None


@pytest.mark.parametrize("backend", ["auto", "numpy"])
def test_runs_alike_and_after_the_file_is_gone(path: Path, backend: WantedBackend) -> None:
    session = Session(path, backend=backend)
    y = session.run({"x": X})["y"]
    path.unlink()
    np.testing.assert_allclose(y, expected(matrix_model()), atol=1e-5)
    np.testing.assert_array_equal(session.run({"x": X})["y"], y)
    assert session.run({"x": X[:1]})["y"].shape == (1, LARGE)  # new shapes read the weights again


def test_file_replaced_by_another_leaves_the_loaded_model_as_it_was(path: Path, tmp_path: Path) -> None:
    session = Session(path)
    y = session.run({"x": X})["y"]
    onnx.save(matrix_model(names=("w",)), tmp_path / "new.onnx")
    (tmp_path / "new.onnx").replace(path)
    np.testing.assert_array_equal(session.run({"x": np.concatenate((X, X))})["y"][:3], y)


@pytest.mark.parametrize("how", ["overwritten", "truncated", "grown"])
@pytest.mark.parametrize("backend", ["auto", "numpy"])
def test_file_written_to_is_refused_for_new_shapes_and_known_ones_run_on(path: Path, how: str, backend: WantedBackend) -> None:
    session = Session(path, backend=backend)
    y = session.run({"x": X})["y"]
    data = path.read_bytes()
    with path.open("r+b") as file:
        if how == "truncated":
            file.truncate(100)
        else:
            file.seek(0 if how == "overwritten" else len(data))
            file.write(bytes(len(data)) if how == "overwritten" else b"more")
    os.utime(path, ns=(1, 1))
    np.testing.assert_array_equal(session.run({"x": X})["y"], y)
    with pytest.raises(CorruptModelError, match=r"was written to since it was read, load it again \(m.onnx\)"):
        session.run({"x": X[:1]})


def test_external_data_is_mapped_and_checked(tmp_path: Path) -> None:
    proto = matrix_model()
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=True, location="weights", size_threshold=0)
    session = Session(tmp_path / "m.onnx")
    assert [file.name for file in session.model.files] == ["m.onnx", "weights"]
    np.testing.assert_allclose(session.run({"x": X})["y"], expected(matrix_model()), atol=1e-5)
    (tmp_path / "weights").write_bytes(b"")
    with pytest.raises(CorruptModelError, match=r"written to.*\(weights\)"):
        session.run({"x": X[:2]})
    with pytest.raises(CorruptModelError, match="the file has 0"):
        read(tmp_path / "m.onnx")


def test_memory_behind_weights_is_given_back(tmp_path: Path) -> None:
    onnx.save(matrix_model(size=1000), tmp_path / "m.onnx")
    session = Session(tmp_path / "m.onnx")
    array = session.model.graph.constants["w"]
    session.run({"x": np.zeros((1, 1000), np.float32)})
    start, end = np.lib.array_utils.byte_bounds(array)
    whole = (end - start) // 4096
    assert _resident_pages(start, end) < whole / 4  # what was mapped while its neighbours were read
    assert np.isfinite(array).all()
    assert _resident_pages(start, end) > whole / 2
    release(array)
    assert _resident_pages(start, end) <= 2


def _resident_pages(start: int, end: int) -> int:
    with Path("/proc/self/pagemap").open("rb") as file:
        file.seek(start // 4096 * 8)
        entries = np.frombuffer(file.read(8 * (end // 4096 - start // 4096)), np.uint64)
    return int((entries >> np.uint64(63)).sum())


def test_copy_in_memory_is_one_as_long_as_it_lives(path: Path) -> None:
    array = read(path).graph.constants["w"]
    first = resident(array)
    assert identity(first) is None
    assert resident(array) is first
    assert resident(array.T) is not first
    np.testing.assert_array_equal(resident(array.T), first.T)
    plain = np.zeros(3)
    assert resident(plain) is plain


def test_small_and_unusual_initializers_are_read_all_the_same(tmp_path: Path) -> None:
    """Typed data instead of raw bytes, small tensors, strings, an initializer that is an input too."""
    proto = matrix_model(names=("w", "v", "u"))
    typed = numpy_helper.to_array(proto.graph.initializer[1])
    proto.graph.initializer[1].CopyFrom(helper.make_tensor("v", TensorProto.FLOAT, typed.shape, typed.ravel()))
    proto.graph.initializer.append(numpy_helper.from_array(np.arange(4.0), "small"))
    proto.graph.initializer.append(numpy_helper.from_array(np.array(["a" * LEAST_BYTES], object), "text"))
    proto.graph.input.append(helper.make_tensor_value_info("u", TensorProto.FLOAT, typed.shape))
    onnx.save(proto, tmp_path / "m.onnx")
    model = read(tmp_path / "m.onnx")
    assert [name for name, array in model.graph.constants.items() if identity(array)] == ["w", "u"]
    held = read((tmp_path / "m.onnx").read_bytes()).graph.constants
    assert all((model.graph.constants[name] == array).all() for name, array in held.items())


@pytest.mark.parametrize("cut", [1, 1000, 60_000])
def test_truncated_file_is_refused(path: Path, cut: int) -> None:
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(CorruptModelError):
        read(path)


def test_weights_of_another_size_than_their_shape_are_refused(tmp_path: Path) -> None:
    proto = matrix_model()
    proto.graph.initializer[0].raw_data = proto.graph.initializer[0].raw_data[:-4]
    onnx.save(proto, tmp_path / "m.onnx")
    with pytest.raises(CorruptModelError, match=r"raw_data has 102396 bytes.*initializer 'w'"):
        read(tmp_path / "m.onnx")


@pytest.mark.parametrize("twice", ["graph", "raw data", "name", "initializer"])
def test_fields_given_twice_mean_what_protobuf_says(tmp_path: Path, twice: str) -> None:
    """protobuf takes the last of two values and merges two messages: whatever we do must not differ from it."""
    proto = matrix_model()
    tensor = proto.graph.initializer[0]
    if twice == "graph":
        data = proto.SerializeToString() + onnx.ModelProto(graph=onnx.GraphProto(doc_string="more")).SerializeToString()
    elif twice == "initializer":
        proto.graph.initializer.append(tensor)
        data = proto.SerializeToString()
    else:
        more = onnx.TensorProto(raw_data=bytes(len(tensor.raw_data))) if twice == "raw data" else onnx.TensorProto(name="v2")
        doubled = tensor.SerializeToString() + more.SerializeToString()
        plain, whole = proto.graph.SerializeToString(), onnx.GraphProto(initializer=[tensor]).SerializeToString()
        at = plain.index(whole)
        head = whole[:1] + _varint(len(doubled))
        graph = plain[:at] + head + doubled + plain[at + len(whole) :]
        data = onnx.ModelProto(ir_version=8, opset_import=proto.opset_import).SerializeToString()
        data += bytes([7 << 3 | 2]) + _varint(len(graph)) + graph
        assert onnx.ModelProto.FromString(data).graph.node
    (tmp_path / "m.onnx").write_bytes(data)
    assert _outcome(tmp_path / "m.onnx") == _outcome(data)


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def _outcome(source: Path | bytes) -> object:
    try:
        model = onnx_reader.read(source)  # of that format by name: damaged bytes need not be recognised
    except EdgewiseError as error:
        return type(error), str(error).replace("m.onnx", "<bytes>")
    return model.digest, model.graph.nodes, {name: array.tobytes() for name, array in model.graph.constants.items()}


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32))
def test_any_file_reads_as_its_bytes_do(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    """Bytes changed, removed and inserted, anywhere but in the weights: the same model, or the same error."""
    rng = random.Random(seed)
    data = bytearray(matrix_model().SerializeToString())
    for _ in range(rng.randint(1, 3)):
        at = rng.choice((rng.randrange(300), rng.randrange(len(data) - 300, len(data)), rng.randrange(len(data))))
        data[at : at + rng.randint(0, 2)] = rng.randbytes(rng.randint(0, 2))
    path = tmp_path_factory.mktemp("mutated") / "m.onnx"
    path.write_bytes(data)
    assert _outcome(path) == _outcome(bytes(data))


SMALL = matrix_model(size=3).SerializeToString()


def test_splitting_takes_the_weights_out_and_nothing_else() -> None:
    found = split(memoryview(SMALL), 36)
    assert found is not None
    message, spans = found
    whole = onnx.load_from_string(SMALL)
    assert {bytes(name).decode(): SMALL[span.offset : span.offset + span.nbytes] for name, span in spans.items()} == {
        weight.name: weight.raw_data for weight in whole.graph.initializer
    }
    for weight in whole.graph.initializer:
        weight.ClearField("raw_data")
    assert onnx.load_from_string(message) == whole


@settings(max_examples=200, deadline=None)
@given(st.integers(0, len(SMALL) - 1), st.binary(max_size=3), st.integers(1, 50))
def test_splitting_what_was_changed_stays_within_it(at: int, noise: bytes, least: int) -> None:
    data = SMALL[:at] + noise + SMALL[at + len(noise) :]
    found = split(memoryview(data), least)
    if found is not None:
        message, spans = found
        assert len(message) <= len(data)
        assert all(span.offset >= 0 and span.offset + span.nbytes <= len(data) for span in spans.values())


def test_folder_and_pipe_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for odd in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(UnsafePathError):
            read(odd)
    (tmp_path / "empty.onnx").touch()
    with pytest.raises(CorruptModelError):
        read(tmp_path / "empty.onnx")


def test_file_that_is_not_mapped_may_be_written_over(path: Path) -> None:
    model = read(path, mapped=False)
    assert not model.files
    assert model.digest == read(path).digest
    for array in model.graph.constants.values():
        assert array.flags.aligned
        assert not array.flags.writeable
    session = Session(model)
    y = session.run({"x": X})["y"]
    path.write_bytes(b"no model")
    np.testing.assert_array_equal(session.run({"x": np.concatenate((X, X))})["y"][:3], y)
