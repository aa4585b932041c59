import ctypes
from typing import Any

import pytest

from kernels.cuda.errors import CudaError
from kernels.cuda.families.elementwise import Array, Map
from kernels.cuda.families.rows import Rows
from kernels.cuda.program import Kernels, Launch, Program, Replay
from kernels.native.code.cache import CodeCache
from tests.kernels.cuda import fake as fakes
from tests.kernels.cuda.families.product_cases import ADD


@pytest.fixture
def fake():
    return fakes.FakeCuda()


@pytest.fixture
def context(fake):
    with fakes.fake_driver(fake).device().open() as context:
        yield context


@pytest.fixture
def kernels(context, tmp_path):
    with Kernels(context, CodeCache(tmp_path / "code")) as kernels:
        yield kernels


def program():
    rows = Array((8, 1), "bf16")
    softmax = Rows(4, 8)
    add = Map(ADD, (4, 8), rows, (rows, rows)).launch(y="hidden", r0="input", r1="input")
    return Program((add, softmax.launch(softmax.form("softmax", "bf16"), x="hidden", y="output"), add))


ADDRESSES = {"input": 0x1000, "hidden": 0x2000, "output": 0x3000}


def test_names_of_a_program_are_those_of_its_launches():
    assert program().names == {"input", "hidden", "output"}


def test_addresses_are_bound_by_name():
    first, second, _ = program().launches
    bound = first.bound(ADDRESSES)
    assert (bound.y, bound.r0, bound.r1, bound.items) == (0x2000, 0x1000, 0x1000, 4)
    assert (first.told.y, first.told.r0) == (0, 0), "the launch itself stays without addresses"
    assert (second.bound(ADDRESSES).x, second.bound(ADDRESSES).n) == (0x2000, 8)


def test_memory_is_an_address(context):
    with context.allocate(64) as memory:
        assert program().launches[1].bound({"hidden": memory, "output": 1}).x == memory.address


def test_address_that_is_missing_is_named():
    with pytest.raises(CudaError, match=r"no address for 'input', which bf16run_map\S+ reads as r0, need one"):
        program().launches[0].bound({"hidden": 1})


def test_a_launch_may_fetch_what_a_later_one_reads():
    first = program().launches[0]
    bound = first.fetching("weights", 1000).bound(ADDRESSES | {"weights": 0x9000})
    assert (bound.ahead, bound.ahead_lines, bound.y) == (0x9000, 7, 0x2000)
    assert (first.told.ahead_lines, "ahead" in first.names) == (0, False)


def test_names_that_a_kernel_does_not_read_are_refused():
    rows = Rows(4, 8)
    with pytest.raises(CudaError, match=r"names for \['x', 'z'\], need them for \['x', 'y'\]"):
        rows.launch(rows.form("max", "fp32"), x="a", z="b")


def test_program_is_recorded_once_and_replayed(fake, context, kernels):
    with context.stream() as stream, Replay(kernels, program(), ADDRESSES, stream) as replay:
        assert fake.calls.count("cuModuleLoadDataEx") == 2, "two of three launches share a kernel"
        assert fake.calls.count("cuLaunchKernelEx") == 3
        begin, end = fake.calls.index("cuStreamBeginCapture_v2"), fake.calls.index("cuStreamEndCapture")
        assert "cuModuleLoadDataEx" not in fake.calls[begin:end]
        for _ in range(3):
            replay.launch(stream)
        assert fake.calls.count("cuGraphLaunch") == 3
        assert fake.calls.count("cuLaunchKernelEx") == 3
    assert fake.open["cuGraphExecDestroy"] == fake.open["cuGraphDestroy"] == 0


def test_rebinding_changes_the_executable_graph(fake, context, kernels):
    with context.stream() as stream, Replay(kernels, program(), ADDRESSES, stream) as replay:
        replay.rebind(ADDRESSES | {"hidden": 0x9000})
        assert fake.calls.count("cuGraphInstantiateWithFlags") == fake.calls.count("cuGraphExecUpdate_v2") == 1
        *_, table, _ = fake.arguments["cuLaunchKernelEx"]
        told = program().launches[0].told
        assert type(told).from_address(table[0]).y == 0x9000
        assert fake.open["cuGraphDestroy"] == 0, "the record is freed"
        assert fake.open["cuGraphExecDestroy"] == 1


def test_update_that_the_driver_refuses_is_an_error(fake, context, kernels):
    with context.stream() as stream, Replay(kernels, program(), ADDRESSES, stream) as replay:
        fake.fails["cuGraphExecUpdate_v2"] = 910
        with pytest.raises(CudaError, match="910"):
            replay.rebind(ADDRESSES)
        assert fake.open["cuGraphDestroy"] == 0


def test_closed_kernels_are_unloaded_and_load_again(fake, context, tmp_path):
    kernels = Kernels(context, CodeCache(tmp_path / "code"))
    launch = program().launches[0]
    first = kernels.function(launch.kernel)
    assert kernels.function(launch.kernel) is first
    kernels.close()
    assert fake.open["cuModuleUnload"] == 0
    assert kernels.function(launch.kernel) is not first
    kernels.close()


def test_kernels_that_use_shared_memory_may_have_as_much(fake, context, kernels):
    rows = Rows(4, 5000)
    launch = rows.launch(rows.form("softmax", "fp32"), x="a", y="b")
    assert launch.kernel.shared_bytes == 128
    kernels.function(launch.kernel)
    _, _, n_bytes = fake.arguments["cuFuncSetAttribute"]
    assert n_bytes.value == 128


def test_launch_keeps_its_descriptor_from_changes_of_the_caller():
    names: Any = {"x": "a", "y": "b"}
    rows = Rows(4, 8)
    launch = rows.launch(rows.form("max", "fp32"), **names)
    names["x"] = "other"
    assert launch.names == {"x": "a", "y": "b"}
    assert isinstance(launch, Launch)
    assert ctypes.sizeof(launch.told) % 8 == 0
