"""Loads over gRPC."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import psutil
import pytest

from app.load import sweep
from app.load.generator import Bounds, Load
from app.load.rpc import GrpcServer
from app.load.server import CONNECTION, Asked, FailedError, LoadError
from bench.local import free_port
from tests.app.rpc.serving import Rpc, serve
from tests.processes import edgewise


@pytest.fixture(scope="module")
def rpc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rpc]:
    with serve(db=f"sqlite:///{tmp_path_factory.mktemp('load') / 'load.db'}") as found:
        yield found


def address(rpc: Rpc) -> str:
    return f"grpc://127.0.0.1:{rpc.port}"


def measured(url: str, **fields: Any) -> list[Any]:
    given: dict[str, Any] = {"model": "digits", "version": "", "loads": [Load(2)], "batches": [None], "own": {}, "shapes": {}}
    given |= {"encoding": "binary", "bounds": Bounds(30, requests=20), "warmup_s": 0.05}

    async def run() -> list[Any]:
        return [each async for each in sweep.run(GrpcServer(url), sweep.Plan(**(given | fields)), asyncio.Event())]

    return asyncio.run(run())


def test_every_request_is_answered_and_split_by_the_server(rpc: Rpc) -> None:
    found = measured(address(rpc), loads=[Load(2), Load(8, 200.0)], batches=[1, 3])
    assert [(each.rows, each.rate_per_s) for each in found] == [(1, None), (1, 200.0), (3, None), (3, 200.0)]
    for each in found:
        assert (each.answered, each.failures, each.server.requests) == (20, {}, 20)
        assert 0 < each.server.compute_ns < each.mean_ns


def test_each_client_has_a_connection_of_its_own(rpc: Rpc) -> None:
    async def run() -> int:
        feeds = {"image": np.zeros((1, 1, 8, 8), np.float32)}
        make = GrpcServer(address(rpc)).clients(Asked("digits", "", feeds, "binary"))
        clients = [make() for _ in range(3)]
        await asyncio.gather(*(client.send() for client in clients))
        port = address(rpc).rpartition(":")[2]
        peers = [each.raddr for each in psutil.Process().net_connections() if each.raddr and str(each.raddr.port) == port]
        for client in clients:
            await client.close()
        return len(peers)

    assert asyncio.run(run()) >= 3


def test_refusals(rpc: Rpc) -> None:
    with pytest.raises(LoadError, match=r"ModelMetadata of .*: NOT_FOUND, Request for unknown model: 'nothing'"):
        measured(address(rpc), model="nothing")
    with pytest.raises(LoadError, match="gRPC has no tensors as JSON"):
        measured(address(rpc), encoding="json")
    assert asyncio.run(GrpcServer(address(rpc)).models()) == ["digits"]
    assert asyncio.run(GrpcServer(address(rpc)).statistics("nothing", "")) is None


def test_a_server_that_is_not_there() -> None:
    url = f"grpc://127.0.0.1:{free_port()}"
    with pytest.raises(LoadError, match=f"RepositoryIndex of .*: {CONNECTION}, "):
        asyncio.run(GrpcServer(url).models())

    async def run() -> None:
        await GrpcServer(url).clients(Asked("m", "", {}, "binary"))().send()

    with pytest.raises(FailedError) as caught:
        asyncio.run(run())
    assert caught.value.kind == CONNECTION


def test_a_refusal_by_a_full_server_is_no_lost_connection(rpc: Rpc, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rpc.service.held, "_limit_bytes", 10)

    async def run() -> None:
        feeds = {"image": np.zeros((1, 1, 8, 8), np.float32)}
        await GrpcServer(address(rpc)).clients(Asked("digits", "", feeds, "binary"))().send()

    with pytest.raises(FailedError, match="hold more than 10 bytes") as caught:
        asyncio.run(run())
    assert caught.value.kind == "UNAVAILABLE"


@pytest.mark.parametrize("url", ["grpc://host", "grpc://:1", "grpc://host:1/path", "grpc://host:99999", "grpcx://host:1"])
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(LoadError, match="load: address is"):
        GrpcServer(url)


def test_the_command_takes_an_address_of_grpc(rpc: Rpc) -> None:
    done = edgewise("load", address(rpc), "--clients", "2", "--requests", "10", "--warmup", "0", "--json")
    found = json.loads(done.stdout)
    assert (done.returncode, found["model"], found["steps"][0]["answered"]) == (0, "digits", 10)
    refused = edgewise("load", address(rpc), "--json-tensors")
    assert (refused.returncode, "gRPC has no tensors as JSON" in refused.stderr) == (1, True)
