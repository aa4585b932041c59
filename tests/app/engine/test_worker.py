"""An engine process imports only what it needs, and never a user's files that have the names of our packages."""

import subprocess
import sys
from pathlib import Path

import pytest

from app.settings import DEMO_MODELS
from tests.app.demo import MODEL, SEVEN
from tests.app.servers import ROOT, running

NEVER = (
    "fastapi",
    "starlette",
    "jinja2",
    "pydantic",
    "sqlalchemy",
    "alembic",
    "prometheus_client",
    "uvicorn",
    "app.pages",
    "app.settings",
)

STARTS = "import app.engine.worker"
RUNS = f"""
import numpy as np
import app.engine.worker
from app.engine.loaded import LoadedModels
from app.engine.messages import ModelFile
from pathlib import Path
from graph.formats.onnx.reader import read
from graph.run.bounds import RunBounds

digest = read(Path({MODEL!r})).digest
models = LoadedModels()
models.expect(1)
limits = dict(model_bytes=1 << 30, arena_bytes=1 << 30, process_bytes=1 << 30)
models.load(1, ModelFile("digits", {MODEL!r}, digest, threads=1, instances=1, **limits))
models.prepare(1, {{"image": (1, 1, 8, 8)}})
models.run(1, {{"image": np.zeros((1, 1, 8, 8), np.float32)}}, RunBounds(), build=False)
"""


@pytest.mark.parametrize("work", [STARTS, RUNS], ids=["starts", "runs_a_model"])
def test_an_engine_process_imports_nothing_of_the_service(work: str) -> None:
    look = f"\nimport sys; print([name for name in {NEVER!r} if name in sys.modules])"
    command = [sys.executable, "-P", "-c", work + look]
    done = subprocess.run(command, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_files_of_the_user_with_our_names_do_no_harm(tmp_path: Path) -> None:
    for name in ("app", "scheduler", "profiler", "graph", "kernels", "edgewise"):
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('{name}.py of the user was imported')")
    with running(tmp_path, DEMO_MODELS, environment={"EDGEWISE_WORKERS": "1"}, cwd=tmp_path) as server, server.client() as client:
        reply = client.post("/v2/models/digits/infer", content=SEVEN)
        assert reply.status_code == 200, reply.text
        processes = client.get("/v1/live").json()["health"]["engine_processes"]
    assert processes == [{"up": True, "models": 1, "restarts": 0}]
