"""The command line as a user calls it."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgewise import __version__
from scheduler.store import Store
from tests.app.demo import IMAGES, MODEL
from tests.processes import edgewise
from tests.scheduler.samples import DEVICE, HERE, measurement

ROOT = Path(__file__).parents[2]


def test_it_is_a_module_that_runs() -> None:
    done = subprocess.run([sys.executable, "-m", "edgewise", "--version"], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == f"edgewise {__version__}\n"


def test_profile_prints_a_table_and_totals() -> None:
    done = edgewise("profile", MODEL, "--dim", "batch=1")
    assert done.returncode == 0
    assert "macs 452,864" in done.stdout


def test_profile_json_and_csv(tmp_path: Path) -> None:
    done = edgewise("profile", MODEL, "--shape", "image=2,1,8,8", "--json", "--csv", str(tmp_path / "ops.csv"))
    found = json.loads(done.stdout)
    assert found["totals"]["macs"] == 2 * 452864
    assert (found["schema_version"], found["kind"]) == (2, "static")
    assert len((tmp_path / "ops.csv").read_text().splitlines()) == len(found["ops"]) + 1


def test_sweep_over_a_dimension() -> None:
    rows = json.loads(edgewise("profile", MODEL, "--dim", "batch=1,4", "--json").stdout)
    assert rows[1]["macs"] == 4 * rows[0]["macs"]


def test_run_on_an_image(tmp_path: Path) -> None:
    saved = tmp_path / "out.npz"
    done = edgewise("run", MODEL, "--input", str(IMAGES / "7.json"), "--save", str(saved), "--json", "--runs", "2")
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
        (["profile", MODEL, "--shape", "x"], 2, "--shape: 'x' is not understood"),
        (["profile", MODEL, "--dim", "batch=1", "--sort", "colour"], 2, "unknown column 'colour', need one of flops, "),
        (["profile"], 2, "Missing argument"),
        (["keys", "create", "--name", "x", "--scope", "root"], 2, "'root' is not one of"),
        (["keys", "create", "--name", "x"], 2, "--scope"),
        (["serve", "--models", "nowhere"], 2, "'nowhere' is not a folder"),
        (["run", MODEL, "--input", "y=nothing.npy"], 1, "nothing.npy"),
        (["db", "info", "--db", "sqlite:///nowhere.sqlite"], 1, "nowhere.sqlite"),
        (["run", MODEL, "--backend", "gpu"], 2, "unknown backend 'gpu', need one of auto, native, numpy, cuda"),
        (["run", MODEL, "--precision", "tf32"], 1, "precision tf32 is not available in this build"),
    ],
)
def test_errors_are_one_line_with_an_exit_code(arguments: list[str], code: int, says: str) -> None:
    done = edgewise(*arguments)
    assert done.returncode == code
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert not Path("nowhere.sqlite").exists()


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
    assert "the closest plan takes" in refused.stderr


def test_devices_that_are_not_here(tmp_path: Path) -> None:
    db = f"sqlite:///{tmp_path / 'cli.sqlite'}"
    sheet = {
        "sheet_version": 1,
        "vendor": "Acme",
        "model": "Board 3",
        "architecture": "aarch64",
        "physical_cores": 4,
        "memory_bytes": 1 << 33,
        "peaks": [{"threads": 4, "ops_per_s": 8e10}],
        "bandwidths": [{"threads": 4, "bytes_per_s": 1e10}],
        "method": "data sheet",
    }
    (tmp_path / "board.json").write_text(json.dumps(sheet))
    shown = edgewise("device", "--import", str(tmp_path / "board.json"), "--db", db)
    assert (shown.returncode, "entered" in shown.stdout, "derived" in shown.stdout) == (0, True, True), shown.stderr
    (known,) = json.loads(edgewise("device", "--list", "--db", db, "--json").stdout)
    assert known["name"] == "Board 3, 4 cores"
    out = tmp_path / "out.json"
    assert edgewise("device", "--show", known["fingerprint"], "--export", str(out), "--db", db).returncode == 0
    other = f"sqlite:///{tmp_path / 'other.sqlite'}"
    again = json.loads(edgewise("device", "--import", str(out), "--db", other, "--json").stdout)
    assert again == json.loads(out.read_text())
    plan = edgewise("plan", MODEL, "--dim", "batch=1", "--device", known["fingerprint"], "--db", db, "--json")
    assert json.loads(plan.stdout)["state"]["status"] == "predicted"
    assert "Board 3" in edgewise("device", "--list", "--db", db).stdout
    assert edgewise("device", "--list", "--show", "x", "--db", db).returncode == 2
    out.write_text("{}")
    refused = edgewise("device", "--import", str(out), "--db", db)
    assert (refused.returncode, "device profile" in refused.stderr) == (1, True)


def test_databases_are_moved_merged_and_pruned(tmp_path: Path) -> None:
    one, two = (f"sqlite:///{tmp_path / name}" for name in ("one.sqlite", "two.sqlite"))
    with Store(one) as store:
        store.devices.save(DEVICE)
        store.measurements.save([measurement("Conv(1)", samples=5), measurement("Conv(2)", samples=50)])
    with Store(two) as store:
        store.devices.save(DEVICE)
        store.measurements.save([measurement("Conv(1)", samples=10), measurement("Conv(2)", samples=10)])
    file = tmp_path / "out.jsonl"
    assert edgewise("db", "export", str(file), "--db", one).returncode == 0
    assert file.read_text() == edgewise("db", "export", "-", "--db", one).stdout
    copy = f"sqlite:///{tmp_path / 'copy.sqlite'}"
    assert json.loads(edgewise("db", "import", str(file), "--db", copy, "--json").stdout) == {"devices": 1, "measurements": 2}
    merged = edgewise("db", "merge", one, "--db", two, "--json")
    assert json.loads(merged.stdout)["measurements"] == 2, merged.stderr
    with Store(two) as store:
        kept = {found.measurement.signature: found.measurement.samples for found in store.measurements.page(HERE).items}
    assert kept == {"Conv(1)": 10, "Conv(2)": 50}
    assert edgewise("db", "prune", "--db", two).returncode == 2
    assert json.loads(edgewise("db", "prune", "--stale", "--db", two, "--json").stdout)["measurements"] == 2
    assert edgewise("db", "export", str(file), "--db", f"sqlite:///{tmp_path / 'none.sqlite'}").returncode == 1


def test_plan_of_a_precision_says_its_error_on_samples(tmp_path: Path) -> None:
    db = f"sqlite:///{tmp_path / 'a.db'}"
    np.savez(tmp_path / "a.npz", image=np.random.default_rng(0).random((1, 1, 8, 8), np.float32))
    sample = str(tmp_path / "a.npz")
    made = edgewise("plan", MODEL, "--dim", "batch=1", "--db", db, "--precision", "bf16", "--samples", sample, "--json")
    plan = json.loads(made.stdout)
    assert plan["constraints"]["precision"] == "bf16"
    assert (plan["measured_error"] is None) == (plan["precision"] == "fp32")
    unknown = edgewise("plan", MODEL, "--precision", "bf8")
    assert unknown.returncode == 2
    assert "fp32" in unknown.stderr
    (tmp_path / "b.npz").write_text("no arrays")
    broken = edgewise("plan", MODEL, "--dim", "batch=1", "--db", db, "--precision", "bf16", "--samples", str(tmp_path / "b.npz"))
    assert broken.returncode == 2
    assert "it is no .npz file" in broken.stderr


def test_tune_stores_what_it_measures_and_bench_says_how_well_it_is_predicted(tmp_path: Path) -> None:
    db = f"sqlite:///{tmp_path / 'cli.sqlite'}"
    assert edgewise("device", "--seconds", "0.3", "--db", db).returncode == 0
    assert "nothing was measured" in edgewise("bench", "cost-model", "--db", db).stdout
    tuned = json.loads(edgewise("tune", MODEL, "--dim", "batch=1", "--budget", "20", "--db", db, "--json").stdout)
    assert tuned["measured_ns"] > 0
    assert tuned["state"]["status"] == "current"
    found = {row["kind"]: row for row in json.loads(edgewise("bench", "cost-model", "--db", db, "--json").stdout)}
    assert found["all"]["points"] > 0
    assert "as a whole" in tuned["why"]
    planned = edgewise("plan", MODEL, "--dim", "batch=1", "--db", db).stdout
    assert " ".join(tuned["why"].split()) in " ".join(planned.split())  # the tuned plan is the answer to the same request
    several = json.loads(edgewise("tune", MODEL, "--dim", "batch=1,2", "--budget", "4", "--db", db, "--json").stdout)
    assert [plan["inputs"][0]["shape"][0] for plan in several] == [1, 2]
    wrong = edgewise("tune", MODEL, "--backend", "cuda")
    assert (wrong.returncode, "unknown backend 'cuda', need one of auto, " in wrong.stderr) == (2, True)
    assert edgewise("bench", "colour").returncode == 2


def test_settings_in_the_environment_hold_for_every_command(tmp_path: Path) -> None:
    db = f"sqlite:///{tmp_path / 'cli.sqlite'}"
    made = json.loads(
        edgewise("keys", "create", "--name", "n", "--scope", "read", "--json", environment={"EDGEWISE_DB": db}).stdout
    )
    listed = json.loads(edgewise("keys", "list", "--db", db, "--json").stdout)["keys"]
    assert [key["prefix"] for key in listed] == [made["prefix"]]
    told = json.loads(edgewise("db", "info", "--json", environment={"EDGEWISE_DB": db}).stdout)
    assert told["database"] == db
    ran = edgewise("run", MODEL, "--runs", "1", environment={"EDGEWISE_THREADS": "1"})
    assert "of 1 runs, 1 threads" in ran.stdout
    counted = edgewise("profile", MODEL, "--dim", "batch=1", environment={"EDGEWISE_THREADS": "1"})  # a count has no use for it
    assert counted.returncode == 0, counted.stderr


@pytest.mark.parametrize(
    ("arguments", "environment", "says"),
    [
        (["serve"], {"EDGEWISE_MODELS": "nowhere"}, "'nowhere' is not a folder"),
        (["serve"], {"EDGEWISE_PORT": "70000"}, "(env var: 'EDGEWISE_PORT')"),
        (["serve"], {"EDGEWISE_QUEUE_LIMIT": "many"}, "EDGEWISE_QUEUE_LIMIT: 'many' is refused"),
        (["serve"], {"EDGEWISE_ALLOWED_HOSTS": "a b"}, "EDGEWISE_ALLOWED_HOSTS: 'a b' is refused"),
        (["models"], {"EDGEWISE_MAX_MODELS": "0"}, "EDGEWISE_MAX_MODELS: '0' is refused"),
        (["run", MODEL], {"EDGEWISE_THREADS": "two"}, "(env var: 'EDGEWISE_THREADS')"),
    ],
)
def test_a_wrong_setting_is_named(arguments: list[str], environment: dict[str, str], says: str) -> None:
    done = edgewise(*arguments, environment={"COLUMNS": "200", **environment})
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_a_plan_is_run_by_the_digits_that_tune_printed_and_tune_says_what_serves_it(tmp_path: Path) -> None:
    wide = {"COLUMNS": "300", "EDGEWISE_DB": f"sqlite:///{tmp_path / 'cli.sqlite'}", "EDGEWISE_THREADS": "1"}
    usual = edgewise("tune", MODEL, "--dim", "batch=1", "--budget", "3", environment=wide).stdout
    assert "a run, 1 threads" in usual.splitlines()[0], usual
    assert "answers: latency, at most 1 threads, of image [1, 1, 8, 8]" in usual
    assert "served: a service on this machine with this database follows it within seconds" in usual
    tuned = edgewise("tune", MODEL, "--dim", "batch=1", "--budget", "3", "--max-error", "0.01", environment=wide).stdout
    (digits,) = re.findall(r"plan ([0-9a-f]{12})   current", tuned)
    assert "an error of at most 0.01" in tuned
    assert f"edgewise serve --plan {digits}, or " in tuned
    ran = edgewise("run", MODEL, "--plan", digits, "--runs", "2", environment=wide)
    assert f"of 2 runs, 1 threads, plan {digits}" in ran.stdout, ran.stderr
    told = json.loads(edgewise("run", MODEL, "--plan", digits, "--runs", "1", "--json", environment=wide).stdout)
    assert told["plan_id"].startswith(digits)
    other = edgewise("run", MODEL, "--plan", digits, "--shape", "image=2,1,8,8", environment=wide)
    assert (other.returncode, f"plan {digits} is made for image [1, 1, 8, 8]" in other.stderr) == (2, True)
    unknown = edgewise("serve", "--plan", "0" * 12, environment=wide)
    assert (unknown.returncode, "plan 000000000000: not stored" in unknown.stderr) == (1, True)


def test_every_command_binds_open_dimensions_by_one_rule(tmp_path: Path) -> None:
    database = {"EDGEWISE_DB": f"sqlite:///{tmp_path / 'cli.sqlite'}"}
    for command in (["run", "--runs", "1"], ["profile"], ["plan"]):
        done = edgewise(*command, MODEL, environment={**database, "COLUMNS": "200"})
        assert "inputs: image " in done.stdout, done.stderr
        assert "[1, 1, 8, 8]" in done.stdout or "float32[1,1,8,8]" in done.stdout
    assert "image [3, 1, 8, 8]" in edgewise("run", MODEL, "--dim", "batch=3", "--runs", "1").stdout
    wide = tmp_path / "wide.onnx"
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3, "height", "width"]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "wide", ports[:1], ports[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), wide)
    for name in ("run", "profile", "plan", "tune"):
        asked = edgewise(name, str(wide), environment={**database, "COLUMNS": "200"})
        assert asked.returncode == 1
        assert "axis 2 (height), axis 3 (width) are open" in asked.stderr
        assert "--dim height=224 --dim width=224, which fit this model" in asked.stderr
    assert "x [1, 3, 32, 48]" in edgewise("run", str(wide), "--dim", "height=32", "--dim", "width=48", "--runs", "1").stdout
