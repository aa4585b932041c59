"""Tests of the engine as the service uses it: limits, priorities, deadlines, and that nothing leaks."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from app.engine.loaded import Computed, LoadedModels
from app.engine.port import Engine
from app.engine.requests import InferOptions
from app.errors import RequestError
from app.models.repository import Served
from app.settings import DEMO_MODELS, Settings
from bench.local import serving
from graph.run.bounds import RunBounds
from tests.app.demo import SEVEN
from tests.app.engine.models import served
from tests.app.servers import identity_model

FEEDS = {"x": np.zeros((3, 2), np.float32)}


class Gate:
    """Holds runs back until it opens, and keeps the first number of each run's input in `order`."""

    def __init__(self, real: Callable[..., Computed]) -> None:
        self.open = threading.Event()
        self.order: list[float] = []
        self.fails = False
        self.real = real

    def run(self, runner: LoadedModels, number: int, feeds: dict[str, Any], bounds: RunBounds, **_: bool) -> Computed:
        """Wait for the gate, then run. Missing code is built here, so that no test has to wait for a separate build."""
        self.open.wait(20)
        self.order.append(float(next(iter(feeds.values())).flat[0]))
        if self.fails:
            raise ValueError("it broke")
        return self.real(runner, number, feeds, bounds, build=True)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    made = Gate(LoadedModels.run)

    def gated(runner: LoadedModels, number: int, feeds: dict[str, Any], bounds: RunBounds, *, build: bool) -> Computed:
        return made.run(runner, number, feeds, bounds, build=build)

    monkeypatch.setattr(LoadedModels, "run", gated)
    yield made
    made.open.set()


@pytest.fixture
def model(tmp_path: Path) -> Served:
    """Return a model whose requests are not batched."""
    path = tmp_path / "m.onnx"
    path.write_bytes(identity_model(1))
    return served(path, max_batch_size=0)


def run(work: Callable[[Engine], Any], limit: int = 8) -> Any:
    engine = Engine(Settings(queue_limit=limit))

    async def within() -> Any:
        try:
            return await work(engine)
        finally:
            for lane in list(engine._lanes.values()):
                await lane.batcher.drained()
            assert (engine.running, engine.waiting) == (0, 0)
            engine.stop()

    try:
        return asyncio.run(within())
    finally:
        engine.close()


async def first_of(engine: Engine, model: Served) -> asyncio.Task[Any]:
    """Start a request and wait until it runs, so that later requests have to wait."""
    task = asyncio.ensure_future(engine.infer(model, feeds(0)))
    for _ in range(500):
        if engine.running:
            break
        await asyncio.sleep(0.01)
    assert (engine.running, engine.waiting) == (1, 0)
    return task


def feeds(number: float) -> dict[str, np.ndarray]:
    return {"x": np.full((3, 2), number, np.float32)}


def test_an_outcome_tells_times_rows_and_plan(gate: Gate, model: Served) -> None:
    gate.open.set()
    found = run(lambda engine: engine.infer(model, FEEDS))
    assert (found.batch_rows, found.plan_id, found.compute_ns > 0, found.queue_ns >= 0) == (3, "default", True, True)
    assert (found.outputs["y"].shape, found.alone) == ((3, 2), True)


def test_the_highest_priority_goes_first_then_the_oldest(gate: Gate, model: Served) -> None:
    async def work(engine: Engine) -> None:
        tasks = [await first_of(engine, model)]
        for number, priority in enumerate((9, 0, 1, 5, 10**9, 2), 1):
            tasks.append(asyncio.ensure_future(engine.infer(model, feeds(number), InferOptions(priority))))
            await asyncio.sleep(0)
        gate.open.set()
        await asyncio.gather(*tasks)

    run(work)
    assert gate.order == [0, 3, 6, 2, 4, 5, 1]


