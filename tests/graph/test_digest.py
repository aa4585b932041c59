import hashlib
from pathlib import Path

import numpy as np
import onnx
import pytest

from graph.digest import Digest
from graph.errors import CorruptModelError
from graph.formats.registry import read
from graph.mapped import PIECE_BYTES, MappedFile
from scheduler.session import Session
from tests.graph.test_mapped import LARGE, matrix_model


@pytest.fixture
def path(tmp_path: Path) -> Path:
    onnx.save(matrix_model(), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def test_a_run_hashes_no_bytes_of_a_mapped_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[int] = []
    sha256 = hashlib.sha256
    monkeypatch.setattr(hashlib, "sha256", lambda *data: hashed.append(1) or sha256(*data))
    session = Session(path, threads=1, backend="numpy")
    session.run({"x": np.zeros((1, LARGE), np.float32)})
    assert not hashed
    assert session.model.digest == session.model.digest == sha256(path.read_bytes()).hexdigest()
    assert hashed == [1]


def test_a_file_of_several_pieces_is_hashed_whole(tmp_path: Path) -> None:
    data = np.random.default_rng(0).integers(0, 256, 2 * PIECE_BYTES + 5, np.uint8).tobytes()
    (tmp_path / "f").write_bytes(data)
    with (tmp_path / "f").open("rb") as file:
        whole = MappedFile(file.fileno(), "f")
    assert Digest((whole, b"more"), (whole,)).text() == hashlib.sha256(data + b"more").hexdigest()


def test_a_digest_of_a_file_that_was_written_to_is_refused(path: Path) -> None:
    model = read(path)
    with path.open("ab") as file:
        file.write(b"\0")
    with pytest.raises(CorruptModelError, match=r"written to since it was read.*m\.onnx"):
        model.contents.text()


def test_a_digest_ends_when_its_check_raises(path: Path) -> None:
    def stop() -> None:
        raise TimeoutError

    model = read(path)
    with pytest.raises(TimeoutError):
        model.contents.text(stop)
    assert model.digest == hashlib.sha256(path.read_bytes()).hexdigest()
