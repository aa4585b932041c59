from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from kernels.native.code.cache import CodeCache
from kernels.native.code.compile import generate
from kernels.native.emit.epilogue import Epilogue
from kernels.native.emit.kernel import emitted
from kernels.native.errors import EmitError
from kernels.native.families.conv import emit_conv, make_tile, pack_bias, pack_weights
from kernels.native.families.depthwise import emit_depthwise, make_depthwise_tile, pack_depthwise, pack_depthwise_bias
from kernels.native.memory.buffers import aligned
from kernels.native.run.program import KernelCall, Program, ProgramCode, Ref
from kernels.native.run.thread_pool import ThreadPool
from kernels.native.run.walk import ENTRY, STEP, walk_ir
from kernels.native.target.isa import ISAS
from tests.kernels.native.chains import chain
from tests.kernels.native.convolutions import depthwise, square
from tests.kernels.native.reference import assert_close, conv_reference

X, ARENA, Y, WEIGHTS = range(4)


@pytest.fixture
def isa(host):
    """Return each instruction set that this machine runs itself. Programs run on a thread pool, not in an emulator."""
    return host


class Bottleneck:
    """The program of an inverted residual block: expand, depthwise, project and add the input. One memory holds all weights."""

    def __init__(self, isa, cache=None, threads=3):
        c, size, self.rng = isa.lanes, 9, np.random.default_rng(0)
        expand, middle = square(isa, "blocked", size, c, 3 * c, 1), depthwise(isa, "blocked", size, 3 * c, 3, pad=1)
        project = square(isa, "blocked", size, 3 * c, c, 1)
        tiles = (make_tile(expand, isa, 4, 2), make_depthwise_tile(middle, isa, 3, 1), make_tile(project, isa, 6, 1))
        tiles = (replace(tiles[0], row_pixels=8), replace(tiles[1], rows=2), replace(tiles[2], row_pixels=12))
        self.convs = (expand, middle, project)
        self.w = [self._normal(conv.y.channels, conv.group_inputs, *conv.kernel) / 3 for conv in self.convs]
        self.b = [self._normal(conv.y.channels) for conv in self.convs]
        parts = [
            *(pack_weights(expand, tiles[0], isa, self.w[0]), pack_depthwise(middle, tiles[1], isa, self.w[1])),
            *(pack_weights(project, tiles[2], isa, self.w[2]), pack_bias(expand, isa, self.b[0], tiles[0].vectors)),
            *(pack_depthwise_bias(isa, self.b[1], tiles[1].vectors), pack_bias(project, isa, self.b[2], tiles[2].vectors)),
        ]
        self.weights, refs = aligned(4 * sum(part.size for part in parts)).view(np.float32), list[Any]()
        for part in parts:
            at = 4 * sum(self_part.size for self_part in parts[: len(refs)])
            self.weights[at // 4 : at // 4 + part.size] = part
            refs.append(Ref(WEIGHTS, at))
        second = Ref(ARENA, 4 * expand.y.elements)
        arguments = [dict(zip("wb", (refs[n], refs[n + 3]), strict=True)) for n in range(3)]
        merged = chain(("add", project.y), bias=True)
        kernels = (
            emit_conv(expand, tiles[0], chain("relu", bias=True), isa),
            emit_depthwise(middle, tiles[1], chain("relu", bias=True), isa),
            emit_conv(project, tiles[2], merged, isa),
        )
        steps = (
            KernelCall(kernels[0], {"x": Ref(X), "y": Ref(ARENA), **arguments[0]}),
            KernelCall(kernels[1], {"x": Ref(ARENA), "y": second, **arguments[1]}, grain=2),
            KernelCall(kernels[2], {"x": second, "r0": Ref(X), "y": Ref(Y), **arguments[2]}),
        )
        self.pool = ThreadPool(threads)
        self.program = Program(ProgramCode(steps, 4, isa, cache=cache), self.pool)
        self.arena = aligned(8 * expand.y.elements).view(np.float32)
        self.x, self.y = np.zeros(expand.x.elements, np.float32), np.zeros(project.y.elements, np.float32)
        for slot, memory in ((X, self.x), (ARENA, self.arena), (Y, self.y), (WEIGHTS, self.weights)):
            self.program.bind(slot, memory)

    def _normal(self, *shape):
        return self.rng.standard_normal(shape).astype(np.float32)

    def run(self, x, threads, **how):
        self.convs[0].x.store(x, self.x)
        self.y[:] = self.arena[:] = np.nan
        self.program.run(threads, **how)
        return self.convs[2].y.load(self.y).copy()

    def exact(self, x):
        value = x
        for n, conv in enumerate(self.convs):
            value = conv_reference(conv, value, self.w[n], self.b[n])
            value = np.maximum(value, 0) if n < 2 else value + x
        return value


def test_steps_run_in_order_on_any_number_of_threads_with_the_same_bits(isa):
    block = Bottleneck(isa)
    for _ in range(3):
        x = block._normal(1, isa.lanes, 9, 9)
        results = [block.run(x, threads) for threads in (1, 2, 3)]
        assert_close(results[0], block.exact(x), 200)
        assert all(np.array_equal(results[0], other) for other in results[1:])
    block.pool.close()


def test_slots_can_be_bound_to_other_memory(isa):
    block = Bottleneck(isa)
    x = block._normal(1, isa.lanes, 9, 9)
    first = block.run(x, 2)
    block.y = np.zeros_like(block.y)
    block.program.bind(Y, block.y)
    np.testing.assert_array_equal(block.run(x, 2), first)
    block.pool.close()


def test_timed_program_stamps_every_step_in_order(isa):
    block = Bottleneck(isa)
    block.run(block._normal(1, isa.lanes, 9, 9), 2, timed=True)
    times = block.program.times(2)
    assert times.shape == (2, 3, 3)
    assert (np.diff(times.reshape(2, 9), axis=1) >= 0).all()
    assert (times > 0).all()
    worked = times[:, :, 1] > times[:, :, 0]
    assert worked.any(0).all()
    ends = np.where(worked, times[:, :, 1], 0).max(0)
    assert times[:, 1, 0].min() >= ends[0]  # nobody begins step 1 before step 0 is done
    block.pool.close()


def test_timed_and_plain_runs_give_the_same(isa):
    block = Bottleneck(isa)
    x = block._normal(1, isa.lanes, 9, 9)
    np.testing.assert_array_equal(block.run(x, 2), block.run(x, 2, timed=True))
    block.pool.close()


def test_plain_run_reads_no_clock(isa):
    block = Bottleneck(isa)
    block.run(block._normal(1, isa.lanes, 9, 9), 2)
    assert not block.program.times(2).any()
    block.pool.close()


@pytest.mark.parametrize("threads", [1, 3])
def test_stopped_run_does_no_work_and_ends(isa, threads):
    block = Bottleneck(isa)
    x, stop = block._normal(1, isa.lanes, 9, 9), np.ones(1, np.int32)
    assert np.isnan(block.run(x, threads, stop=stop)).all()
    stop[0] = 0
    assert_close(block.run(x, threads, stop=stop), block.exact(x), 200)
    block.pool.close()


def test_second_program_comes_from_the_cache(isa, tmp_path, monkeypatch):
    cache = CodeCache(tmp_path / "code")
    monkeypatch.setattr("kernels.native.code.resident._resident", {})  # as in a process of its own
    Bottleneck(isa, cache=cache).pool.close()
    monkeypatch.setattr("kernels.native.code.resident._resident", {})

    def refuse(*arguments, **named):
        raise AssertionError("compiled again")

    monkeypatch.setattr("kernels.native.code.farm.generate", refuse)
    block = Bottleneck(isa, cache=cache)
    x = block._normal(1, isa.lanes, 9, 9)
    assert_close(block.run(x, 2), block.exact(x), 200)
    block.pool.close()


def test_pool_that_grows_after_the_program_was_made_can_run_it(isa):
    block = Bottleneck(isa, threads=1)
    block.pool.grow(3)
    x = block._normal(1, isa.lanes, 9, 9)
    assert_close(block.run(x, 3, timed=True), block.exact(x), 200)
    block.pool.close()


def test_slot_that_is_not_there_is_refused():
    isa, pool = ISAS["avx2"], ThreadPool(1)
    conv = square(isa, "blocked", 4, 8, 8, 1)
    step = KernelCall(emit_conv(conv, make_tile(conv, isa, 4, 1), Epilogue(), isa), {"x": Ref(0), "y": Ref(2), "w": Ref(1)})
    with pytest.raises(EmitError, match="refers to slot 2, it has 2"):
        Program(ProgramCode([step], 2, isa), pool)


@pytest.mark.parametrize("isa", ISAS.values(), ids=ISAS)
def test_walker_compiles_for_every_instruction_set(isa):
    assert f"@{ENTRY}(" in walk_ir(isa)
    assert generate(walk_ir(isa), isa).code


def test_programs_share_the_code_of_equal_kernels(isa):
    first, second = Bottleneck(isa), Bottleneck(isa)
    row = STEP["function"]
    assert first.program.table[:, row].tolist() == second.program.table[:, row].tolist()
    first.pool.close()
    second.pool.close()


def halving(isa, chunks):
    """Return a kernel y = x / 2 whose chunks are one vector each."""

    def body(k, pointers, _, chunks):
        with k.loop("chunk", *chunks) as chunk:
            k.store(k.load(k.f32, pointers["x"], chunk * isa.lanes) * 0.5, pointers["y"], chunk * isa.lanes)

    return emitted(isa, "halving", ("x", "y"), chunks, body)


@pytest.mark.parametrize("threads", [1, 2])
def test_denormals_are_zero_in_a_program_and_numbers_after_it(isa, threads):
    smallest, count = np.finfo(np.float32).tiny, 64 * isa.lanes
    x, y = np.full(count, smallest), np.full(count, np.nan, np.float32)
    x[::2] = smallest / 2
    x[1] = 3.0
    pool = ThreadPool(threads)
    program = Program(ProgramCode([KernelCall(halving(isa, 64), {"x": Ref(0), "y": Ref(1)})], 2, isa), pool)
    program.bind(0, x)
    program.bind(1, y)
    for _ in range(3):
        program.run(threads)
        assert y[1] == 1.5
        assert not y[2:].any()
        assert (x[1] * np.float32(0.5), smallest * np.float32(0.5) > 0) == (1.5, True)
    pool.close()
