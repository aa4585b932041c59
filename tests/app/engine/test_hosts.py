"""Tests of the engine with real processes: results, deaths, hangs, cancellation, and that no resource is leaked."""

import asyncio
import gc
import os
import re
import signal
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import psutil
import pytest
from onnx import TensorProto, helper

from app.engine.hosts import ProcessHost
from app.engine.policy import DynamicBatching, InstanceGroup
from app.engine.port import Engine
from app.engine.requests import InferOptions
from app.engine.slab import Space
from app.errors import RequestError
from app.models.files import Card
from app.models.repository import Served, State
from app.settings import Settings
from kernels.errors import InvalidError
from scheduler.session import Session
from tests.app.engine import models

FOLDERS = ("app", "scheduler", "profiler", "graph", "kernels")
MODES = pytest.mark.parametrize("workers", [0, 1], ids=["in-process", "process"])


@asynccontextmanager
async def engine(**settings: Any) -> AsyncIterator[Engine]:
    made = Engine(Settings(**settings))
    try:
        yield made
        for lane in list(made._lanes.values()):
            await lane.batcher.drained()
        assert (made.pending, made.working) == (0, 0)
        assert made._shared.budget.free == made._shared.budget.cores
    finally:
        made.stop()
        made.close()


def descriptors() -> list[str]:
    return sorted(path.name for path in Path("/proc/self/fd").iterdir())


def run(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a test's coroutine, and assert that it leaks no file descriptors, processes or memory mappings."""
    gc.collect()  # what tests before this one left, which would else be gone after it
    before, children = descriptors(), set(psutil.Process().children())
    asyncio.run(work())
    gc.collect()
    assert set(descriptors()) <= set(before)  # those that were open before may have been closed meanwhile
    deadline = time.monotonic() + 20  # a thread waits for processes that were killed
    while not set(psutil.Process().children()) <= children:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert "memfd:edgewise" not in Path("/proc/self/maps").read_text()


def rows(count: int, seed: int = 0) -> dict[str, Any]:
    return {"x": np.random.default_rng(seed).standard_normal((count, 16), np.float32)}


def process(made: Engine, index: int = 0) -> ProcessHost:
    return made._processes[index]


def lane_of(made: Engine, entry: Served) -> Any:
    assert entry.session is not None
    return made._lanes[entry.session]


async def until(condition: Callable[[], Any], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


def pid(made: Engine, index: int = 0) -> int:
    link = process(made, index).link
    assert link is not None
    return link.process.pid


@MODES
def test_many_clients_get_their_own_answers(tmp_path: Path, workers: int) -> None:
    entry = models.served(models.dense(tmp_path), max_batch_size=16)
    reference = Session(tmp_path / "dense.onnx", backend="numpy")

    async def client(made: Engine, number: int) -> list[int]:
        random, sizes = np.random.default_rng(number), []
        for turn in range(3):
            feeds = rows(int(random.choice([1, 1, 1, 2, 3, 5])), number * 10 + turn)
            outcome = await made.infer(entry, feeds)
            np.testing.assert_allclose(outcome.outputs["y"], reference.run(feeds)["y"], rtol=1e-4, atol=1e-4)
            sizes.append(outcome.batch_rows)
        return sizes

    async def work() -> None:
        async with engine(workers=workers) as made:
            sizes = [size for found in await asyncio.gather(*(client(made, n) for n in range(200))) for size in found]
            assert max(sizes) > 5  # batches were made
            gc.collect()
            await asyncio.sleep(0.1)
            if workers:
                link = process(made).link
                assert link is not None
                assert (link.in_flight, link.shared_bytes) == (0, 0)

    run(work)


@MODES
def test_every_kind_of_tensor_travels(tmp_path: Path, workers: int) -> None:
    value = helper.make_tensor_value_info
    kinds = {"text": TensorProto.STRING, "half": TensorProto.BFLOAT16, "flag": TensorProto.BOOL, "none": TensorProto.INT8}
    nodes = [helper.make_node("Identity", [name], [f"{name}_out"]) for name in kinds]
    inputs = [value(name, kind, ["n"]) for name, kind in kinds.items()]
    outputs = [value(f"{name}_out", kind, ["n"]) for name, kind in kinds.items()]
    path = models._save(tmp_path, "echo", nodes, inputs, outputs, [])
    feeds = {
        "text": np.array(["ä\udcff", "", "long" * 100], object),
        "half": np.array([1.5, -2, 3], ml_dtypes.bfloat16),
        "flag": np.array([True, False, True]),
        "none": np.array([1, -2, 3], np.int8),
    }

    async def work() -> None:
        async with engine(workers=workers) as made:
            entry = models.served(path)
            for count in (3, 0):
                part = {name: array[:count] for name, array in feeds.items()}
                outcome = await made.infer(entry, part)
                for name, array in part.items():
                    np.testing.assert_array_equal(outcome.outputs[f"{name}_out"], array)

    run(work)


@MODES
def test_one_bad_request_harms_no_other(tmp_path: Path, workers: int) -> None:
    entry = models.served(models.pick(tmp_path), max_batch_size=4)

    async def work() -> None:
        async with engine(workers=workers) as made:
            for _ in range(3):
                ids = [1, 2, 3, 99, 4, 5, 6, 7] * 4
                tasks = [made.infer(entry, {"ids": np.array([number])}) for number in ids]
                for number, result in zip(ids, await asyncio.gather(*tasks, return_exceptions=True), strict=True):
                    if number == 99:
                        assert isinstance(result, InvalidError)
                    else:
                        assert not isinstance(result, BaseException)
                        assert result.outputs["y"].tolist() == [[2 * number, 2 * number + 1]]
            with pytest.raises(RequestError, match="batch-size must be <= 4"):
                await made.infer(entry, {"ids": np.arange(5)})

    run(work)


def test_a_refused_feed_never_reaches_the_queue(tmp_path: Path) -> None:
    async def work() -> None:
        async with engine() as made:
            entry = models.served(models.dense(tmp_path))
            with pytest.raises(InvalidError, match="need float32"):
                await made.infer(entry, {"x": np.zeros((1, 16))})
            with pytest.raises(RequestError, match="is not ready"):
                await made.infer(Served("m", "1", tmp_path, Card(), State.LOADING), {})

    run(work)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV], ids=["killed", "segfault"])
