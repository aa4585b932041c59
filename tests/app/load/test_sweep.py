"""Sweeps of a service on a real socket."""

import asyncio
from typing import Any

import httpx
import numpy as np
import pytest

from app.load import sweep
from app.load.generator import Bounds, Load
from app.load.http import HttpServer
from app.load.server import LoadError


def measured(client: httpx.Client, **fields):
    given: dict[str, Any] = {"model": "digits", "version": "", "loads": [Load(2)], "batches": [None], "own": {}, "shapes": {}}
    given |= {"encoding": "binary", "bounds": Bounds(30, requests=20), "warmup_s": 0.05}
    plan = sweep.Plan(**(given | fields))

    async def run():
        return [each async for each in sweep.run(HttpServer(str(client.base_url)), plan, asyncio.Event())]

    return asyncio.run(run())


def count(client: httpx.Client, model: str = "digits") -> int:
    return client.get(f"/v2/models/{model}/stats").json()["model_stats"][-1]["inference_stats"]["success"]["count"]


@pytest.mark.parametrize("encoding", ["binary", "json"])
def test_every_request_is_answered_and_split_by_the_server(client: httpx.Client, encoding: str) -> None:
    before = count(client)
    found = measured(client, encoding=encoding, loads=[Load(2), Load(8, 200.0)], batches=[1, 3])
    assert [(each.rows, each.rate_per_s) for each in found] == [(1, None), (1, 200.0), (3, None), (3, 200.0)]
    for each in found:
        assert (each.answered, each.failures, each.server.requests) == (20, {}, 20)
        assert 0 < each.server.compute_ns < each.mean_ns
        assert each.server.queue_ns + each.server.compute_ns + each.server.service_ns < each.mean_ns
        assert each.p50_ns <= each.p90_ns <= each.p99_ns <= each.max_ns
    assert count(client) >= before + 80


def test_own_inputs_of_every_kind(client: httpx.Client) -> None:
    own = {"text": np.array(["a", "ü"], object), "half": np.zeros(2, np.float16), "flag": np.array([True, False])}
    (found,) = measured(client, model="echo", own=own)
    assert (found.rows, found.answered, found.failures) == (2, 20, {})
    with pytest.raises(LoadError, match="input 'half': FP16 has no JSON form"):
        measured(client, model="echo", own=own, encoding="json")


def test_a_version_is_loaded_by_name(client: httpx.Client) -> None:
    before = count(client, "echo/versions/1")
    measured(client, model="echo", version="1")
    assert count(client, "echo/versions/1") > before + 20


def test_refusals_before_a_load(client: httpx.Client) -> None:
    with pytest.raises(LoadError, match="GET /v2/models/nothing: 404, "):
        measured(client, model="nothing")
    with pytest.raises(LoadError, match=r"the first request failed \(413\): body: "):
        measured(client, batches=[10_000])
    with pytest.raises(LoadError, match="which model"):
        asyncio.run(sweep.only_model(HttpServer(str(client.base_url))))
