import json
import subprocess
import sys
from pathlib import Path

import pytest

from kernels import log
from kernels.errors import InvalidError
from kernels.log import debug, debug_folder, debug_level


@pytest.fixture(autouse=True)
def forget_folders():
    log._make_folder.cache_clear()
    yield
    log._make_folder.cache_clear()


@pytest.mark.parametrize(("given", "level"), [(None, 0), ("", 0), ("0", 0), ("1", 1), ("4", 4), (" 2 ", 2)])
def test_level(monkeypatch, given, level):
    monkeypatch.delenv("EDGEWISE_DEBUG", raising=False)
    if given is not None:
        monkeypatch.setenv("EDGEWISE_DEBUG", given)
    assert debug_level() == level


@pytest.mark.parametrize("given", ["5", "-1", "true", "1.0", "11", "²"])
def test_another_value_is_refused(monkeypatch, given):
    monkeypatch.setenv("EDGEWISE_DEBUG", given)
    with pytest.raises(InvalidError, match=rf"EDGEWISE_DEBUG: unknown level '{given}', need 0 .*4 \(and assembly\)"):
        debug_level()


def test_a_warning_leaves_standard_output_to_what_a_command_prints():
    script = "from kernels.log import warn; warn('code not kept', reason='full'); print('{}')"
    found = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=Path(log.__file__).parents[1]
    )
    assert found.stdout == "{}\n"
    assert ("code not kept" in found.stderr, "full" in found.stderr) == (True, True)


def test_a_line_is_json_on_standard_error(capsys):
    debug("kernel", node="é", count=3, other=object)
    written = capsys.readouterr()
    assert written.out == ""
    found = json.loads(written.err)
    assert (found["logger"], found["event"], found["node"], found["count"]) == ("edgewise.debug", "kernel", "é", 3)


def test_folder_is_made_and_said_once(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("EDGEWISE_DEBUG_DIR", str(tmp_path / "a" / "b"))
    assert debug_folder() == debug_folder() == tmp_path / "a" / "b"
    assert debug_folder().is_dir()
    assert [json.loads(line)["path"] for line in capsys.readouterr().err.splitlines()] == [str(tmp_path / "a" / "b")]


def test_without_a_name_it_is_a_new_folder_of_this_process(monkeypatch, tmp_path):
    monkeypatch.delenv("EDGEWISE_DEBUG_DIR", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert debug_folder() == debug_folder()
    assert debug_folder().parent == tmp_path


def test_folder_that_cannot_be_made_is_refused(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("EDGEWISE_DEBUG_DIR", str(tmp_path / "file"))
    with pytest.raises(InvalidError, match=r"EDGEWISE_DEBUG_DIR: '.*file' cannot be made, File exists"):
        debug_folder()
