"""The file of a SQLite database: private from its first moment, and never another one while it is open."""

from __future__ import annotations

import os
import shutil
import sqlite3
from pathlib import Path

import pytest

from scheduler.errors import StoreMovedError, StoreReadOnlyError
from scheduler.store import Store
from scheduler.store.file import SUFFIXES, DatabaseFile
from tests.disks import fill, make_read_only, small_disk
from tests.scheduler.samples import DEVICE


def modes(folder: Path) -> dict[str, str]:
    return {path.name: f"{path.stat().st_mode & 0o777:o}" for path in (folder, *folder.iterdir())}


@pytest.fixture
def loose_umask():
    old = os.umask(0)
    yield
    os.umask(old)


def test_new_database_is_private_whatever_the_umask(tmp_path, loose_umask):
    folder = tmp_path / "made" / "here"
    with Store(f"sqlite:///{folder / 'store.db'}") as store:
        store.devices.save(DEVICE)
        private = {"here": "700", "store.db": "600", "store.db-wal": "600", "store.db-shm": "600"}
        assert modes(folder) == private
    assert folder.parent.stat().st_mode & 0o777 == 0o700


def test_file_is_never_seen_with_another_mode(tmp_path, monkeypatch, loose_umask):
    """Without a moment in which it is open to others, as there is where a file is made first and closed to them then."""
    seen, opened = [], os.open

    def look(path, *rest, **named):
        found = opened(path, *rest, **named)
        if str(path).endswith("store.db"):
            seen.append(os.fstat(found).st_mode & 0o777)
        return found

    monkeypatch.setattr(os, "open", look)
    DatabaseFile(tmp_path / "store.db", lambda kind, fact: kind(fact)).prepare(create=True)
    assert seen == [0o600]


def test_open_files_of_an_earlier_version_are_closed_to_others(tmp_path):
    path = tmp_path / "store.db"
    with Store(f"sqlite:///{path}") as store:
        store.devices.save(DEVICE)
        files = [Path(f"{path}{suffix}") for suffix in SUFFIXES]
        for file in files:
            file.chmod(0o666)
        with Store(f"sqlite:///{path}") as other:
            assert len(other.devices.page().items) == 1
        assert {file.stat().st_mode & 0o777 for file in files} == {0o600}


def test_a_folder_that_exists_keeps_its_mode(tmp_path):
    tmp_path.chmod(0o755)
    Store(f"sqlite:///{tmp_path / 'store.db'}").close()
    assert tmp_path.stat().st_mode & 0o777 == 0o755


@pytest.fixture
def opened(tmp_path):
    path = tmp_path / "store.db"
    with Store(f"sqlite:///{path}") as store:
        store.devices.save(DEVICE)
        yield path, store


def test_moved_file_refuses_reads_and_writes_until_it_is_back(opened):
    path, store = opened
    path.rename(path.with_name("away.db"))
    for work in (lambda: store.devices.save(DEVICE), store.devices.page, store.ping):
        with pytest.raises(StoreMovedError, match=r"store\.db.*gone.*restart"):
            work()
    path.with_name("away.db").rename(path)
    store.devices.save(DEVICE)
    assert len(store.devices.page().items) == 1


def test_replaced_file_is_not_taken_for_the_opened_one(opened):
    path, store = opened
    shutil.copyfile(path, path.with_name("copy.db"))
    path.with_name("copy.db").rename(path)
    with pytest.raises(StoreMovedError, match="replaced by another"):
        store.devices.save(DEVICE)
    store._database._engine.dispose()  # new connections would open the new file
    with pytest.raises(StoreMovedError, match="replaced by another"):
        store.devices.save(DEVICE)
    with Store(f"sqlite:///{path}") as again:  # as a restart does
        again.devices.save(DEVICE)


def test_moved_folder_is_a_moved_file(tmp_path):
    folder = tmp_path / "data"
    with Store(f"sqlite:///{folder / 'store.db'}") as store:
        folder.rename(tmp_path / "old")
        with pytest.raises(StoreMovedError, match="gone"):
            store.devices.save(DEVICE)


@pytest.mark.parametrize("suffix", SUFFIXES[1:])
def test_log_that_was_deleted_takes_no_writes(opened, suffix):
    path, store = opened
    Path(f"{path}{suffix}").unlink()
    with pytest.raises(StoreMovedError, match=f"with suffix {suffix} .*gone"):
        store.devices.save(DEVICE)


def test_move_during_a_write_is_not_acknowledged(opened):
    path, store = opened

    def move(session):
        path.rename(path.with_name("away.db"))

    with pytest.raises(StoreMovedError, match="gone"):
        store._database.write(move)


def test_checkpoints_and_other_processes_are_no_move(opened):
    path, store = opened
    for _ in range(3):
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        other.execute("VACUUM")
        other.close()
        store.devices.save(DEVICE)
    with Store(f"sqlite:///{path}") as again:
        again.devices.save(DEVICE)
    store.devices.save(DEVICE)


def test_relative_path_leads_to_the_same_file_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Store("sqlite:///store.db") as store:
        (tmp_path / "other").mkdir()
        monkeypatch.chdir(tmp_path / "other")
        store.devices.save(DEVICE)
        store._database._engine.dispose()
        assert len(store.devices.page().items) == 1
    assert [path.name for path in (tmp_path / "other").iterdir()] == []


def test_new_file_is_not_made_behind_a_link(tmp_path):
    (tmp_path / "store.db").symlink_to(tmp_path / "elsewhere.db")
    with pytest.raises(StoreReadOnlyError):
        Store(f"sqlite:///{tmp_path / 'store.db'}")
    assert not (tmp_path / "elsewhere.db").exists()


@pytest.fixture
def disk(tmp_path):
    with small_disk(tmp_path / "disk", 1 << 20) as found:
        yield found


def save_many(store: Store) -> None:
    for number in range(2000):
        store.models.save(f"{number:064x}", "model", number)


def test_full_disk_loses_nothing_and_is_over_when_there_is_room(disk):
    with Store(f"sqlite:///{disk / 'store.db'}") as store:
        store.devices.save(DEVICE)
        filler = fill(disk)
        with pytest.raises(StoreReadOnlyError, match=r"disk is full.*safe"):
            save_many(store)
        kept = store.models.page().items
        assert len(store.devices.page().items) == 1
        filler.unlink()
        store.models.save("f" * 64, "model", 1)
        assert len(store.models.page().items) == len(kept) + 1


def test_read_only_file_system_is_named(disk):
    url = f"sqlite:///{disk / 'store.db'}"
    with Store(url) as store:
        store.devices.save(DEVICE)
    make_read_only(disk)
    with pytest.raises(StoreReadOnlyError, match=r"store\.db.*read-only.*--db"):
        Store(url)
    with pytest.raises(StoreReadOnlyError, match=r"cannot be created.*--db"):
        Store(f"sqlite:///{disk / 'new.db'}")
