"""Clients that leave, and deadlines, over a real socket; and the middleware by itself."""

import asyncio
import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from app.disconnect import CancelOnDisconnect
from app.settings import Settings
from tests.app.conftest import serving
from tests.app.engine import models

BODY = json.dumps({"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [0]}]}).encode()
PATH = "/v2/models/slow/infer"


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder = tmp_path_factory.mktemp("slow")
    models.slow(folder, 10_000)
    database = tmp_path_factory.mktemp("db") / "edgewise.sqlite"
    with serving(Settings(models=folder, db=f"sqlite:///{database}", workers=1)) as found:
        found.timeout = httpx.Timeout(60)
        yield found


def leave(client: httpx.Client, pause_s: float) -> None:
    with socket.create_connection((client.base_url.host, client.base_url.port or 0)) as stream:
        head = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(BODY)}\r\n\r\n"
        stream.sendall(head.encode() + BODY)
        time.sleep(pause_s)


def test_requests_of_clients_that_left_are_not_computed(client: httpx.Client) -> None:
    assert client.post(PATH, content=BODY).json()["outputs"][0]["data"] == [10_000]
    began = time.monotonic()
    assert client.post(PATH, content=BODY).status_code == 200
    alone_s = time.monotonic() - began
    for _ in range(12):
        leave(client, 0.02)
    began = time.monotonic()
    assert client.post(PATH, content=BODY).status_code == 200
    assert time.monotonic() - began < 6 * max(alone_s, 0.2)  # one of them may be running; thirteen would take thirteen times


def test_the_timeout_parameter_reaches_the_queue(client: httpx.Client) -> None:
    late = {**json.loads(BODY), "parameters": {"timeout": 1000}}

    async def both() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=client.base_url, timeout=60) as caller:
            first = [asyncio.create_task(caller.post(PATH, content=BODY)) for _ in range(3)]
            await asyncio.sleep(0.03)
            last = await caller.post(PATH, content=json.dumps(late).encode())
            return [*await asyncio.gather(*first), last]

    *first, last = asyncio.run(both())
    assert [reply.status_code for reply in first] == [200, 200, 200]
    assert (last.status_code, last.headers["retry-after"]) == (503, "1")
    assert "Request timeout expired" in last.json()["error"]


@pytest.mark.parametrize("parameters", [{"timeout": -1}, {"priority": "high"}, {"timeout": True}, {"timeout": 1.5}])
def test_wrong_parameters_are_refused(client: httpx.Client, parameters: dict[str, Any]) -> None:
    reply = client.post(PATH, content=json.dumps({**json.loads(BODY), "parameters": parameters}).encode())
    assert reply.status_code == 400
    assert next(iter(parameters)) in reply.json()["error"]


class Connection:
    """An ASGI connection whose client leaves when told to."""

    def __init__(self) -> None:
        self.left = asyncio.Event()
        self.sent: list[Any] = []
        self.messages = [{"type": "http.request", "body": b"a", "more_body": True}, {"type": "http.request", "body": b"b"}]

    async def receive(self) -> Any:
        if self.messages:
            return self.messages.pop(0)
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        self.sent.append(message)


def scope(path: str = PATH) -> dict[str, Any]:
    return {"type": "http", "method": "POST", "path": path}


async def read(receive: Any) -> None:
    while (await receive()).get("more_body"):
        pass


def test_leaving_cancels_inference_and_swallows_the_cancellation() -> None:
    async def work() -> None:
        connection, ends = Connection(), []

        async def app(_scope: Any, receive: Any, _send: Any) -> None:
            await read(receive)
            connection.left.set()
            try:
                await asyncio.sleep(30)
            finally:
                ends.append("cancelled")

        await CancelOnDisconnect(app)(scope(), connection.receive, connection.send)
        assert ends == ["cancelled"]
        current = asyncio.current_task()
        assert current is not None
        assert current.cancelling() == 0

    asyncio.run(work())


def test_other_work_and_begun_replies_are_finished() -> None:
    async def work() -> None:
        done = []
        for path, starts in (("/v2/repository/models/m/load", False), (PATH, True)):
            connection = Connection()

            async def app(_scope: Any, receive: Any, send: Any, starts: bool = starts, c: Connection = connection) -> None:
                await read(receive)
                if starts:
                    await send({"type": "http.response.start", "status": 200, "headers": []})
                c.left.set()
                await asyncio.sleep(0.01)
                done.append(True)

            await CancelOnDisconnect(app)(scope(path), connection.receive, connection.send)
        assert done == [True, True]

    asyncio.run(work())


def test_a_cancellation_from_elsewhere_goes_on() -> None:
    async def work() -> None:
        async def app(_scope: Any, receive: Any, _send: Any) -> None:
            await read(receive)
            await asyncio.sleep(30)

        connection = Connection()
        task = asyncio.create_task(CancelOnDisconnect(app)(scope(), connection.receive, connection.send))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(work())
