import json

import pytest
from typer.testing import CliRunner

from app.cli import doctor
from app.cli.main import command_line
from kernels.cuda.library import load_library
from scheduler import warming
from tests.kernels.cuda.fake import FakeCuda, fake_driver


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
