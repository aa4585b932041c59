"""Files and folders that are private from their first moment, whatever the umask."""

import os
from pathlib import Path

import pytest

from kernels.private import make_private_folder, private_opener


@pytest.fixture(params=[0, 0o022, 0o077], ids=oct)
def umask(request):
    old = os.umask(request.param)
    yield
    os.umask(old)


def test_folders_that_are_missing_are_made_private(tmp_path: Path, umask: None) -> None:
    tmp_path.chmod(0o755)
    for _ in range(2):
        make_private_folder(tmp_path / "a" / "b")
    assert [path.stat().st_mode & 0o777 for path in (tmp_path, tmp_path / "a", tmp_path / "a" / "b")] == [0o755, 0o700, 0o700]


def test_file_in_place_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    with pytest.raises(NotADirectoryError, match="a: it is not a folder"):
        make_private_folder(tmp_path / "a")
    with pytest.raises(NotADirectoryError):
        make_private_folder(tmp_path / "a" / "b")


def test_file_is_made_private(tmp_path: Path, umask: None) -> None:
    with open(tmp_path / "file", "w", opener=private_opener) as file:
        assert os.fstat(file.fileno()).st_mode & 0o777 == 0o600