def test_a_death_costs_the_requests_in_flight_and_nothing_else(tmp_path: Path, number: signal.Signals) -> None:
    slow, dense = models.served(models.slow(tmp_path, 200_000)), models.served(models.dense(tmp_path))

    async def work() -> None:
        async with engine(workers=2) as made:
            await made.load(slow)
            await made.load(dense)
            victim, other = pid(made, 0), pid(made, 1)
            running = asyncio.ensure_future(made.infer(slow, {"x": np.zeros(1, np.float32)}))
            link = process(made, 0).link
            assert link is not None
            await until(lambda: link.in_flight)
            await asyncio.sleep(0.2)
            os.kill(victim, number)
            with pytest.raises(RequestError, match=f"signal {int(number)}") as caught:
                await running
            assert (caught.value.status, caught.value.headers) == (503, {"Retry-After": "1"})
            feeds = rows(2)
            assert dense.session is not None
            expected = dense.session.run(feeds)["y"]
            np.testing.assert_allclose((await made.infer(dense, feeds)).outputs["y"], expected, rtol=1e-5)
            assert pid(made, 1) == other
            await until(lambda: process(made, 0).link is not None)
            assert pid(made, 0) != victim
            assert process(made, 0).restarts == 1

    run(work)


def test_the_same_process_serves_again_after_its_death(tmp_path: Path) -> None:
    dense = models.served(models.dense(tmp_path))

    async def work() -> None:
        async with engine(workers=1) as made:
            feeds = rows(1)
            first = (await made.infer(dense, feeds)).outputs["y"].copy()
            os.kill(pid(made), signal.SIGKILL)
            await until(lambda: process(made).restarts == 1)
            np.testing.assert_array_equal((await made.infer(dense, feeds)).outputs["y"], first)

    run(work)