def test_a_full_queue_is_503(gate: Gate, model: Served) -> None:
    async def work(engine: Engine) -> RequestError:
        tasks = [await first_of(engine, model)]
        tasks += [asyncio.ensure_future(engine.infer(model, FEEDS)) for _ in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(RequestError) as caught:
            await engine.infer(model, FEEDS)
        gate.open.set()
        await asyncio.gather(*tasks)
        return caught.value

    error = run(work, limit=3)
    assert (error.status, error.headers["Retry-After"], "Exceeds maximum queue size" in str(error)) == (503, "1", True)


def test_a_deadline_in_the_queue_is_503(gate: Gate, model: Served) -> None:
    async def work(engine: Engine) -> None:
        first = await first_of(engine, model)
        with pytest.raises(RequestError, match="Request timeout expired") as caught:
            await engine.infer(model, feeds(7), InferOptions(deadline_ns=time.monotonic_ns() + 20_000_000))
        assert caught.value.status == 503
        gate.open.set()
        await first
        options = InferOptions(deadline_ns=time.monotonic_ns() + 10_000_000_000)
        assert (await engine.infer(model, feeds(8), options)).batch_rows == 3

    run(work)
    assert gate.order == [0, 8]


def test_cancelled_requests_leave_the_queue_and_give_back_their_cores(gate: Gate, model: Served) -> None:
    async def work(engine: Engine) -> None:
        tasks = [await first_of(engine, model)]
        tasks += [asyncio.ensure_future(engine.infer(model, feeds(n))) for n in range(1, 4)]
        await asyncio.sleep(0.02)
        tasks[0].cancel()
        tasks[2].cancel()
        await asyncio.sleep(0.02)
        assert (engine.running, engine.waiting) == (1, 2)  # the thread is busy though nobody waits for it
        gate.open.set()
        assert len(await asyncio.gather(tasks[1], tasks[3])) == 2

    run(work)
    assert gate.order == [0, 1, 3]


def test_failures_give_back_their_cores(gate: Gate, model: Served) -> None:
    gate.fails = True
    gate.open.set()

    async def work(engine: Engine) -> None:
        for _ in range(5):
            with pytest.raises(ValueError, match="broke"):
                await engine.infer(model, FEEDS)

    run(work)


def test_requests_beside_others_were_not_alone(gate: Gate, model: Served, tmp_path: Path) -> None:
    path = tmp_path / "other.onnx"
    path.write_bytes(identity_model(1))
    one, other = served(model.path, 1, max_batch_size=0), served(path, 1, max_batch_size=0)

    async def work(engine: Engine) -> list[bool]:
        engine._shared.budget.cores = engine._shared.budget.free = 2
        tasks = [asyncio.ensure_future(engine.infer(entry, FEEDS)) for entry in (one, other)]
        while engine.running < 2:
            await asyncio.sleep(0.01)
        gate.open.set()
        together = [outcome.alone for outcome in await asyncio.gather(*tasks)]
        return [*together, (await engine.infer(one, FEEDS)).alone]

    assert run(work) == [False, False, True]


def test_nothing_runs_after_the_end(model: Served) -> None:
    engine = Engine(Settings())
    engine.stop()
    engine.close()
    with pytest.raises(RequestError, match="stopping"):
        asyncio.run(engine.infer(model, FEEDS))


def metrics_with(client: httpx.Client, *lines: str) -> str:
    """Return the metrics once they contain these lines."""
    for _ in range(600):
        metrics = client.get("/metrics").text
        if all(line in metrics for line in lines):
            return metrics
        time.sleep(0.05)
    raise AssertionError(f"{lines} did not come to be in {metrics}")


def test_abandoned_requests_leave_the_queue(tmp_path: Path, gate: Gate) -> None:
    with serving(Settings(models=DEMO_MODELS, db=f"sqlite:///{tmp_path / 'a.db'}")) as client:
        address = (client.base_url.host, client.base_url.port)
        head = f"POST /v2/models/digits/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(SEVEN)}\r\n\r\n"
        clients = [socket.create_connection(address) for _ in range(5)]
        for abandoned in clients:
            abandoned.sendall(head.encode() + SEVEN)
        metrics_with(client, "edgewise_engine_waiting 4.0", "edgewise_engine_running 1.0")
        for abandoned in clients:
            abandoned.close()
        metrics = metrics_with(client, 'nv_inference_request_failure{model="digits",reason="CANCELED",version="1"} 5.0')
        assert "edgewise_engine_waiting 0.0" in metrics
        assert 'nv_inference_pending_request_count{model="digits",version="1"} 0.0' in metrics
        gate.open.set()
        assert client.post("/v2/models/digits/infer", content=SEVEN).status_code == 200


def test_the_timeout_parameter_reaches_the_queue(tmp_path: Path, gate: Gate) -> None:
    body = json.loads(SEVEN)
    late = {**body, "parameters": {"timeout": 20_000}}
    with serving(Settings(models=DEMO_MODELS, db=f"sqlite:///{tmp_path / 'a.db'}")) as client:
        statuses: list[int] = []
        first = threading.Thread(target=lambda: statuses.append(client.post("/v2/models/digits/infer", json=body).status_code))
        first.start()
        metrics_with(client, "edgewise_engine_running 1.0")
        reply = client.post("/v2/models/digits/infer", json=late)
        assert (reply.status_code, reply.headers["retry-after"]) == (503, "1")
        assert "Request timeout expired" in reply.json()["error"]
        gate.open.set()
        first.join()
        assert statuses == [200]


def test_statistics_count_the_arenas_of_runs(tmp_path: Path) -> None:
    with serving(Settings(models=DEMO_MODELS, db=f"sqlite:///{tmp_path / 'a.db'}")) as client:

        def memory() -> int:
            found = client.get("/v2/models/digits/stats").json()["model_stats"][0]["memory_usage"]
            return int(found[0]["byte_size"])

        before = memory()
        assert client.post("/v2/models/digits/infer", content=SEVEN).status_code == 200
        assert memory() > before > 0
