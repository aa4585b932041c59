"""Runs that would not end, in the service's process and in engine processes: deadlines, clients that leave, unloading."""

import asyncio
import gc
import threading
import time
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.engine.loaded import Computed, LoadedModels
from app.engine.policy import DynamicBatching, InstanceGroup, QueuePolicy
from app.engine.port import Engine
from app.engine.requests import InferOptions
from app.errors import RequestError
from app.models.repository import Served
from app.settings import Settings
from graph.errors import RunTimeoutError
from tests.app.engine import models
from tests.app.engine.test_hosts import MODES, engine, lane_of, process, rows, run, until
from tests.graph.loops import endless, nested_loops

X = {"x": np.zeros(1, np.float32)}
ALONE = InstanceGroup()


def stuck(folder: Path, **card: Any) -> Served:
    """A model that runs for years, on one thread, so that another model has a core."""
    path = folder / "endless.onnx"
    path.write_bytes(endless())
    return models.served(path, 1, max_batch_size=0, **card)


def in_s(seconds: float) -> InferOptions:
    return InferOptions(deadline_ns=time.monotonic_ns() + round(seconds * 1e9))


async def running(made: Engine, entry: Served, **options: Any) -> asyncio.Task[Any]:
    """A request whose run goes round its loops."""
    task = asyncio.ensure_future(made.infer(entry, X, **options))
    await until(lambda: made.running == 1)
    await asyncio.sleep(0.3)
    assert not task.done()
    return task


def two_cores(made: Engine) -> None:
    made._shared.budget.cores = made._shared.budget.free = 2


@MODES
def test_a_run_ends_at_the_deadline_of_its_request(tmp_path: Path, workers: int) -> None:
    entry = stuck(tmp_path)

    async def work() -> None:
        async with engine(workers=workers) as made:
            await made.load(entry)
            with pytest.raises(RunTimeoutError, match=r"run: not done at its deadline, .*\(node 'loop1'\)"):
                await made.infer(entry, X, in_s(1))
            await until(lambda: made.running == 0)
            assert [host.restarts for host in made.processes] == [0] * workers

    run(work)


@MODES
def test_a_run_without_a_deadline_ends_after_the_run_timeout(tmp_path: Path, workers: int) -> None:
    entry, dense = stuck(tmp_path), models.served(models.dense(tmp_path))

    async def work() -> None:
        async with engine(workers=workers, run_timeout_s=1) as made:
            await made.load(entry)
            with pytest.raises(RunTimeoutError):
                await made.infer(entry, X)
            assert (await made.infer(dense, rows(1))).outputs["y"].shape == (1, 8)
            assert [host.restarts for host in made.processes] == [0] * workers

    run(work)


@pytest.mark.parametrize(
    "limits", [QueuePolicy(), QueuePolicy(timeout_action="DELAY", allow_timeout_override=True)], ids=["no_override", "delay"]
)
def test_a_timeout_that_does_not_count_in_the_queue_ends_no_run(tmp_path: Path, limits: QueuePolicy) -> None:
    entry = models.served(models.slow(tmp_path, 5_000), dynamic_batching=DynamicBatching(default_queue_policy=limits))

    async def work() -> None:
        async with engine() as made:
            await made.infer(entry, X)
            assert (await made.infer(entry, X, in_s(0.001))).outputs["y"].tolist() == [5_000]

    run(work)


def test_a_default_timeout_of_the_queue_ends_no_run(tmp_path: Path) -> None:
    limits = QueuePolicy(default_timeout_microseconds=20_000)
    entry = models.served(models.slow(tmp_path, 20_000), dynamic_batching=DynamicBatching(default_queue_policy=limits))

    async def work() -> None:
        async with engine() as made:
            assert entry.session is not None
            await made.load(entry)
            await made._lanes[entry.session].host.prepare(0, {"x": (1,)})
            outcome = await made.infer(entry, X)
            assert (outcome.outputs["y"].tolist(), outcome.compute_ns > 20_000_000) == ([20_000], True)

    run(work)


@MODES
def test_a_run_ends_when_its_client_leaves_and_another_model_answers(tmp_path: Path, workers: int) -> None:
    entry, dense = stuck(tmp_path), models.served(models.dense(tmp_path), 1)

    async def work() -> None:
        async with engine(workers=workers, threads=1) as made:
            two_cores(made)
            await made.infer(dense, rows(1))
            task = await running(made, entry)
            assert (await made.infer(dense, rows(1))).outputs["y"].shape == (1, 8)
            task.cancel()
            await until(lambda: made.running == 0)
            assert (await made.infer(dense, rows(1))).outputs["y"].shape == (1, 8)
            assert made._shared.budget.free == 2
            assert [host.restarts for host in made.processes] == [0] * workers

    run(work)


def test_a_run_goes_on_while_one_of_its_clients_waits(tmp_path: Path) -> None:
    """Two requests share a run of some rounds; one leaves."""
    path = tmp_path / "long.onnx"
    path.write_bytes(nested_loops(200, 100, width=2).SerializeToString())
    entry = models.served(path, 1, max_batch_size=0, instance_group=(ALONE,))

    async def work() -> None:
        async with engine() as made:
            task = asyncio.ensure_future(made.infer(entry, {"x": np.zeros(2, np.float32)}))
            await until(lambda: made.running == 1)
            (batch,) = lane_of(made, entry).batcher._running
            other: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            other.cancel()
            batch.requests.append(type(batch.requests[0])({}, 0, batch.requests[0].bucket, 1, 0, None, True, None, other))
            batch.check()
            batch.requests.pop()
            assert (await task).outputs["y"].tolist() == [20_000, 20_000]

    run(work)