def test_who_waits_for_a_process_holds_no_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pick, dense = models.served(models.pick(tmp_path)), models.served(models.dense(tmp_path))
    monkeypatch.setattr("app.engine.hosts.FIRST_PAUSE_S", 5.0)

    async def work() -> None:
        async with engine(workers=2) as made:
            made.bind()
            for entry in (pick, dense):
                made.preload(entry)
            await made.load(pick)
            await made.load(dense)
            assert [len(engines.models) for engines in made._processes] == [1, 1]
            os.kill(pid(made, 0), signal.SIGKILL)
            await until(lambda: process(made, 0).restarts == 1)
            waiting = asyncio.ensure_future(made.infer(pick, {"ids": np.array([1])}))
            await asyncio.sleep(0.1)
            await made.infer(dense, rows(1))
            assert not waiting.done()
            assert process(made, 0).link is None
            assert (await waiting).outputs["y"].tolist() == [[2, 3]]

    run(work)


@MODES
def test_one_model_answers_while_another_is_built(tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiling holds no cores, no instance and no thread that runs."""
    monkeypatch.setenv("EDGEWISE_CODE_CACHE", str(tmp_path / "code"))
    dense, chain = models.served(models.dense(tmp_path)), models.served(models.chain(tmp_path, 40))
    assert chain.session is not None

    async def work() -> None:
        async with engine(workers=workers) as made:
            await made.infer(dense, rows(1))
            building = asyncio.ensure_future(made.infer(chain, rows(1)))
            answered = 0
            while not building.done():
                await made.infer(dense, rows(1))
                answered += 1
            assert answered > 10
            assert (await building).outputs["y"].shape == (1, 56)

    run(work)


def test_a_process_that_hangs_is_killed(tmp_path: Path) -> None:
    dense = models.served(models.dense(tmp_path))

    async def work() -> None:
        async with engine(workers=1, run_timeout_s=1) as made:
            await made.infer(dense, rows(1))
            victim = pid(made)
            os.kill(victim, signal.SIGSTOP)
            await until(lambda: psutil.Process(victim).status() == psutil.STATUS_STOPPED)
            with pytest.raises(RequestError, match=r"no answer within 1 s") as caught:
                await made.infer(dense, rows(1))
            assert caught.value.status == 503
            await until(lambda: not psutil.pid_exists(victim))
            await until(lambda: process(made).link is not None)
            await made.infer(dense, rows(1))

    run(work)


def test_a_model_that_ends_its_process_again_and_again_is_set_aside(tmp_path: Path) -> None:
    slow, dense = models.served(models.slow(tmp_path, 500_000)), models.served(models.dense(tmp_path))

    async def work() -> None:
        async with engine(workers=1) as made:
            await made.load(dense)
            for _ in range(3):
                running = asyncio.ensure_future(made.infer(slow, {"x": np.zeros(1, np.float32)}))
                await asyncio.sleep(0)
                await until(lambda: lane_of(made, slow).batcher.running and process(made).link and process(made).link.in_flight)
                await asyncio.sleep(0.3)
                os.kill(pid(made), signal.SIGKILL)
                with pytest.raises(RequestError, match="signal 9"):
                    await running
            with pytest.raises(RequestError, match="set aside") as caught:
                await made.infer(slow, {"x": np.zeros(1, np.float32)})
            assert caught.value.status == 503
            assert 1 <= int(caught.value.headers["Retry-After"]) <= 30
            await made.infer(dense, rows(1))

    run(work)


def test_a_process_that_cannot_start_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dense = models.served(models.dense(tmp_path))
    monkeypatch.setattr("app.engine.hosts.FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr("sys.executable", "/bin/false")

    async def work() -> None:
        async with engine(workers=1) as made:
            with pytest.raises(RequestError, match="exit code 1"):
                await made.infer(dense, rows(1))
            await until(lambda: process(made)._deaths >= 5)
            for pause in ("FIRST_PAUSE_S", "LAST_PAUSE_S"):  # of a process that is on its way meanwhile
                monkeypatch.setattr(f"app.engine.hosts.{pause}", 20)
            process(made)._again_at = time.monotonic() + 20
            with pytest.raises(RequestError, match="times in a row") as caught:
                await made.infer(dense, rows(1))
            assert int(caught.value.headers["Retry-After"]) == 20

    run(work)


def test_a_file_that_changed_is_not_loaded_in_its_place(tmp_path: Path) -> None:
    path = models.dense(tmp_path)
    dense = models.served(path)

    async def work() -> None:
        async with engine(workers=1) as made:
            await made.infer(dense, rows(1))
            path.write_bytes(models.pick(tmp_path).read_bytes())
            os.kill(pid(made), signal.SIGKILL)
            await until(lambda: process(made).restarts == 1)
            with pytest.raises(RequestError, match="load it again") as caught:
                await made.infer(dense, rows(1))
            assert caught.value.status == 503

    run(work)


@MODES
def test_who_leaves_frees_the_place_and_who_is_late_is_not_computed(tmp_path: Path, workers: int) -> None:
    slow = models.served(models.slow(tmp_path, 30_000), instance_group=(InstanceGroup(),), max_batch_size=0)

    async def work() -> None:
        async with engine(workers=workers) as made:
            feeds = {"x": np.zeros(1, np.float32)}
            running = asyncio.ensure_future(made.infer(slow, feeds))
            await asyncio.sleep(0)
            lane = lane_of(made, slow)
            await until(lambda: lane.batcher.running)
            leaving = asyncio.ensure_future(made.infer(slow, feeds))
            late = asyncio.ensure_future(made.infer(slow, feeds, InferOptions(deadline_ns=time.monotonic_ns() + 10_000_000)))
            await asyncio.sleep(0)
            assert lane.batcher.queued == 2
            leaving.cancel()
            with pytest.raises(RequestError, match="Request timeout expired"):
                await late
            assert lane.batcher.queued == 0
            assert (await running).outputs["y"].tolist() == [30_000]
            with pytest.raises(asyncio.CancelledError):
                await leaving

    run(work)


def test_a_run_that_everybody_left_is_not_started_by_the_process(tmp_path: Path) -> None:
    """Both wait for the same instance inside the process, the second one in vain."""
    slow = models.served(models.slow(tmp_path, 30_000), 1, instance_group=(InstanceGroup(),), max_batch_size=0)

    async def work() -> None:
        async with engine(workers=1, threads=1) as made:
            await made.load(slow)
            lane = lane_of(made, slow)
            lane.batcher.instances = 2
            feeds = {"x": np.zeros(1, np.float32)}
            first = asyncio.ensure_future(made.infer(slow, feeds))
            second = asyncio.ensure_future(made.infer(slow, feeds))
            link = process(made).link
            assert link is not None
            if made._shared.budget.cores > 1:
                await until(lambda: link.in_flight == 2)
            second.cancel()
            await first
            await until(lambda: link.in_flight == 0, 0.5)

    run(work)


def test_more_than_the_shared_memory_is_refused(tmp_path: Path) -> None:
    wide, dense = models.served(models.wide(tmp_path)), models.served(models.dense(tmp_path))

    async def work() -> None:
        async with engine(workers=1, shared_bytes=2**20) as made:
            with pytest.raises(InvalidError, match="outputs: 4000000 bytes"):
                await made.infer(wide, {"x": np.zeros(1000, np.float32)})
            with pytest.raises(RequestError, match="EDGEWISE_SHARED_BYTES") as caught:
                await made.infer(dense, rows(2**15))
            assert caught.value.status == 413
            tasks = [made.infer(dense, rows(2**12, n)) for n in range(32)]
            assert all(outcome.outputs["y"].shape == (2**12, 8) for outcome in await asyncio.gather(*tasks))

    run(work)


def test_replies_that_are_kept_hold_up_nobody(tmp_path: Path) -> None:
    wide = models.served(models.wide(tmp_path))

    async def work() -> None:
        async with engine(workers=1, shared_bytes=2**20) as made:
            kept = [await made.infer(wide, {"x": np.full(100, n, np.float32)}) for n in range(6)]
            assert [outcome.outputs["y"].sum() for outcome in kept] == [100_000 * n for n in range(6)]

    run(work)


def test_the_process_goes_with_its_last_model(tmp_path: Path) -> None:
    async def work() -> None:
        async with engine(workers=1) as made:
            one, two = models.served(models.dense(tmp_path)), models.served(models.pick(tmp_path))
            await made.infer(one, rows(1))
            await made.infer(two, {"ids": np.array([1])})
            first = pid(made)
            one.session = None
            gc.collect()
            await until(lambda: len(process(made).models) == 1)
            assert psutil.pid_exists(first)
            await made.infer(two, {"ids": np.array([1])})
            two.session = None
            gc.collect()
            await until(lambda: process(made).link is None)
            await until(lambda: not psutil.pid_exists(first))  # a thread waits for it
            await made.infer(models.served(tmp_path / "dense.onnx"), rows(1))

    run(work)


def test_batches_grow_to_sizes_that_are_ready(tmp_path: Path) -> None:
    dense = models.served(models.dense(tmp_path), max_batch_size=6, dynamic_batching=DynamicBatching(preferred_batch_size=(3,)))

    async def work() -> None:
        async with engine(workers=1) as made:
            seen: set[int] = set()
            for _ in range(40):
                outcomes = await asyncio.gather(*(made.infer(dense, rows(1, n)) for n in range(12)))
                seen |= {outcome.batch_rows for outcome in outcomes}
                await asyncio.sleep(0.05)
                if 3 in seen:
                    break
            assert 3 in seen
            assert seen <= {1, 2, 3, 4, 6}

    run(work)


def test_a_bucket_that_grows_asks_for_its_first_curve(tmp_path: Path) -> None:
    """Before any batch has run, and once; where plans cannot tell, it stays to be measured."""
    dense, pick = (
        models.served(models.dense(tmp_path), 1, max_batch_size=4),
        models.served(models.pick(tmp_path), 1, max_batch_size=4),
    )
    asked: list[tuple[str, int, list[tuple[int, ...]]]] = []

    def forecast(session: Session, threads: int, shapes: Any) -> dict[int, float]:
        name = session.inputs[0].name
        asked.append((name, threads, [inputs[name] for inputs in shapes.values()]))
        if name == "ids":
            raise InvalidError("no plan")
        return {rows: 1000.0 * rows for rows in shapes}

    async def work() -> None:
        made = Engine(Settings(), forecast)
        assert dense.session is not None
        try:
            await asyncio.gather(*(made.infer(dense, rows(1, n)) for n in range(4)))
            await asyncio.gather(*(made.infer(pick, {"ids": np.array([n])}) for n in range(4)))
            await until(lambda: len(asked) == 2)
            assert asked == [("x", 1, [(1, 16), (2, 16), (4, 16)]), ("ids", 1, [(1,), (2,), (4,)])]
            await until(lambda: lane_of(made, dense).curves()[0]["source"] == "scaled")
            assert lane_of(made, pick).curves()[0]["source"] == "none"
            for lane in made._lanes.values():
                await lane.batcher.drained()
        finally:
            made.stop()
            made.close()

    run(work)


def test_a_batch_size_that_does_not_pay_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dense = models.served(models.dense(tmp_path))
    monkeypatch.setattr("app.engine.curve.WORTH", 0.0)

    async def work() -> None:
        async with engine(workers=0) as made:
            await made.infer(dense, rows(1))
            (bucket,) = lane_of(made, dense)._buckets.values()
            seen: set[int] = set()
            for _ in range(200):
                outcomes = await asyncio.gather(*(made.infer(dense, rows(1, n)) for n in range(8)))
                seen |= {outcome.batch_rows for outcome in outcomes}
                await asyncio.sleep(0.01)
                if 2 in seen and bucket.sizes == (1,):
                    break
            assert (seen, bucket.sizes) == ({1, 2}, (1,))

    run(work)


def test_nothing_is_pickled() -> None:
    forbidden = re.compile(
        r"^\s*(import|from)\s+(pickle|_pickle|cPickle|marshal|shelve|dill|cloudpickle|joblib|multiprocessing)\b", re.M
    )
    root = Path(__file__).parents[3]
    found = [path for folder in FOLDERS for path in (root / folder).rglob("*.py") if forbidden.search(path.read_text())]
    assert found == []
    loads = [p for f in FOLDERS for p in (root / f).rglob("*.py") if "allow_pickle=True" in p.read_text()]
    assert loads == []


def test_space_is_first_fit_and_joins_holes() -> None:
    space = Space(1024)
    a, b, c = (space.take(200) for _ in range(3))
    assert (a, b, c) == (0, 256, 512)
    assert space.take(300) is None
    for offset in (0, 512, 256):
        space.give(offset)
    assert space.take(1024) == 0
