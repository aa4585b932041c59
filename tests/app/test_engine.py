"""The engine's queue: bounded, by priority, with deadlines, and nothing leaks from it."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
import pytest

from app.engine import Engine, InferOptions
from app.errors import RequestError
from app.settings import DEMO_MODELS, Settings
from scheduler.session import Session
from tests.app.conftest import serving

FEEDS = {"x": np.zeros((3, 2), np.float32)}


class Gate:
    """A session whose runs wait until the gate opens; notes their order."""

    plan_id = "default"

    def __init__(self) -> None:
        self.open = threading.Event()
        self.order: list[float] = []
        self.fails = False

    def run(self, feeds: dict[str, Any]) -> dict[str, Any]:
        self.open.wait(20)
        self.order.append(float(feeds["x"][0, 0]))
        if self.fails:
            raise ValueError("it broke")
        return dict(feeds)


@dataclass
class Model:
    name: str
    session: Any


@pytest.fixture
def gate() -> Iterator[Gate]:
    made = Gate()
    yield made
    made.open.set()


def run(work: Callable[[Engine], Any], workers: int = 1, limit: int = 8) -> Any:
    engine = Engine(workers, limit)

    async def within() -> Any:
        return await work(engine)

    try:
        return asyncio.run(within())
    finally:
        engine.close()
        assert (engine.running, engine.waiting) == (0, 0)


def feeds(number: float) -> dict[str, np.ndarray]:
    return {"x": np.full((3, 2), number, np.float32)}


def test_an_outcome_tells_times_rows_and_plan(gate: Gate) -> None:
    gate.open.set()
    found = run(lambda engine: engine.infer(Model("m", gate), FEEDS, InferOptions()))
    assert (found.batch_rows, found.plan_id, found.compute_ns > 0, found.queue_ns >= 0) == (3, "default", True, True)
    assert found.outputs["x"].shape == (3, 2)


def test_the_highest_priority_goes_first_then_the_oldest(gate: Gate) -> None:
    async def work(engine: Engine) -> None:
        tasks = []
        for number, priority in enumerate((0, 9, 0, 1, 5, 10**9, 2)):
            tasks.append(asyncio.ensure_future(engine.infer(Model("m", gate), feeds(number), InferOptions(priority))))
            await asyncio.sleep(0)
        await asyncio.sleep(0.05)
        gate.open.set()
        await asyncio.gather(*tasks)

    run(work)
    assert gate.order == [0, 3, 6, 2, 4, 5, 1]


def test_a_full_queue_is_503(gate: Gate) -> None:
    async def work(engine: Engine) -> RequestError:
        tasks = [asyncio.ensure_future(engine.infer(Model("m", gate), FEEDS, InferOptions())) for _ in range(4)]
        await asyncio.sleep(0)
        with pytest.raises(RequestError) as caught:
            await engine.infer(Model("m", gate), FEEDS, InferOptions())
        gate.open.set()
        await asyncio.gather(*tasks)
        return caught.value

    error = run(work, limit=3)
    assert (error.status, error.headers["Retry-After"], "Exceeds maximum queue size" in str(error)) == (503, "1", True)


def test_a_deadline_in_the_queue_is_503(gate: Gate) -> None:
    async def work(engine: Engine) -> None:
        first = asyncio.ensure_future(engine.infer(Model("m", gate), FEEDS, InferOptions()))
        await asyncio.sleep(0)
        with pytest.raises(RequestError, match="Request timeout expired") as caught:
            await engine.infer(Model("m", gate), feeds(7), InferOptions(deadline_ns=time.monotonic_ns() + 20_000_000))
        assert caught.value.status == 503
        gate.open.set()
        await first
        assert (await engine.infer(Model("m", gate), feeds(8), InferOptions(deadline_ns=time.monotonic_ns() - 1))).batch_rows == 3

    run(work)
    assert gate.order == [0, 8]


def test_cancelled_requests_leave_the_queue_and_give_back_their_worker(gate: Gate) -> None:
    async def work(engine: Engine) -> None:
        tasks = [asyncio.ensure_future(engine.infer(Model("m", gate), feeds(n), InferOptions())) for n in range(4)]
        await asyncio.sleep(0.02)
        tasks[0].cancel()
        tasks[2].cancel()
        await asyncio.sleep(0.02)
        assert (engine.running, engine.waiting) == (1, 2)  # the thread is busy though nobody waits for it
        gate.open.set()
        assert len(await asyncio.gather(tasks[1], tasks[3])) == 2

    run(work)
    assert gate.order == [0, 1, 3]


def test_failures_give_back_their_worker(gate: Gate) -> None:
    gate.fails = True
    gate.open.set()

    async def work(engine: Engine) -> None:
        for _ in range(5):
            with pytest.raises(ValueError, match="broke"):
                await engine.infer(Model("m", gate), FEEDS, InferOptions())

    run(work)


def test_a_cancelled_turn_is_passed_on(gate: Gate) -> None:
    """The turn comes in the same moment as the cancellation."""

    async def work(engine: Engine) -> None:
        first = asyncio.ensure_future(engine.infer(Model("m", gate), feeds(0), InferOptions()))
        second = asyncio.ensure_future(engine.infer(Model("m", gate), feeds(1), InferOptions()))
        third = asyncio.ensure_future(engine.infer(Model("m", gate), feeds(2), InferOptions()))
        await asyncio.sleep(0.02)
        turn = engine._waiting[0][2]
        turn.add_done_callback(lambda _: second.cancel())
        gate.open.set()
        await first
        assert (await third).batch_rows == 3
        with pytest.raises(asyncio.CancelledError):
            await second

    run(work)


def test_nothing_runs_after_the_end(gate: Gate) -> None:
    engine = Engine(1, 1)
    engine.close()
    with pytest.raises(RequestError, match="stopping"):
        asyncio.run(engine.infer(Model("m", gate), FEEDS, InferOptions()))


def test_abandoned_requests_leave_the_queue(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()
    real = Session.run
    monkeypatch.setattr(Session, "run", lambda self, fed: (gate.wait(20), real(self, fed))[1])
    body = (DEMO_MODELS.parent / "images" / "7.json").read_bytes()
    with serving(Settings(models=DEMO_MODELS, db=f"sqlite:///{tmp_path / 'a.db'}", workers=1)) as client:

        def abandon() -> None:
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(f"{client.base_url}/v2/models/digits/infer", content=body, timeout=0.5)

        threads = [threading.Thread(target=abandon) for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        metrics = ""
        for _ in range(100):
            metrics = client.get("/metrics").text
            if "edgewise_engine_waiting 0.0" in metrics and "edgewise_engine_running 1.0" in metrics:
                break
            time.sleep(0.05)
        assert 'nv_inference_request_failure{model="digits",reason="CANCELED",version="1"} 5.0' in metrics
        assert 'nv_inference_pending_request_count{model="digits",version="1"} 0.0' in metrics
        gate.set()
        assert client.post("/v2/models/digits/infer", content=body).status_code == 200
