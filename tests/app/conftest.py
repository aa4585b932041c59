"""Fixtures of the service's tests: a server on a real socket that serves the demo, a model of strings and a broken file."""

import os
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from app.settings import DEMO_MODELS, Settings
from bench.local import serving
from profiler.device.profile import DeviceProfile
from tests.app.servers import serving_demo, text_model


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not os.environ.get("EDGEWISE_SLOW"):
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(pytest.mark.skip(reason="slow; set EDGEWISE_SLOW to run it"))


@pytest.fixture(scope="session")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder = tmp_path_factory.mktemp("models")
    for name in ("digits.onnx", "digits.json"):
        (folder / name).write_bytes((DEMO_MODELS / name).read_bytes())
    for version in ("1", "3"):
        (folder / "echo" / version).mkdir(parents=True)
        (folder / "echo" / version / "model.onnx").write_bytes(text_model())
    (folder / "broken.onnx").write_bytes(b"no model")
    (folder / "stats.onnx").write_bytes(text_model())
    database = tmp_path_factory.mktemp("db") / "edgewise.sqlite"
    with serving(
        Settings(models=folder, db=f"sqlite:///{database}", max_body_bytes=1 << 20, max_tensor_elements=1 << 18)
    ) as found:
        yield found


@pytest.fixture(scope="session")
def machine(this_machine: DeviceProfile) -> DeviceProfile:
    """Return this machine's profile, for tests that plan."""
    return this_machine


@pytest.fixture
def own_client(tmp_path: Path, machine: DeviceProfile) -> Iterator[httpx.Client]:
    """Serve the demo for one test, which may store data. The fixture `client` is shared by tests that only read."""
    with serving_demo(tmp_path, machine) as found:
        yield found
