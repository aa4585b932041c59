"""The database itself: its schema, its file, its locks, and several processes at once."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import tempfile
import threading
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from kernels.errors import EdgewiseError
from scheduler.errors import (
    StoreCorruptError,
    StoreError,
    StoreLockedError,
    StoreMissingError,
    StoreMovedError,
    StoreReadOnlyError,
    StoreUnreachableError,
    StoreVersionError,
)
from scheduler.store import Store, database, default_url
from scheduler.store.database import VERSION_TABLE
from scheduler.store.schema import HEAD, Base
from tests.processes import CONTEXT
from tests.scheduler.samples import DEVICE, HERE, measurement


@contextlib.contextmanager
def connected(url: str):
    """Open a connection to the database that does not belong to the store."""
    engine = sa.create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    try:
        with engine.begin() as connection:
            yield connection
    finally:
        engine.dispose()


def test_migrated_schema_is_the_declared_one(url):
    Store(url).close()
    with connected(url) as connection:
        context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE, "compare_type": True})
        assert compare_metadata(context, Base.metadata) == []


def test_head_is_the_newest_migration():
    script = ScriptDirectory.from_config(database._alembic())
    assert script.get_heads() == [HEAD]


def test_migrations_are_forward_only():
    script = ScriptDirectory.from_config(database._alembic())
    assert [item.revision for item in script.walk_revisions() if hasattr(item.module, "downgrade")] == []


def test_store_opens_from_any_working_directory(url, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Store(url) as store:
        assert store.revision() == HEAD


def test_upgrade_again_changes_nothing(url):
    with Store(url) as store:
        store.devices.save(DEVICE)
        store.upgrade()
        assert len(store.devices.page().items) == 1


def test_database_of_a_newer_build_is_refused(url):
    Store(url).close()
    with connected(url) as connection:
        connection.execute(sa.text(f"UPDATE {VERSION_TABLE} SET version_num = '9999'"))
    with pytest.raises(StoreVersionError, match=r"9999.*upgrade Edgewise"):
        Store(url)


def test_database_of_an_older_build_is_not_upgraded_unasked(url):
    if url.startswith("sqlite"):
        Path(url.removeprefix("sqlite:///")).touch()
    with pytest.raises(StoreVersionError, match="db upgrade"):
        Store(url, upgrade=False)


def test_failed_migration_leaves_nothing_behind(url, monkeypatch):
    def broken(*_):
        raise sa.exc.OperationalError("CREATE INDEX", {}, sqlite3.OperationalError("disk I/O error"))

    monkeypatch.setattr("alembic.operations.Operations.create_index", broken)
    with pytest.raises(StoreError):
        Store(url)
    with connected(url) as connection:
        assert sa.inspect(connection).get_table_names() == []


def test_missing_file_is_not_created_unasked(tmp_path):
    path = tmp_path / "none.db"
    with pytest.raises(StoreMissingError, match=r"none\.db.*db upgrade"):
        Store(f"sqlite:///{path}", create=False)
    assert not path.exists()


def test_missing_folder_is_created(tmp_path):
    Store(f"sqlite:///{tmp_path / 'a' / 'b c%20?' / 'store.db'}".replace("?", "%3F")).close()


def test_default_is_in_the_users_data_directory(tmp_path, monkeypatch):
    monkeypatch.setattr("platformdirs.user_data_path", lambda name: tmp_path / name)
    assert default_url() == f"sqlite:///{tmp_path / 'edgewise' / 'edgewise.db'}"
    with Store():
        assert (tmp_path / "edgewise" / "edgewise.db").exists()


@pytest.mark.parametrize("bad", ["", "nonsense", "mysql://localhost/x", "sqlite://", "sqlite:///:memory:", "redis://x"])
def test_url_that_is_no_database_of_ours_is_refused(bad):
    with pytest.raises(StoreError, match="need sqlite"):
        Store(bad)


def test_file_that_is_no_database_is_named(tmp_path):
    path = tmp_path / "notes.db"
    path.write_bytes(b"these are notes, not a database, " * 100)
    with pytest.raises(StoreCorruptError, match=r"notes\.db.*move it away"):
        Store(f"sqlite:///{path}")


def test_damaged_file_is_named(tmp_path):
    path = tmp_path / "store.db"
    with Store(f"sqlite:///{path}") as store:
        store.devices.save(DEVICE)
    raw = bytearray(path.read_bytes())
    raw[4096:] = os.urandom(len(raw) - 4096)
    path.write_bytes(raw)
    with pytest.raises(StoreCorruptError, match=r"store\.db.*restore a copy"), Store(f"sqlite:///{path}") as store:
        store.devices.page()


def test_database_of_another_program_is_left_alone(tmp_path):
    path = tmp_path / "other.db"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE devices (owner TEXT)")
    connection.commit()
    connection.close()
    with pytest.raises(StoreError, match=r"other\.db.*another program"):
        Store(f"sqlite:///{path}")
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("devices",)]
    connection.close()


def test_locked_file_is_named_after_waiting(tmp_path, monkeypatch):
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.05)
    path = tmp_path / "store.db"
    with Store(f"sqlite:///{path}") as store:
        holder = sqlite3.connect(path, isolation_level=None)
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreLockedError, match=r"store\.db.*try again"):
            store.devices.save(DEVICE)
        assert store.devices.page().items == ()  # readers are not kept waiting
        holder.execute("ROLLBACK")
        store.devices.save(DEVICE)
        holder.close()


def test_write_waits_for_the_other_writer(tmp_path):
    path = tmp_path / "store.db"
    with Store(f"sqlite:///{path}") as store:
        holder = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        holder.execute("BEGIN IMMEDIATE")
        release = threading.Timer(0.3, lambda: holder.execute("COMMIT"))
        release.start()
        store.devices.save(DEVICE)
        release.join()
        holder.close()
        assert len(store.devices.page().items) == 1


def _as_another_user(action):
    """Run an action in a child process that is not root, since root may write anywhere. Return the error that it raised."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        if os.getuid() == 0:
            os.setgid(65534)
            os.setuid(65534)
        try:
            action()
            text = "nothing"
        except EdgewiseError as error:
            text = f"{type(error).__name__}: {error}"
        os.write(writing, text.encode()[:4000])
        os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    with os.fdopen(reading, "rb") as pipe:
        return pipe.read().decode()


