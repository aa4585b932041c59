"""What holds for all tests: one cache of compiled code, shared by the processes of a session and kept between sessions."""

import os

import pytest

from kernels.native.code.folder import FOLDER


def pytest_configure(config: pytest.Config) -> None:
    """Keep compiled code under .pytest_cache, so that tests neither need nor fill the user's own cache.

    What was compiled for one test, process or session is not compiled for the next. Remove the folder to begin anew.
    """
    if FOLDER not in os.environ:
        os.environ[FOLDER] = str(config.rootpath / ".pytest_cache" / "code")
