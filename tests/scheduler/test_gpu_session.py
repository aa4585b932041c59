"""Sessions on a GPU: on one that computes nothing, or where there is none."""

import numpy as np
import onnx
import pytest

import graph.cuda.engine
import kernels.cuda.program
from graph.cuda.gpu import Gpu
from kernels.cuda.driver import Driver
from kernels.cuda.errors import DeviceMemoryError, GpuLostError, NoDriverError
from kernels.errors import InvalidError, UnsupportedError
from scheduler.session import Session
from tests.graph.cuda.small import MODELS
from tests.graph.oracle import constant, make, node, port
from tests.kernels.cuda.fake import FakeCuda, fake_driver


@pytest.fixture
def fake(monkeypatch):
    fake = FakeCuda()
    gpu = Gpu(fake_driver(fake).device())
    monkeypatch.setattr(kernels.cuda.program, "compile_ptx", lambda *_: b"ptx")
    monkeypatch.setattr(graph.cuda.engine, "shared_gpu", lambda: gpu)
    return fake


def any_rows() -> onnx.ModelProto:
    return make([node("MatMul", ["x", "w"], ["y"])], ["y"], [constant("w", np.ones((16, 8)))], [port("x", ["rows", 16])])


def test_without_a_driver_it_says_so():
    try:
        Driver()
    except NoDriverError:
        with pytest.raises(NoDriverError, match=r"cuda: libcuda"):
            Session(any_rows(), threads=1, backend="cuda")
    else:
        pytest.skip("this machine has a driver")


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16", "auto"])
def test_results_have_their_shapes_and_one_launch_runs_the_model(fake, precision):
    proto, feeds = MODELS["residual"]()
    session = Session(proto, threads=1, precision=precision, backend="cuda")
    first = session.run(feeds)
    launches = fake.calls.count("cuLaunchKernelEx")
    session.run(feeds)
    assert [(name, array.shape, array.dtype) for name, array in first.items()] == [("y", (2, 16, 5, 6), np.float32)]
    assert (fake.calls.count("cuGraphLaunch"), fake.calls.count("cuLaunchKernelEx") - launches) == (2, 0)


def test_other_shapes_are_lowered_anew_and_share_weights(fake):
    session = Session(any_rows(), threads=1, backend="cuda")
    for rows in (64, 65):
        assert session.run({"x": np.zeros((rows, 16), np.float32)})["y"].shape == (rows, 8)
    assert fake.calls.count("cuGraphInstantiateWithFlags") == 2
    assert fake.calls.count("cuMemAlloc_v2") == 3, "an arena each, and the weights once"


def test_steps_say_how_they_run(fake):
    session = Session(any_rows(), threads=1, precision="tf32", backend="cuda")
    (step,) = session.executor({"x": np.zeros((64, 16), np.float32)}).steps
    assert step.algorithm.startswith("cuda/product{cluster=1,slices=1,tile=")
    assert step.algorithm.endswith("}/tf32")


def test_a_step_of_several_launches_is_named_by_the_one_that_could_run_in_most_ways(fake):
    proto, feeds = MODELS["stem"]()
    steps = Session(proto, threads=1, backend="cuda").executor(feeds).steps
    assert [step.algorithm.partition("{")[0] for step in steps] == ["cuda/product"], "not its copy to channels last"


def test_trace_shares_out_the_time_among_steps(fake):
    session = Session(MODELS["residual"]()[0], threads=1, backend="cuda")
    timed = session.trace(MODELS["residual"]()[1], runs=3)
    assert len(timed.runs) == 3


def test_products_are_measured_where_a_contest_is_asked_for(fake, monkeypatch):
    monkeypatch.setenv("EDGEWISE_GPU_CONTEST", "3")
    Session(any_rows(), threads=1, precision="tf32", backend="cuda").run({"x": np.zeros((64, 16), np.float32)})
    assert fake.calls.count("cuEventElapsedTime") > 3 * 5


def test_a_contest_of_no_number_is_refused(fake, monkeypatch):
    monkeypatch.setenv("EDGEWISE_GPU_CONTEST", "many")
    with pytest.raises(InvalidError, match=r"EDGEWISE_GPU_CONTEST: 'many', need a whole number, 0 for no contest"):
        Session(any_rows(), threads=1, backend="cuda")


def test_full_memory_and_a_lost_gpu_are_errors_of_their_own(fake):
    session = Session(any_rows(), threads=1, backend="cuda")
    fake.fails["cuMemAlloc_v2"] = 2
    with pytest.raises(DeviceMemoryError):
        session.run({"x": np.zeros((64, 16), np.float32)})
    del fake.fails["cuMemAlloc_v2"]
    session.run({"x": np.zeros((64, 16), np.float32)})
    fake.fails["cuStreamSynchronize"] = 700
    with pytest.raises(GpuLostError, match="this process has lost the GPU"):
        session.run({"x": np.zeros((64, 16), np.float32)})


def test_plans_are_for_other_backends(fake):
    proto = any_rows()
    other = Session(proto, threads=1, backend="numpy")
    other.run({"x": np.zeros((4, 16), np.float32)})
    made = other.plan
    with pytest.raises(UnsupportedError, match="session: backend cuda follows no plan"):
        Session(proto, threads=1, backend="cuda", plan=made)
    session = Session(proto, threads=1, backend="cuda")
    with pytest.raises(UnsupportedError, match="session: backend cuda follows no plan"):
        session.follow(made)
    with pytest.raises(UnsupportedError, match="session: backend cuda follows no plan"):
        _ = session.plan


@pytest.mark.parametrize("precision", ["tf32", "fp16"])
def test_precisions_of_gpus_are_refused_elsewhere(precision):
    with pytest.raises(UnsupportedError, match=f"precision {precision} is not available"):
        Session(any_rows(), threads=1, precision=precision, backend="numpy")
