"""Only one process or thread measures at a time. Others wait, and the death of a process frees the lock."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

from scheduler.exclusive import measuring

HOLD = """
import sys, time
from pathlib import Path
from scheduler.exclusive import measuring
with measuring(path=Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_another_process_is_waited_for_with_a_message_and_its_death_frees_the_lock(tmp_path):
    path = tmp_path / "deep" / "lock"
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True, cwd=Path.cwd())
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        said: list[str] = []

        def waiting(text: str) -> None:
            said.append(text)
            os.kill(other.pid, signal.SIGKILL)

        with measuring(waiting, path=path) as alone:
            assert alone
        assert f"process {other.pid}," in said[0]
    finally:
        other.kill()
        other.wait()
        other.stdout.close()


def test_lock_is_private(tmp_path):
    path = tmp_path / "data" / "lock"
    with measuring(path=path):
        assert [found.stat().st_mode & 0o777 for found in (path.parent, path)] == [0o700, 0o600]


def test_waiting_ends_when_told_to(tmp_path):
    path = tmp_path / "lock"
    with measuring(path=path) as first, measuring(stop=lambda: True, path=path) as second:
        assert first
        assert not second


def test_threads_take_turns(tmp_path):
    path, inside, most = tmp_path / "lock", [0], [0]

    def work() -> None:
        with measuring(path=path):
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            inside[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most[0] == 1