@MODES
def test_a_run_ends_when_its_model_was_unloaded(tmp_path: Path, workers: int) -> None:
    entry = stuck(tmp_path)
    assert entry.session is not None
    alive = weakref.ref(entry.session)

    async def work() -> None:
        async with engine(workers=workers, drain_s=1) as made:
            task = await running(made, entry)
            made.retire([entry.session] if entry.session else [])
            entry.session = None  # as the repository does
            with pytest.raises(RequestError, match="It was unloaded, model 'endless' was interrupted") as caught:
                await task
            assert (caught.value.status, caught.value.headers) == (503, {"Retry-After": "1"})
            del task, caught
            await until(lambda: made.running == 0)
            await until(lambda: gc.collect() is not None and alive() is None)
            await until(lambda: not made._here._loaded_models._models)
            assert [(host.link, host.restarts) for host in made.processes] == [(None, 0)] * workers

    asyncio.run(work())


def test_the_memory_of_a_run_comes_back_after_its_model_was_dropped(tmp_path: Path) -> None:
    """Its arena is in reference cycles: it is collected once the run has ended, not only when the model is dropped."""
    entry = stuck(tmp_path)

    async def work() -> None:
        async with engine() as made:
            task = await running(made, entry)
            sessions = made._here._loaded_models._models[0].sessions
            programs = [weakref.ref(session._ready._kept[(1,),].executor._program) for session in sessions]
            del sessions
            gc.disable()  # no collection but the service's own
            try:
                task.cancel()
                entry.session = None
                del task
                await until(lambda: [program() for program in programs] == [None] * len(programs))
            finally:
                gc.enable()

    asyncio.run(work())


class Deaf:
    """Stands before `LoadedModels.run` as a step that takes as long as the test says, whatever the bounds of its run say."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.may_end = threading.Event()
        real = LoadedModels.run

        def wait(loaded: LoadedModels, number: int, feeds: dict[str, Any], bounds: Any, *, build: bool) -> Computed:
            self.may_end.wait(30)
            return real(loaded, number, feeds, bounds, build=build)

        monkeypatch.setattr(LoadedModels, "run", wait)


def test_a_run_that_overstays_is_told_of_and_its_client_is_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deaf, dense = Deaf(monkeypatch), models.served(models.dense(tmp_path))

    async def work() -> None:
        async with engine() as made:
            with pytest.raises(RunTimeoutError, match="one of its steps goes on"):
                await made.infer(dense, rows(1), in_s(0.2))
            assert len(made.overdue) == 1
            assert made.running == 1  # its cores are in use
            assert made._shared.budget.free < made._shared.budget.cores
            deaf.may_end.set()
            await until(lambda: made.running == 0)
            assert len(made.overdue) == 0
            assert (await made.infer(dense, rows(1))).outputs["y"].shape == (1, 8)

    run(work)


def test_an_engine_closes_though_a_run_does_not_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deaf, dense = Deaf(monkeypatch), models.served(models.dense(tmp_path))
    made = Engine(Settings())

    async def work() -> None:
        task = asyncio.ensure_future(made.infer(dense, rows(1)))
        await until(lambda: made.running == 1)
        made.stop()
        with pytest.raises(RequestError, match="Server is stopping, model 'dense' was interrupted"):
            await task

    try:
        asyncio.run(work())
        made.close()
        assert any(thread.is_alive() for thread in made._here._threads._threads)
    finally:
        deaf.may_end.set()
    assert made._here.wait(20)


def test_a_run_that_waits_for_a_session_ends_at_its_deadline(tmp_path: Path) -> None:
    """Both of two runs are let in, as after a reload, and there is one session."""
    entry = stuck(tmp_path, instance_group=(ALONE,))

    async def work() -> None:
        async with engine(threads=1) as made:
            two_cores(made)
            await made.load(entry)
            lane_of(made, entry).batcher.instances = 2
            first = await running(made, entry)
            with pytest.raises(RunTimeoutError, match=r"run: not done at its deadline, 0\.\d+ s after it began"):
                await made.infer(entry, X, in_s(0.3))
            first.cancel()
            await until(lambda: made.running == 0)

    run(work)


def test_a_process_that_does_not_stop_its_run_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that never looks at its orders, as in a step that takes long."""
    entry, dense = stuck(tmp_path), models.served(models.dense(tmp_path))
    monkeypatch.setattr("app.engine.link.RunBatch", _endless_order)

    async def work() -> None:
        async with engine(workers=1, run_timeout_s=1) as made:
            await made.load(entry)
            with pytest.raises(RequestError, match="no answer within 1 s, the process was killed") as caught:
                await made.infer(entry, X)
            assert caught.value.status == 503
            await until(lambda: process(made).link is not None)
            monkeypatch.undo()
            assert (await made.infer(dense, rows(1))).outputs["y"].shape == (1, 8)

    run(work)


def _endless_order(number: int, model: int, region: int, nbytes: int, inputs: Any, ends_ns: Any, build: bool, freed: Any) -> Any:
    from app.engine.messages import RunBatch

    return RunBatch(number, model, region, nbytes, inputs, None, build, freed)
