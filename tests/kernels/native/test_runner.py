import subprocess

import numpy as np
import pytest

from kernels.native.code.compile import generate
from kernels.native.emit.builder import Module
from kernels.native.emit.epilogue import Epilogue
from kernels.native.emit.types import F32, I8, I32, I64, PTR, VOID
from kernels.native.families.conv import conv_tiles
from kernels.native.families.depthwise import depthwise_tiles
from kernels.native.memory.image import Image
from kernels.native.run.runtime import denormals_as_zero
from kernels.native.target.isa import ISAS
from tests.kernels.native.conftest import EMULATED_ISAS, needs_emulator
from tests.kernels.native.convolutions import check_conv, check_depthwise, depthwise, square
from tests.kernels.native.poolings import check_pool, pool
from tests.kernels.native.runner import run


def function(isa, arguments, body):
    module = Module(isa)
    with module.function("f", arguments) as (k, *values):
        body(k, *values)
    return generate(module.text, isa).code


def test_arguments_beyond_the_registers_arrive(isa):
    def body(k, y, *numbers):
        for n, number in enumerate(numbers):
            k.store(number, y, n)

    y = np.zeros(16, np.int64)
    run(function(isa, {"y": PTR, **{f"n{n}": I64 for n in range(15)}}, body), isa, "f", [[y, *range(1, 16)]])
    assert y.tolist() == [*range(1, 16), 0]


def test_calls_are_made_in_order_on_memory_that_arrays_share(isa):
    code = function(isa, {"x": PTR, "y": PTR}, lambda k, x, y: k.store(k.load(F32, x) * 2.0, y))
    memory = np.ones(5, np.float32)
    run(code, isa, "f", [[memory[n:], memory[n + 1 :]] for n in range(4)])
    assert memory.tolist() == [1, 2, 4, 8, 16]


def test_scratch_is_poisoned_before_each_call_and_missing_arrays_are_null(isa):
    def body(k, y, scratch, missing):
        k.store(k.load(I64, scratch), y)
        k.store(k.convert("ptrtoint", missing, I64), y, 1)
        k.store(k.const(I64, 7), scratch)

    scratch, y = np.zeros(64, np.uint8), np.zeros(4, np.int64)
    signature = {"y": PTR, "scratch": PTR, "missing": PTR}
    run(function(isa, signature, body), isa, "f", [[y, scratch, None], [y[2:], scratch, None]], scratch)
    assert y.tolist() == [-1, 0, -1, 0]


@needs_emulator
@pytest.mark.parametrize("isa", EMULATED_ISAS, ids=lambda isa: isa.name)
def test_the_emulator_notices_who_writes_beside_an_array(isa):
    code = function(isa, {"x": PTR}, lambda k, x: k.store(k.const(F32, 1.0), x, 4))
    with pytest.raises(AssertionError, match="outside of its arrays"):
        run(code, isa, "f", [[np.zeros(4, np.float32)]])


@needs_emulator
@pytest.mark.parametrize("isa", EMULATED_ISAS, ids=lambda isa: isa.name)
def test_the_emulator_notices_a_fault(isa):
    code = function(isa, {"x": PTR}, lambda k, x: k.store(k.const(F32, 1.0), x))
    with pytest.raises(subprocess.CalledProcessError):
        run(code, isa, "f", [[None]])


WIDER = [ISAS["neon_dotprod"], ISAS["neon_i8mm"]] if EMULATED_ISAS else []


@needs_emulator
@pytest.mark.parametrize("isa", WIDER, ids=lambda isa: isa.name)
def test_kernels_run_on_the_wider_sets_of_aarch64(isa):
    epilogue: Epilogue[Image] = Epilogue(bias=True)
    conv, narrow = square(isa, "blocked", 9, 13, 10, 3, pad=1), depthwise(isa, "nhwc", 9, 10, 5, pad=2)
    check_conv(conv, conv_tiles(conv, isa)[0], isa, epilogue)
    check_depthwise(narrow, depthwise_tiles(narrow, isa)[0], isa, epilogue)
    check_pool(pool(isa, "max", 9, 10, 3, 2, pad=1), isa)


@needs_emulator
@pytest.mark.parametrize(("name", "intrinsic"), [("neon_dotprod", "sdot"), ("neon_i8mm", "smmla")])
def test_products_of_bytes_run_in_the_emulator(name, intrinsic):
    isa, vector, bytes_ = ISAS[name], I32.by(4), I8.by(16)

    def body(k, x, w, y):
        dot = f"llvm.aarch64.neon.{intrinsic}.v4i32.v16i8"
        k.store(k.call(dot, vector, k.load(vector, y), k.load(bytes_, x), k.load(bytes_, w)), y)

    rng = np.random.default_rng(0)
    x, w = (rng.integers(-128, 128, 16, np.int8) for _ in range(2))
    y = np.arange(4, dtype=np.int32)
    rows = [a.astype(np.int64).reshape(2, 8) if name == "neon_i8mm" else a.astype(np.int64).reshape(4, 4) for a in (x, w)]
    exact = (rows[0] @ rows[1].T).ravel() if name == "neon_i8mm" else (rows[0] * rows[1]).sum(1)
    run(function(isa, {"x": PTR, "w": PTR, "y": PTR}, body), isa, "f", [[x, w, y]])
    assert y.tolist() == (exact + range(4)).tolist()


def test_denormals_are_zero_inside_and_come_back_after(isa):
    module = Module(isa)
    with module.function("halve", {"x": PTR, "y": PTR}, exported=False) as (k, x, y):
        k.store(k.load(F32, x) * 0.5, y)
    with module.function("f", {"x": PTR, "y": PTR}) as (k, x, y):
        k.call("halve", VOID, x, y)
        with denormals_as_zero(k):
            k.call("halve", VOID, x, k.offset(y, 1))
            k.call("halve", VOID, k.offset(x, 1), k.offset(y, 2))
        k.call("halve", VOID, x, k.offset(y, 3))
    tiny = np.finfo(np.float32).tiny
    x, y = np.array([tiny, 3 * tiny], np.float32), np.full(4, np.nan, np.float32)
    run(generate(module.text, isa).code, isa, "f", [[x, y]])
    assert y.tolist() == [tiny / 2, 0, 1.5 * tiny, tiny / 2]
