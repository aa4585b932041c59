import json

import pytest
from typer.testing import CliRunner

from app.cli import doctor
from app.cli.main import command_line
from app.settings import DEMO_MODELS
from kernels.cuda.library import load_library
from scheduler import warming
from tests.kernels.cuda.fake import FakeCuda, fake_driver
from tests.machines import tree


@pytest.mark.parametrize(
    ("devices", "says"),
    [
        (2, "driver for CUDA 13.0: Fake H200 of compute capability 9.0, Fake H200 of compute capability 9.0"),
        (0, "driver for CUDA 13.0: no GPU"),
    ],
)
def test_doctor_names_the_driver_and_its_gpus(monkeypatch, devices, says):
    monkeypatch.setattr(doctor, "Driver", lambda: fake_driver(FakeCuda(devices)))
    assert doctor.describe_nvidia() == says


@pytest.mark.parametrize(
    ("load", "says"),
    [
        (lambda name: FakeCuda(cuInit=100), "cuInit: CUDA_ERROR_NO_DEVICE (100), no CUDA-capable device is detected"),
        (lambda name: FakeCuda(cuInit=803), "cuInit: "),
    ],
)
def test_doctor_says_why_no_gpu_can_be_used(monkeypatch, load, says):
    load_library.cache_clear()
    monkeypatch.setattr("ctypes.CDLL", load)
    assert doctor.describe_nvidia().startswith(says)


def test_doctor_says_that_there_is_no_driver(monkeypatch):
    def refuse(name):
        raise OSError(f"{name}: cannot open shared object file")

    load_library.cache_clear()
    monkeypatch.setattr("ctypes.CDLL", refuse)
    assert doctor.describe_nvidia().startswith("cuda: libcuda.so.1 is not here, need NVIDIA's driver")


def test_doctor_warms_the_code_cache(tmp_path, monkeypatch):
    graphs = [graph for graph in warming.common_graphs() if graph.name == "text-encoder"]
    monkeypatch.setattr(warming, "common_graphs", lambda: iter(graphs))
    monkeypatch.setenv("EDGEWISE_CODE_CACHE", str(tmp_path / "code"))
    said = json.loads(CliRunner().invoke(command_line(), ["doctor", "--warm", "--json"]).stdout)
    assert (said["folder"], said["kernels"] > 3) == (str(tmp_path / "code"), True)
    assert list((tmp_path / "code").glob("*.o"))


def test_doctor_does_not_warm_a_cache_that_is_off(monkeypatch):
    monkeypatch.setenv("EDGEWISE_CODE_CACHE", "")
    result = CliRunner().invoke(command_line(), ["doctor", "--warm"])
    assert "EDGEWISE_CODE_CACHE is empty" in str(result.exception)


def test_doctor_shows_what_a_container_may_use(tmp_path, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    files = {"cpu.max": "150000 100000", "memory.max": str(2 << 30), "memory.current": str(1 << 30)}
    root = tree(tmp_path, "0::/", files, cores=("0-1", "2-3"))
    (root / "proc/meminfo").write_text(f"MemTotal: {16 << 20} kB\nMemAvailable: {8 << 20} kB\n")
    found = doctor.confinement(root)
    assert (found["cores"], found["cpus"], found["cpus_allowed"], found["cores_allowed"]) == (1, 1, "0-3", 2)
    assert found["cpu_quota"] == f"1.5 ({root}/sys/fs/cgroup/cpu.max)"
    assert (found["memory_bytes"], found["memory_installed"]) == (2 << 30, 16 << 30)
    assert (found["memory_cgroup"], found["memory_free"]) == (2 << 30, 1 << 30)
    assert {*found} <= {*json.loads(CliRunner().invoke(command_line(["doctor"]), ["doctor", "--json"]).stdout)}


@pytest.mark.parametrize("environment", [False, True])
def test_more_threads_than_there_are_cpus_are_warned_of(monkeypatch, environment):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0}, raising=False)
    given = {"EDGEWISE_THREADS": "2"} if environment else {}
    options = [] if environment else ["--threads", "2"]
    run = ["run", str(DEMO_MODELS / "digits.onnx"), "--runs", "1"]
    said = CliRunner().invoke(command_line(["run"]), [*run, *options], env=given)
    assert "--threads: 2 is more than the 1 that this process can keep busy" in said.stderr
    assert CliRunner().invoke(command_line(["run"]), [*run, "--threads", "1"]).stderr == ""
