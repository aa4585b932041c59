"""Other processes that keep every core busy, for tests of what measures."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator

PROGRAM = "print('burning', flush=True)\nwhile True: pass"


@contextlib.contextmanager
def burning() -> Iterator[None]:
    """Keep every core that this process may use busy, with two processes each, until the block ends."""
    cores = len(os.sched_getaffinity(0))
    started = [subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE) for _ in range(2 * cores)]
    try:
        for process in started:
            process.stdout.readline()
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()
            process.stdout.close()
