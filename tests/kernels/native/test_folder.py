"""The folder of compiled code is used only where no other user could have put code there, whatever happens meanwhile."""

import contextlib
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from structlog.testing import capture_logs

from kernels.native.code import folder as module
from kernels.native.code.cache import CodeCache, Compiled
from kernels.native.code.folder import FOLDER, PrivateFolder
from tests.disks import make_read_only, small_disk
from tests.processes import CONTEXT

OTHER = 65534
AS_ROOT = pytest.mark.skipif(os.getuid() != 0, reason="only root can give files to another user")
KEY = bytes(32)


def refusal(path: Path) -> str | None:
    found = PrivateFolder(path)
    found.write("entry", b"code")
    if found.refusal:
        assert found.read("entry") is None
        found.prune(0)
    return found.refusal


def shared(path: Path, mode: int) -> Path:
    path.mkdir()
    path.chmod(mode)
    return path


def test_folder_and_files_are_private_whatever_the_umask(tmp_path):
    old = os.umask(0)
    try:
        assert refusal(tmp_path / "deep" / "code") is None
    finally:
        os.umask(old)
    assert [path.stat().st_mode & 0o777 for path in (tmp_path / "deep", tmp_path / "deep" / "code")] == [0o700, 0o700]
    assert (tmp_path / "deep" / "code" / "entry").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("mode", [0o777, 0o720, 0o702, 0o1777])
def test_folder_that_others_can_write_to_is_refused(tmp_path, mode):
    folder = shared(tmp_path / "code", mode)
    assert "others must not be able to write" in str(refusal(folder))
    assert not list(folder.iterdir())


@pytest.mark.parametrize(("mode", "trusted"), [(0o1777, True), (0o777, False), (0o775, True), (0o755, True), (0o711, True)])
def test_folder_below_a_shared_one_needs_it_to_be_sticky(tmp_path, mode, trusted):
    """0775: the group of these tests is the user's own, as on systems with umask 002."""
    found = refusal(shared(tmp_path / "shared", mode) / "code")
    assert (found is None) == trusted, found


def test_group_of_others_above_the_folder_is_refused(tmp_path, monkeypatch):
    above = shared(tmp_path / "shared", 0o775)
    monkeypatch.setattr("grp.getgrgid", lambda number: type("Group", (), {"gr_name": "staff", "gr_mem": ["someone"]}))
    assert "others must not be able to write" in str(refusal(above / "code"))


@AS_ROOT
@pytest.mark.parametrize("which", ["shared", "shared/code"])
def test_folder_of_another_user_is_refused(tmp_path, which):
    (tmp_path / "shared" / "code").mkdir(0o700, parents=True)
    os.chown(tmp_path / which, OTHER, OTHER)
    assert f"belongs to user {OTHER}" in str(refusal(tmp_path / "shared" / "code"))


def test_link_to_a_folder_is_refused_and_links_above_it_are_resolved(tmp_path):
    real = shared(tmp_path / "real", 0o700)
    (tmp_path / "link").symlink_to(real)
    assert refusal(tmp_path / "link") == "link is not a folder"
    assert refusal(tmp_path / "link" / "code") is None
    (tmp_path / "open").symlink_to(shared(tmp_path / "all", 0o777))
    assert "others must not be able to write" in str(refusal(tmp_path / "open" / "code"))


@pytest.fixture
def folder(tmp_path):
    found = PrivateFolder(tmp_path / "code")
    assert found.write("entry", b"code")
    return found


def plant(kind, path):
    """Put something else in an entry's place, as another user could where the folder was open to others before."""
    outside = path.parent.parent / "outside"
    outside.write_bytes(b"evil")
    path.unlink()
    if kind == "link":
        path.symlink_to(outside)
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.write_bytes(b"evil")
        path.chmod(0o666 if kind == "open to others" else 0o600)
        if kind == "of another user":
            os.chown(path, OTHER, OTHER)