@pytest.fixture
def open_folder(tmp_path_factory):
    """Make a folder that users other than its owner can enter."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def test_read_only_file_is_named(open_folder):
    path = open_folder / "store.db"
    with Store(f"sqlite:///{path}") as store:
        store.devices.save(DEVICE)
    path.chmod(0o444)
    open_folder.chmod(0o555)
    raised = _as_another_user(lambda: Store(f"sqlite:///{path}").devices.save(DEVICE))
    open_folder.chmod(0o755)
    assert raised.startswith("StoreReadOnlyError")
    assert "store.db" in raised
    assert "--db" in raised or "permissions" in raised


def test_folder_that_cannot_be_written_is_named(open_folder):
    open_folder.chmod(0o555)
    raised = _as_another_user(lambda: Store(f"sqlite:///{open_folder / 'deep' / 'store.db'}"))
    open_folder.chmod(0o755)
    assert raised.startswith("StoreReadOnlyError")
    assert "--db" in raised


def test_full_disk_is_a_typed_error_and_loses_nothing(tmp_path):
    path = tmp_path / "store.db"
    with Store(f"sqlite:///{path}") as store:
        store.devices.save(DEVICE)
        store.measurements.save([measurement()])

        @sa.event.listens_for(store._database._engine, "connect")
        def limit(connection, _):
            connection.execute(f"PRAGMA max_page_count={path.stat().st_size // 4096}")

        store._database._engine.dispose()
        with pytest.raises(StoreReadOnlyError, match=r"disk is full.*safe"):
            store.measurements.save([measurement(f"Conv(f32[{n}])" + "x" * 1000) for n in range(2000)])
        assert len(store.measurements.page(HERE).items) == 1


def test_file_that_vanished_is_not_made_anew(tmp_path):
    path = tmp_path / "store.db"
    with Store(f"sqlite:///{path}") as store:
        store._database._engine.dispose()
        for file in tmp_path.glob("store.db*"):
            file.unlink()
        with pytest.raises(StoreMovedError, match="gone"):
            store.devices.page()
    assert not path.exists()


def test_server_that_does_not_answer_is_named_without_its_password():
    with pytest.raises(StoreUnreachableError, match="does not answer") as raised:
        Store("postgresql://me:secret@127.0.0.1:1/db")
    assert "secret" not in str(raised.value)


def test_a_connection_that_the_server_closed_is_replaced(postgres_url):
    mine = "datname = current_database() AND pid <> pg_backend_pid()"
    end_others = sa.text(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {mine}")
    with Store(postgres_url) as store, Store(postgres_url) as other:
        for work in (store.devices.page, lambda: store.models.save("0" * 64, "m", 1)):
            assert store.devices.page().items == ()
            assert other._database.read(lambda session: session.execute(end_others).all())
            work()
        assert store.models.get("0" * 64).name == "m"


def test_server_without_that_database_is_named(postgres_server):
    with pytest.raises(StoreMissingError, match="create it first"):
        Store(f"{postgres_server}/nowhere")


def _write_many(url: str, worker: int, ready, count: int) -> None:
    with Store(url) as store:
        ready.wait(60)
        for number in range(count):
            # One row of its own, and one that all of them fight over; the last sample of the strongest worker has to win.
            own = measurement(f"Conv(f32[{worker},{number}])")
            shared = measurement("Conv(f32[0])", samples=number * 10 + worker, p50_ns=float(worker))
            store.measurements.save([own, shared])


def test_processes_that_open_and_write_at_once_lose_nothing(url):
    workers, count = 4, 25
    with Store(url) as store:
        store.devices.save(DEVICE)
        ready = CONTEXT.Barrier(workers)
        processes = [CONTEXT.Process(target=_write_many, args=(url, worker, ready, count)) for worker in range(workers)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(120)
        assert [process.exitcode for process in processes] == [0] * workers
        seen, cursor = [], None
        while True:
            page = store.measurements.page(HERE, limit=200, cursor=cursor)
            seen += [found.measurement for found in page.items]
            cursor = page.next
            if cursor is None:
                break
    texts = {item.signature for item in seen}
    assert texts == {f"Conv(f32[{w},{n}])" for w in range(workers) for n in range(count)} | {"Conv(f32[0])"}
    (shared,) = [item for item in seen if item.signature == "Conv(f32[0])"]
    assert (shared.samples, shared.p50_ns) == ((count - 1) * 10 + workers - 1, workers - 1.0)


def _open(url: str, ready) -> None:
    ready.wait(60)
    Store(url).close()


def test_processes_that_migrate_at_once_agree(url):
    ready = CONTEXT.Barrier(3)
    processes = [CONTEXT.Process(target=_open, args=(url, ready)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    with Store(url) as store:
        assert store.revision() == HEAD


def test_killed_writer_loses_no_earlier_write(url):
    with Store(url) as store:
        store.devices.save(DEVICE)
    child = os.fork()
    if child == 0:
        writer = Store(url)
        writer.measurements.save([measurement()])

        def die(session):
            from scheduler.store.schema import SignatureRow

            session.add(SignatureRow(key="f" * 64, op="Conv", text="never"))
            session.flush()
            os._exit(9)

        writer._database.write(die)
    os.waitpid(child, 0)
    with Store(url) as store:
        assert [found.measurement for found in store.measurements.page(HERE).items] == [measurement()]
        store.measurements.save([measurement("Conv(f32[2])")])
        assert len(store.measurements.page(HERE).items) == 2


def test_what_is_written_together_is_stored_as_a_whole(store):
    def work():
        number = store.jobs.add("probe", DEVICE.fingerprint).id
        assert store.jobs.get(number).state == "queued"  # a read joins the transaction
        store.together(lambda: store.models.save("beef" * 16, "other.onnx", 1))
        if fails:
            raise EdgewiseError("after both were written")
        return number

    fails = True
    with pytest.raises(EdgewiseError, match="after both"):
        store.together(work)
    assert (len(store.jobs.page().items), len(store.models.page().items)) == (0, 1)
    fails = False
    number = store.together(work)
    assert [job.id for job in store.jobs.page().items] == [number]
    assert len(store.models.page().items) == 2  # the sample and this one


def test_what_other_threads_write_is_not_in_the_transaction(postgres_url):
    """SQLite has one writer at a time."""

    def work():
        other = threading.Thread(target=store.devices.save, args=(DEVICE,))
        other.start()
        other.join(60)
        raise EdgewiseError("here")

    with Store(postgres_url) as store:
        with pytest.raises(EdgewiseError, match="here"):
            store.together(work)
        assert store.devices.get(DEVICE.fingerprint) is not None


def test_threads_share_a_store(store):
    failures = []

    def work(worker: int) -> None:
        try:
            for number in range(10):
                store.measurements.save([measurement(f"Conv(f32[{worker},{number}])")])
                store.measurements.page(HERE)
        except EdgewiseError as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(store.measurements.page(HERE, limit=200).items) == 40
