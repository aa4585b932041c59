import ctypes

import pytest

from kernels.cuda.driver import Driver
from kernels.cuda.errors import CudaError, DeviceMemoryError, GpuLostError, GpuUnsupportedError, NoDriverError
from kernels.cuda.library import Library, load_library
from kernels.errors import DeviceLostError, EdgewiseError, UnsupportedError
from tests.kernels.cuda.fake import FakeCuda, fake_driver


@pytest.fixture
def no_driver(monkeypatch):
    def refuse(name):
        raise OSError(f"{name}: cannot open shared object file: No such file or directory")

    load_library.cache_clear()
    monkeypatch.setattr("ctypes.CDLL", refuse)


@pytest.mark.parametrize(
    ("code", "kind", "root", "says"),
    [
        (1, CudaError, EdgewiseError, r"cuX: CUDA_ERROR_INVALID_VALUE \(1\), invalid argument$"),
        (2, DeviceMemoryError, EdgewiseError, r"cuX: CUDA_ERROR_OUT_OF_MEMORY \(2\), out of memory$"),
        (100, NoDriverError, UnsupportedError, r"cuX: CUDA_ERROR_NO_DEVICE \(100\), no CUDA-capable device is detected$"),
        (218, GpuUnsupportedError, UnsupportedError, r"cuX: CUDA_ERROR_INVALID_PTX \(218\)"),
        (720, GpuUnsupportedError, UnsupportedError, r"cuX: CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE \(720\)"),
        (
            700,
            GpuLostError,
            DeviceLostError,
            r"cuX: CUDA_ERROR_ILLEGAL_ADDRESS \(700\), an illegal .*; this process has lost the GPU, start another$",
        ),
        (4242, CudaError, EdgewiseError, r"cuX: unknown to this driver \(4242\), unknown to this driver$"),
    ],
)
def test_result_codes_become_errors_by_what_the_caller_can_do(code, kind, root, says):
    with pytest.raises(kind, match=says) as found:
        Library(FakeCuda(cuX=code)).call("cuX")
    assert isinstance(found.value, root)


def test_machine_without_a_driver_is_refused_in_one_sentence(no_driver):
    with pytest.raises(NoDriverError) as found:
        Driver()
    assert str(found.value) == (
        "cuda: libcuda.so.1 is not here, need NVIDIA's driver "
        "(libcuda.so.1: cannot open shared object file: No such file or directory)"
    )


def test_driver_that_sees_no_gpu_is_refused(monkeypatch):
    load_library.cache_clear()
    monkeypatch.setattr("ctypes.CDLL", lambda name: FakeCuda(cuInit=100))
    with pytest.raises(NoDriverError, match="no CUDA-capable device is detected"):
        Driver()


def test_gpu_that_is_not_there_is_refused():
    with pytest.raises(NoDriverError, match=r"the driver sees 1 GPUs, need one numbered 1$"):
        fake_driver(FakeCuda()).device(1)


def test_freeing_ignores_what_earlier_work_failed_with():
    fake = FakeCuda(cuMemFree_v2=700)
    with fake_driver(fake).device().open() as context:
        context.allocate(8).close()
    assert fake.calls.count("cuMemFree_v2") == 1


def test_compilers_words_are_in_the_error(monkeypatch):
    fake = FakeCuda(cuModuleLoadDataEx=218)

    def load(handle, image, count, options, values):
        ctypes.memmove(values[0], b"ptxas: line 4\n\0", 15)
        return 218

    monkeypatch.setattr(fake, "cuModuleLoadDataEx", load, raising=False)
    with fake_driver(fake).device().open() as context, pytest.raises(GpuUnsupportedError, match=r"INVALID_PTX.*: ptxas: line 4$"):
        context.load(b"nonsense")
