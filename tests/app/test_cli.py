"""The command line as a user calls it."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "app" / "demo"
MODEL = str(DEMO / "models" / "digits.onnx")


def edgewise(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "edgewise", *arguments], check=False, cwd=ROOT, capture_output=True, text=True, timeout=120
    )


def test_profile_prints_a_table_and_totals() -> None:
    done = edgewise("profile", MODEL, "--dim", "batch=1")
    assert done.returncode == 0
    assert "macs 452,864" in done.stdout


def test_profile_json_and_csv(tmp_path: Path) -> None:
    done = edgewise("profile", MODEL, "--shape", "image=2,1,8,8", "--json", "--csv", str(tmp_path / "ops.csv"))
    found = json.loads(done.stdout)
    assert found["macs"] == 2 * 452864
    assert {"flops", "params", "initializer_elements", "peak_activation_bytes", "coverage_percent", "ops"} <= set(found)
    assert len((tmp_path / "ops.csv").read_text().splitlines()) == len(found["ops"]) + 1


def test_sweep_over_a_dimension() -> None:
    rows = json.loads(edgewise("profile", MODEL, "--dim", "batch=1,4", "--json").stdout)
    assert rows[1]["macs"] == 4 * rows[0]["macs"]


def test_run_on_an_image(tmp_path: Path) -> None:
    saved = tmp_path / "out.npz"
    done = edgewise("run", MODEL, "--input", str(DEMO / "images" / "7.json"), "--save", str(saved), "--json", "--runs", "2")
    assert json.loads(done.stdout)["outputs"]["digit"]["first"] == [7]
    assert np.load(saved)["digit"].tolist() == [7]


def test_models_and_doctor() -> None:
    assert json.loads(edgewise("models", "--json").stdout)[0]["name"] == "digits"
    assert json.loads(edgewise("doctor", "--json").stdout)["cores"] >= 1
    assert "EDGEWISE_MAX_BODY_BYTES" in edgewise("doctor", "--knobs", "--json").stdout


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["profile", "missing.onnx"], 1, "missing.onnx: No such file"),
        (["profile", MODEL], 1, "--dim batch=1"),
        (["profile", MODEL, "--shape", "x"], 2, "--shape: 'x' is not understood"),
        (["profile", MODEL, "--dim", "batch=1", "--sort", "colour"], 2, "'colour' is no column"),
        (["profile"], 2, "Missing argument"),
        (["keys", "create", "--name", "x", "--scope", "root"], 2, "'root' is not one of"),
        (["keys", "create", "--name", "x"], 2, "--scope"),
        (["serve", "--models", "nowhere"], 2, "'nowhere' is no folder"),
        (["run", MODEL, "--input", "y=nothing.npy"], 1, "nothing.npy"),
    ],
)
def test_errors_are_one_line_with_an_exit_code(arguments: list[str], code: int, says: str) -> None:
    done = edgewise(*arguments)
    assert done.returncode == code
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_plan_and_db(tmp_path: Path) -> None:
    db = f"sqlite:///{tmp_path / 'cli.sqlite'}"
    assert json.loads(edgewise("device", "--seconds", "0.3", "--db", db, "--json").stdout)["peaks"]
    plan = json.loads(edgewise("plan", MODEL, "--dim", "batch=1", "--db", db, "--json").stdout)
    assert plan["steps"]
    assert "refused: " in edgewise("plan", MODEL, "--dim", "batch=1", "--db", db, "--explain").stdout
    assert json.loads(edgewise("db", "info", "--db", db, "--json").stdout)["devices"] == 1
    refused = edgewise("plan", MODEL, "--dim", "batch=1", "--db", db, "--max-memory-bytes", "10")
    assert refused.returncode == 1
    assert "memory is" in refused.stderr