@pytest.mark.parametrize("kind", ["link", "pipe", "folder", "open to others", pytest.param("of another user", marks=AS_ROOT)])
def test_entry_that_is_not_a_file_of_this_user_is_not_used(folder, kind):
    plant(kind, folder.path / "entry")
    with capture_logs() as logs:
        assert folder.read("entry") is None
    assert [line["event"] for line in logs] == ["code cache entry not used"]
    if kind != "folder":
        assert folder.write("entry", b"new")
        assert folder.read("entry") == b"new"
        assert (folder.path.parent / "outside").read_bytes() == b"evil"  # no link was followed


def test_folder_that_is_exchanged_after_it_was_checked_is_not_followed(folder, tmp_path):
    evil = shared(tmp_path / "evil", 0o777)
    (evil / "entry").write_bytes(b"evil")
    folder.path.rename(tmp_path / "moved")
    folder.path.symlink_to(evil)
    assert folder.read("entry") == b"code"
    folder.write("new", b"more")
    folder.prune(1 << 20)
    assert sorted(path.name for path in evil.iterdir()) == ["entry"]
    assert sorted(path.name for path in (tmp_path / "moved").iterdir()) == ["entry", "new"]


@pytest.mark.parametrize("step", range(18))
def test_folder_that_is_exchanged_while_it_is_opened_is_refused(tmp_path, monkeypatch, step):
    """At every call of the system, in turn: the folder or one above it becomes a link to one that holds other code."""
    real, evil = tmp_path / "above" / "code", tmp_path / "evil"
    real.mkdir(0o700, parents=True)
    (real / "entry").write_bytes(b"code")
    (evil / "code").mkdir(parents=True)
    (evil / "code" / "entry").write_bytes(b"evil")
    (evil / "code").chmod(0o777)
    calls = 0

    def exchanging(real_call):
        def call(*arguments, **named):
            nonlocal calls
            calls += 1
            if calls == step + 1 and not (tmp_path / "moved").exists():
                monkeypatch.undo()
                (tmp_path / "above").rename(tmp_path / "moved")
                (tmp_path / "above").symlink_to(evil)
            return real_call(*arguments, **named)

        return call

    for name in ("open", "fstat"):
        monkeypatch.setattr(os, name, exchanging(getattr(os, name)))
    monkeypatch.setattr(os, "supports_dir_fd", {os.open})
    found = PrivateFolder(real)
    monkeypatch.undo()
    assert found.read("entry") in (b"code", None)
    assert (found.refusal is None) or "not a folder" in found.refusal or "others" in found.refusal


def test_folder_that_is_exchanged_all_the_time_never_gives_other_code(tmp_path):
    """Another thread makes it a link and a folder again, as fast as it can."""
    real, evil, link = tmp_path / "real", shared(tmp_path / "evil", 0o777), tmp_path / "code"
    PrivateFolder(real).write("entry", b"code")
    (evil / "entry").write_bytes(b"evil")
    (evil / "entry").chmod(0o600)
    stop = threading.Event()

    def exchange():
        while not stop.is_set():
            with contextlib.suppress(OSError):  # the reader has just made it
                real.rename(link)
                link.rename(real)
                link.symlink_to(evil)
            with contextlib.suppress(OSError):
                link.unlink()
            with contextlib.suppress(OSError):
                link.rmdir()

    thread = threading.Thread(target=exchange)
    thread.start()
    found = set()
    try:
        with capture_logs():
            for _ in range(300):
                found.add(PrivateFolder(link).read("entry"))
    finally:
        stop.set()
        thread.join()
    assert found <= {b"code", None}


def _write_again_and_again(path, value):
    cache = CodeCache(Path(path))
    for _ in range(200):
        cache.put(KEY, Compiled(bytes([value]) * 50_000))


def test_two_processes_that_write_one_entry_leave_a_whole_one(tmp_path):
    cache = CodeCache(tmp_path / "code")
    cache.put(KEY, Compiled(b"\0" * 50_000))
    writers = [CONTEXT.Process(target=_write_again_and_again, args=(str(cache.files.path), value)) for value in (1, 2)]
    for writer in writers:
        writer.start()
    seen = set()
    while any(writer.is_alive() for writer in writers):
        found = cache.get(KEY)
        assert found is not None
        assert len(set(found.code)) == 1
        seen.add(found.code[0])
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert seen & {1, 2}
    assert [path.name for path in cache.files.path.iterdir()] == [f"{KEY.hex()}.o"]


