import ctypes
import gc

import numpy as np
import pytest

from kernels.cuda.driver import Attribute, FunctionAttribute
from kernels.cuda.errors import CudaError
from tests.kernels.cuda.fake import FakeCuda, fake_driver


@pytest.fixture
def fake():
    return FakeCuda()


@pytest.fixture
def context(fake):
    with fake_driver(fake).device().open() as context:
        yield context


def test_device_says_what_it_is(fake):
    driver = fake_driver(fake)
    device = driver.device()
    assert (driver.version, device.name, device.capability) == ((13, 0), "Fake H200", (9, 0))
    assert (device.attribute(Attribute.PROCESSORS), device.memory_bytes) == (132, 141 << 30)


MAKERS = {
    "memory": (lambda context: context.allocate(64), "cuMemFree_v2"),
    "pinned": (lambda context: context.pinned(64), "cuMemFreeHost"),
    "stream": (lambda context: context.stream(), "cuStreamDestroy_v2"),
    "event": (lambda context: context.event(), "cuEventDestroy_v2"),
    "module": (lambda context: context.load(b"ptx"), "cuModuleUnload"),
}


@pytest.mark.parametrize("name", MAKERS)
def test_resources_are_freed_once_by_close_or_with_or_collection(context, fake, name):
    make, free = MAKERS[name]
    with make(context) as held:
        assert (fake.open[free], held.closed) == (1, False)
    assert (fake.open[free], held.closed) == (0, True)
    held.close()
    assert fake.calls.count(free) == 1
    make(context)
    gc.collect()
    assert (fake.open[free], fake.calls.count(free)) == (0, 2)


def test_context_frees_what_is_left_before_itself(fake):
    context = fake_driver(fake).device().open()
    kept = [make(context) for make, _ in MAKERS.values()]
    context.close()
    assert fake.calls[-1] == "cuDevicePrimaryCtxRelease_v2"
    assert not any(fake.open.values())
    del kept
    gc.collect()
    assert fake.calls[-1] == "cuDevicePrimaryCtxRelease_v2"


def test_calls_are_made_in_the_context_whichever_thread_makes_them(context, fake):
    fake.calls.clear()
    context.synchronize()
    assert fake.calls == ["cuCtxSetCurrent", "cuCtxSynchronize"]


def test_launch_passes_shape_and_pointers_to_arguments(context, fake):
    stream, memory = context.stream(), context.allocate(64)
    function = context.load(b"ptx").function("f")
    seen = []

    def launch(*arguments):
        table = arguments[9]
        seen.append((arguments[1:8], ctypes.c_uint64.from_address(table[0]).value, ctypes.c_int32.from_address(table[1]).value))
        return 0

    fake.cuLaunchKernel = fake.cuLaunchCooperativeKernel = launch
    stream.launch(function, (memory, ctypes.c_int32(-7)), blocks=5, threads=96, shared_bytes=1024)
    stream.launch(function, (memory, ctypes.c_int32(-7)), blocks=5, threads=96, cooperative=True)
    assert seen == [((5, 1, 1, 96, 1, 1, 1024), memory.address, -7), ((5, 1, 1, 96, 1, 1, 0), memory.address, -7)]


def test_function_says_what_it_uses(context):
    function = context.load(b"ptx").function("f")
    function.allow_shared(100 << 10)
    assert (function.attribute(FunctionAttribute.REGISTERS), function.blocks_per_processor(256)) == (32, 2)


def test_copies_go_to_the_stream_where_one_is_given(context, fake):
    memory, other, stream, array = context.allocate(64), context.allocate(16), context.stream(), np.zeros(4, np.float32)
    for call in (memory.write, memory.read, memory.copy_from, memory.fill):
        call(array if call in (memory.write, memory.read) else other if call == memory.copy_from else 1)
        call(array if call in (memory.write, memory.read) else other if call == memory.copy_from else 1, stream)
    names = [name for name in fake.calls if name.startswith(("cuMemcpy", "cuMemset"))]
    assert names == [
        *("cuMemcpyHtoD_v2", "cuMemcpyHtoDAsync_v2", "cuMemcpyDtoH_v2", "cuMemcpyDtoHAsync_v2"),
        *("cuMemcpyDtoD_v2", "cuMemcpyDtoDAsync_v2", "cuMemsetD8_v2", "cuMemsetD8Async"),
    ]


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda m: m.write(np.zeros(17, np.uint8)), "bytes 0 to 17, need a part of the 16 that are allocated"),
        (lambda m: m.read(np.zeros(8, np.uint8), at=12), "bytes 12 to 20, need a part of the 16"),
        (lambda m: m.read(np.zeros(8, np.uint8), at=-1), "bytes -1 to 7, need a part of the 16"),
        (lambda m: m.write(np.zeros((4, 8), np.uint8)[:, :2]), "need a contiguous array"),
        (lambda m: m.read(np.broadcast_to(np.uint8(0), 8)), "not contiguous or not writable"),
    ],
)
def test_copies_outside_the_memory_or_of_strided_arrays_are_refused(context, fake, call, says):
    with pytest.raises(CudaError, match=says):
        call(context.allocate(16))
    assert not any(name.startswith("cuMemcpy") for name in fake.calls)


def test_graph_is_launched_after_its_capture_and_freed(context, fake):
    stream = context.stream()
    with stream.capture() as graph:
        with pytest.raises(CudaError, match="launched before its capture ended"):
            graph.launch(stream)
        stream.launch(context.load(b"ptx").function("f"), (), blocks=1, threads=32)
    graph.launch(stream)
    assert fake.calls[-1] == "cuGraphLaunch"
    assert fake.open["cuGraphDestroy"] == 0, "the record is freed once it is executable"
    graph.close()
    assert fake.open["cuGraphExecDestroy"] == 0


def test_capture_that_fails_is_ended(context, fake):
    with pytest.raises(ZeroDivisionError), context.stream().capture():
        raise ZeroDivisionError
    assert "cuStreamEndCapture" in fake.calls
    assert "cuGraphInstantiateWithFlags" not in fake.calls
    assert fake.open["cuGraphDestroy"] == 0
