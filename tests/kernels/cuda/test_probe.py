import json
from dataclasses import asdict

import pytest

from kernels.cuda import probe as module
from kernels.cuda.errors import CudaError
from kernels.cuda.library import load_library
from kernels.cuda.probe import Effort, main, probe, summarise, table
from kernels.native.code.cache import CodeCache
from tests.kernels.cuda.fake import FakeCuda, fake_driver

QUICK = Effort(repeats=2)


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(module, "TRANSFER_BYTES", 1 << 20)
    monkeypatch.setattr(module, "NOISE_BYTES", 1 << 20)


@pytest.fixture
def profile(small, monkeypatch):
    monkeypatch.setattr(module, "_check_steps", lambda found, rounds: None)  # the fake computes nothing
    fake = FakeCuda()
    driver = fake_driver(fake)
    profile = probe(driver.device(), driver, CodeCache.default(), QUICK)
    assert not any(fake.open.values()), "what the probe opened is freed"
    return profile


def test_probe_measures_every_kind_of_figure(profile):
    assert (profile.name, profile.capability, profile.processors) == ("Fake H200", (9, 0), 132)
    kinds = {"fp32_fma", "tf32_mma", "bf16_mma", "fp16_mma", "int8_mma", "bf16_wgmma", "memory_read", "l2_copy", "l2_half_read"}
    kinds |= {"barrier_fence_256", "step_release", "step_graph", "launch", "launch_cooperative", "graph_1000", "copy_to_gpu"}
    assert kinds <= set(profile.figures)
    assert all(figure.value >= 0 and figure.method and figure.repeats for figure in profile.figures.values())


def test_profile_is_json_and_a_table(profile):
    assert json.loads(json.dumps(asdict(profile)))["figures"]["step_graph"]["unit"] == "ns"
    lines = table(profile).splitlines()
    assert lines[0].startswith("Fake H200, compute capability 9.0, 132 processors at up to 1.98 GHz, 141 GiB, 60 MiB of L2")
    assert len(lines) == 4 + len(profile.figures)


def test_barrier_that_lets_old_values_be_read_fails_the_probe(small):
    driver = fake_driver(FakeCuda())  # it writes nothing, so every value is old
    with pytest.raises(CudaError, match="33792 of 33792 threads read an old value in 10000 rounds, need none"):
        probe(driver.device(), driver, CodeCache.default(), QUICK)


def test_figure_is_the_median_with_its_spread():
    few = summarise([1.0, 4.0, 2.0], "ns", "so")
    assert (few.value, few.repeats, few.spread_percent) == (2.0, 3, 150.0)
    many = summarise([*range(10, 20), 1000], "ns", "so")
    assert many.value == 15
    assert many.spread_percent < 100, "one interruption is no spread"


def test_command_without_a_driver_says_so_in_one_line(monkeypatch, capsys):
    def refuse(name):
        raise OSError("no such file")

    load_library.cache_clear()
    monkeypatch.setattr("ctypes.CDLL", refuse)
    assert main([]) == 1
    assert capsys.readouterr().err == "cuda: libcuda.so.1 is not here, need NVIDIA's driver (no such file)\n"