def test_writer_that_is_killed_leaves_no_part_of_an_entry(tmp_path, monkeypatch):
    """The process ends between writing and renaming."""
    path = tmp_path / "code"
    CodeCache(path).put(KEY, Compiled(b"old"))
    script = (
        "import os, sys; from pathlib import Path; from kernels.native.code.cache import CodeCache, Compiled\n"
        "cache = CodeCache(Path(sys.argv[1])); os.rename = lambda *_, **__: os._exit(9)\n"
        "cache.put(bytes(32), Compiled(b'new' * 1000))"
    )
    assert subprocess.run([sys.executable, "-c", script, str(path)], check=False).returncode == 9
    cache = CodeCache(path)
    assert cache.get(KEY) == Compiled(b"old")
    (part,) = path.glob("*.part")
    newest = (path / f"{KEY.hex()}.o").stat().st_mtime
    os.utime(part, (newest - module.LEFT_OVER_S - 1,) * 2)
    cache.files.prune(1 << 20)
    assert [entry.name for entry in path.iterdir()] == [f"{KEY.hex()}.o"]


RUN = """
import numpy as np, edgewise, resource, sys
if len(sys.argv) > 2:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
session = edgewise.Session(sys.argv[1])
print(session.run({"image": np.ones((1, 1, 8, 8), np.float32)})["probabilities"].sum())
"""


def run_demo(cache: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, FOLDER: str(cache)}
    command = [sys.executable, "-P", "-c", RUN, "app/demo/models/digits.onnx", *arguments]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env={**environment, "PYTHONPATH": "."},
        cwd=Path(__file__).parents[3],
    )


def test_run_goes_on_where_code_cannot_be_written(tmp_path):
    """Every write of a file fails in the kernel (EFBIG), which a full disk (ENOSPC) does the same way."""
    found = run_demo(tmp_path / "code", "1")
    assert (found.returncode, float(found.stdout)) == (0, pytest.approx(1.0))
    assert found.stderr.count("code not kept") == 1
    assert list((tmp_path / "code").iterdir()) == []


def test_run_goes_on_on_a_full_and_on_a_read_only_disk(tmp_path):
    with small_disk(tmp_path / "disk", 8192) as disk:
        full = run_demo(disk)
        assert (full.returncode, "No space left" in full.stderr) == (0, True)
        make_read_only(disk)
        for path in (disk, disk / "none"):
            read_only = run_demo(path)
            assert (read_only.returncode, "Read-only file system" in read_only.stderr) == (0, True)


def test_full_disk_is_logged_once_and_again_after_a_success(folder, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with capture_logs() as logs:
        for _ in range(2):
            with monkeypatch.context() as patch:
                patch.setattr(os, "rename", full)
                assert [folder.write(f"{n}", b"code") for n in range(3)] == [False] * 3
            assert folder.write("fits", b"code")
    assert [line["event"] for line in logs] == ["code not kept"] * 2
    assert sorted(path.name for path in folder.path.iterdir()) == ["entry", "fits"]


def test_cache_goes_on_without_its_folder(tmp_path):
    cache = CodeCache(tmp_path / "code", limit_bytes=1)
    cache.put(KEY, Compiled(b"code"))
    shutil.rmtree(tmp_path / "code")
    cache.put(KEY, Compiled(b"code"))
    cache.files.prune(0)
    assert cache.get(KEY) is None


def test_descriptors_are_given_back(tmp_path):
    def opened() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    PrivateFolder(tmp_path / "code")
    before = opened()
    for _ in range(50):
        PrivateFolder(tmp_path / "code")
    (tmp_path / "link").symlink_to(tmp_path / "code")
    for _ in range(50):
        PrivateFolder(tmp_path / "link")
    assert opened() <= before


def test_known_code_is_unchanged_by_how_it_is_kept(tmp_path):
    code = np.random.default_rng(0).bytes(10_000)
    cache = CodeCache(tmp_path / "code")
    cache.put(KEY, Compiled(code, 0.125))
    assert CodeCache(tmp_path / "code").get(KEY) == Compiled(code, 0.125)
