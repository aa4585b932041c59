"""A real service withstands a minute of mixed load and failures. `python -m bench.soak` takes ten minutes."""

import subprocess
import sys
from pathlib import Path

import pytest

from bench.cluster import missing

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.skipif(bool(missing()), reason=missing())
def test_a_minute_of_chaos_breaks_nothing() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench.soak", "--minutes", "1"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
