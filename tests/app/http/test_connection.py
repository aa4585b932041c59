"""Abuse over raw sockets: a request beyond a limit gets the protocol's error body, and the server's memory stays bounded."""

import asyncio
import contextlib
import gzip
import json
import socket
import struct
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
import uvicorn

from app.http.connection import ConnectionLimits, bounded
from bench.waiting import until
from tests.app.servers import Server, running, write_models

MIB = 2**20
LIMITS = {
    "EDGEWISE_HEAD_TIMEOUT_S": "2",
    "EDGEWISE_BODY_TIMEOUT_S": "3",
    "EDGEWISE_MAX_CONNECTIONS": "300",
    "EDGEWISE_MAX_BODY_BYTES": str(32 * MIB),
    "EDGEWISE_GRACE_S": "0",
}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("admission")
    models = folder / "models"
    models.mkdir()
    with running(folder, write_models(models), environment=LIMITS) as found:
        yield found


@pytest.fixture
def server(shared: Server) -> Iterator[Server]:
    """Return the shared server. After each test, assert that no reply was an internal error and no request is pending."""
    begins = shared.log.stat().st_size
    yield shared
    log = shared.log.read_bytes()[begins:].decode()
    assert '"status": 500' not in log
    assert "Traceback" not in log
    with shared.client() as client:

        def waiting() -> set[str]:
            lines = client.get("/metrics").text.splitlines()
            return {line.rpartition(" ")[2] for line in lines if line.startswith("nv_inference_pending_request_count{")}

        until(lambda: waiting() == {"0.0"})


@contextlib.contextmanager
def watched(server: Server) -> Iterator[None]:
    """Request /v2/health/live during the block and ten times after it. Assert that every answer is 200 and none times out.

    Also assert that memory grows by less than 600 MiB. How long answers take is measured by `bench.soak`.
    """
    process = psutil.Process(server.process.pid)
    before_bytes = process.memory_info().rss
    answers: list[int] = []
    failures: list[httpx.HTTPError] = []
    done = threading.Event()

    def probe() -> None:
        with server.client() as client:
            while not done.wait(0.01) and not failures:
                try:
                    answers.append(client.get("/v2/health/live").status_code)
                except httpx.HTTPError as error:
                    failures.append(error)

    def more_answers(count: int) -> None:
        wanted = len(answers) + count
        until(lambda: failures or len(answers) >= wanted, every_s=0.01)

    thread = threading.Thread(target=probe)
    thread.start()
    try:
        more_answers(1)
        yield
        more_answers(10)
    finally:
        done.set()
        thread.join()
    assert not failures
    assert set(answers) == {200}
    assert process.memory_info().rss - before_bytes < 600 * MIB


def connect(server: Server) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=30)


def reply_of(raw: socket.socket) -> tuple[int, dict[str, str]]:
    """Read a reply up to its Content-Length, or until the connection ends. Return its status and JSON body."""
    data = b""
    with contextlib.suppress(ConnectionError):
        while b"\r\n\r\n" not in data and (more := raw.recv(65536)):
            data += more
        head, _, body = data.partition(b"\r\n\r\n")
        lengths = [int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")]
        while lengths and len(body) < lengths[0] and (more := raw.recv(65536)):
            body += more
    assert data, "no answer"
    return int(data.split(b" ")[1]), json.loads(body)


def ask(server: Server, head: str, body: bytes = b"") -> tuple[int, dict[str, str]]:
    with connect(server) as raw:
        with contextlib.suppress(ConnectionError):  # refused before all of it was sent
            raw.sendall(head.encode("latin-1") + body)
        return reply_of(raw)


def post(
    server: Server, body: bytes, path: str = "/v2/models/digits/infer", length: int | None = None, **headers: str
) -> tuple[int, str]:
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body) if length is None else length}\r\n{lines}\r\n"
    status, found = ask(server, head, body)
    assert list(found) == ["error"]
    return status, found["error"]


def image_request(size: object, shape: object = (1, 1, 8, 8)) -> bytes:
    tensor = {"name": "image", "shape": shape, "datatype": "FP32", "parameters": {"binary_data_size": size}}
    return json.dumps({"inputs": [tensor]}).encode()


def test_slow_heads_are_ended(server: Server) -> None:
    with watched(server), contextlib.ExitStack() as stack:
        slow = [stack.enter_context(connect(server)) for _ in range(150)]
        for piece in (b"GET /v2 HTTP/1.1\r\n", b"Host: 127.0.0.1\r\n", b"X-A: b\r\n"):
            for raw in slow:
                raw.sendall(piece)
            time.sleep(0.3)
        statuses = [reply_of(raw)[0] for raw in slow]
    assert statuses == [408] * 150


def test_silent_connections_are_ended(server: Server) -> None:
    with connect(server) as raw:
        started = time.monotonic()
        assert raw.recv(10) == b""
        assert 1 < time.monotonic() - started < 15


def test_slow_bodies_are_ended(server: Server) -> None:
    with watched(server):
        assert post(server, b"{", length=1000) == (408, "request body: incomplete after 3 s, the limit")


def test_too_many_connections_are_told(server: Server) -> None:
    with contextlib.ExitStack() as stack:
        many = [stack.enter_context(connect(server)) for _ in range(310)]
        status, found = reply_of(many[-1])
        assert (status, "the limit" in found["error"]) == (503, True)
    with server.client() as client:
        until(lambda: client.get("/v2/health/live").status_code == 200)


@pytest.mark.parametrize(
    "path", ["/v2/models/digits/infer", "/v2/repository/index", "/v2/repository/models/digits/load", "/v2/logging"]
)
@pytest.mark.parametrize("text", [b"[", b'{"a":', b'[{"a":'])
def test_deep_json_is_refused(server: Server, path: str, text: bytes) -> None:
    with watched(server):
        for _ in range(5):
            status, error = post(server, text * 100_000, path)
    assert (status, "nests deeper than 100" in error) == (400, True)


def test_deep_json_to_the_control_routes(server: Server) -> None:
    assert post(server, b"[" * 100_000, "/v1/plans", Content_Type="application/json")[0] == 400


def test_deep_json_within_data(server: Server) -> None:
    body = b'{"inputs":[{"name":"image","shape":[1],"datatype":"FP32","data":' + b"[" * 50_000 + b"1" + b"]" * 50_000 + b"}]}"
    assert post(server, body)[0] == 400


def test_a_million_tiny_chunks(server: Server) -> None:
    head = "POST /v2/models/digits/infer HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n"
    with watched(server):
        status, found = ask(server, head, b"1\r\n \r\n" * 1_000_000)
    assert (status, found) == (400, {"error": "request body: more than 65536 tiny chunks, the limit"})


def test_zip_bomb(server: Server) -> None:
    bomb = gzip.compress(bytes(512 * MIB), 6)
    with watched(server):
        for _ in range(3):
            status, error = post(server, bomb, Content_Encoding="gzip")
            assert (status, "after decompression" in error) == (413, True)


def test_nested_zip_and_unknown_codings(server: Server) -> None:
    assert post(server, gzip.compress(gzip.compress(b"{}")), Content_Encoding="gzip")[0] == 400
    assert post(server, b"{}", Content_Encoding="gzip, gzip")[0] == 501
    assert post(server, b"{}", Content_Encoding="br")[0] == 501


def test_large_json_does_not_stop_the_others(server: Server) -> None:
    rows = 20_000
    numbers = ",".join(["[[" + ",".join(["[0.25,1.5,0,1,2,3,4,5]"] * 8) + "]]"] * rows)
    body = b'{"inputs":[{"name":"image","shape":[%d,1,8,8],"datatype":"FP64","data":[%b]}]}' % (rows, numbers.encode())
    assert 1 * MIB < len(body) < 16 * MIB
    with watched(server):
        for _ in range(3):
            status, error = post(server, body)
            assert (status, "data-type is 'FP64'" in error) == (400, True)


def test_json_past_its_own_limit(server: Server) -> None:
    status, error = post(server, b'{"inputs":[' + b" " * (17 * MIB) + b"]}")
    assert (status, "use the binary data format" in error) == (413, True)


def test_body_past_the_limit(server: Server) -> None:
    with watched(server):
        assert post(server, b"", length=33 * MIB)[0] == 413
        assert post(server, b"", length=10**30)[0] == 400  # no length that HTTP knows
        head = "POST /v2/models/digits/infer HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n"
        piece = b"%x\r\n%b\r\n" % (MIB, bytes(MIB))
        assert ask(server, head, piece * 40)[0] == 413
    assert post(server, bytes(17 * MIB), "/v1/plans")[0] == 413


@pytest.mark.parametrize(
    "head",
    [
        "POST /v2/models/digits/infer HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        "POST /v2/models/digits/infer HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        "POST /v2/models/digits/infer HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: -5\r\n\r\n",
        "POST /v2/models/digits/infer HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 0x5\r\n\r\n",
        "POST /v2/models/digits/infer HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        "GET /v2 HTTP/9.9\r\n\r\n",
        "NONSENSE\r\n\r\n",
        "GET /\x00 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        "GET /v2 HTTP/1.1\r\nHost: 127.0.0.1\r\nBad Header: x\r\n\r\n",
        "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
def test_what_is_no_http_is_400(server: Server, head: str) -> None:
    status, found = ask(server, head, b"12345")
    assert (status, list(found)) == (400, ["error"])


def test_heads_past_the_limit(server: Server) -> None:
    start = "GET /v2/health/live HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    with watched(server):
        assert ask(server, start + "".join(f"X-{n}: a\r\n" for n in range(300)) + "\r\n")[0] == 431
        assert ask(server, start + "X-A: " + "a" * 70_000 + "\r\n\r\n")[0] == 431
        assert ask(server, start + "X-A: " + "a" * 1_000_000)[0] == 431
        assert ask(server, "GET /" + "a" * 1_000_000)[0] == 431


@pytest.mark.parametrize("length", ["-1", "1e3", "0x10", "99999999999999999999999", " ", "１", "4294967296", "2"])
def test_lying_json_lengths(server: Server, length: str) -> None:
    request = image_request(256) + bytes(256)
    raw_header = length.encode("utf-8").decode("latin-1")
    assert post(server, request, Inference_Header_Content_Length=raw_header)[0] == 400


@pytest.mark.parametrize("size", [0, 255, 257, 2**31, 2**63, 2**64, 2**70, -1, 1.5, "256", True, None])
def test_lying_binary_sizes(server: Server, size: object) -> None:
    head = image_request(size)
    assert post(server, head + bytes(256), Inference_Header_Content_Length=str(len(head)))[0] == 400


@pytest.mark.parametrize(
    "shape", [[16, 2**60 + 2], [2**63, 2], [-1, 1, 8, 8], [2**62, 4], [0] * 65, [1.5], ["1"], [1e300], None, {}]
)
def test_impossible_shapes(server: Server, shape: object) -> None:
    head = image_request(256, shape)
    assert post(server, head + bytes(256), Inference_Header_Content_Length=str(len(head)))[0] == 400


def test_string_lengths_that_lie(server: Server) -> None:
    for tail in (struct.pack("<I", 0xFFFFFFFF), b"\x01", struct.pack("<I", 5) + b"abc"):
        tensor = {"name": "x", "shape": [1, 1], "datatype": "BYTES", "parameters": {"binary_data_size": len(tail)}}
        head = json.dumps({"inputs": [tensor]}).encode()
        length = str(len(head))
        reply = post(server, head + tail, "/v2/models/id_bytes/infer", Inference_Header_Content_Length=length)
        assert reply[0] == 400


def test_duplicates(server: Server) -> None:
    tensor = {"name": "image", "shape": [1, 1, 8, 8], "datatype": "FP32", "data": [0] * 64}
    assert post(server, json.dumps({"inputs": [tensor, tensor]}).encode())[0] == 400
    outputs = [{"name": "digit"}, {"name": "digit"}]
    assert post(server, json.dumps({"inputs": [tensor], "outputs": outputs}).encode())[0] == 400
    outputs = [{"name": f"o{n}"} for n in range(300)]
    status, error = post(server, json.dumps({"inputs": [tensor], "outputs": outputs}).encode())
    assert (status, "the limit is 256" in error) == (400, True)


@pytest.mark.parametrize("text", [b"NaN", b"Infinity", b"-Infinity", b"1e999", b"0x1", b"01", b".5", b"1,"])
def test_numbers_that_json_does_not_have(server: Server, text: bytes) -> None:
    body = b'{"inputs":[{"name":"x","shape":[1,1],"datatype":"FP32","data":[%b]}]}' % text
    assert post(server, body, "/v2/models/id_fp32/infer")[0] == 400


def test_nan_output_says_use_binary(server: Server) -> None:
    bits = np.array([[np.nan, np.inf]], np.float32).tobytes()
    tensor = {"name": "x", "shape": [1, 2], "datatype": "FP32", "parameters": {"binary_data_size": len(bits)}}
    head = json.dumps({"inputs": [tensor]}).encode()
    status, error = post(server, head + bits, "/v2/models/id_fp32/infer", Inference_Header_Content_Length=str(len(head)))
    assert (status, "use binary_data" in error) == (400, True)


INVALID_NAMES = [
    "..",
    "../x",
    "..%2fx",
    "%2e%2e",
    "%2e%2e%2f%2e%2e%2fetc%2fpasswd",
    "%252e%252e%252fx",
    "..%5cx",
    "x%00",
    "%20..",
    "%20",
    "x/../../y",
    "%ef%bc%8e%ef%bc%8e",
    "/etc/passwd",
    "x%0a",
    "a..b",
    ".hidden",
    "x" * 200,
    "stats",
]


@pytest.mark.parametrize("name", INVALID_NAMES)
@pytest.mark.parametrize("act", ["load", "unload"])
def test_names_that_are_paths(server: Server, name: str, act: str) -> None:
    (server.models.parent / "x.onnx").write_bytes((server.models / "digits.onnx").read_bytes())
    before = sorted(server.models.parent.rglob("*.onnx"))
    with server.client() as client:
        known = client.post("/v2/repository/index").json()
        status, error = post(server, b"", f"/v2/repository/models/{name}/{act}")
        assert status == 400 or (name == "x%0a" and status == 404), error
        assert str(server.models.parent) not in error
        assert client.post("/v2/repository/index").json() == known
    assert sorted(server.models.parent.rglob("*.onnx")) == before


def test_links_out_of_the_repository_are_the_owners(server: Server) -> None:
    """A link in the folder is its owner's doing and is followed; a folder named like a version leads nowhere else."""
    (server.models / "odd" / "1").mkdir(parents=True)
    (server.models / "odd" / "1" / "model.onnx").mkdir()
    assert post(server, b"", "/v2/repository/models/odd/load")[0] == 404
    (server.models / "odd" / "1" / "model.onnx").rmdir()


def test_uploads_are_off(server: Server) -> None:
    body = json.dumps({"parameters": {"config": "{}", "file:1/model.onnx": "AAAA"}}).encode()
    status, error = post(server, body, "/v2/repository/models/new/load")
    assert (status, "files in load requests are switched off" in error) == (400, True)


def test_errors_hold_no_paths_and_no_tracebacks(server: Server) -> None:
    (server.models / "bad.onnx").write_bytes(b"no model")
    status, error = post(server, b"", "/v2/repository/models/bad/load")
    assert status == 400
    for secret in (str(server.models), "/tmp", "Traceback", "0x7f", ".py", "site-packages"):
        assert secret not in error
    (server.models / "bad.onnx").unlink()


def test_requests_whose_clients_left_are_counted() -> None:
    """However many clients ask and leave, no more requests are on their way than the limit, and health is answered."""
    limit = 3

    async def check() -> None:
        begun, release = asyncio.Semaphore(0), asyncio.Event()

        async def slow(scope: Any, _receive: Any, send: Any) -> None:
            if not scope["path"].startswith("/v2/health/"):
                begun.release()
                await release.wait()
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
            await send({"type": "http.response.body"})

        async def ask(path: str, body: bytes = b"") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
            reader, writer = await asyncio.open_connection(sock=socket.create_connection(listening.getsockname()))
            length = len(body)
            writer.write(f"POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n".encode())
            writer.write(body)
            return reader, writer

        async def answer(path: str, body: bytes = b"") -> bytes:
            reader, writer = await ask(path, body)
            try:
                await writer.drain()
                return await reader.read()
            finally:
                writer.close()

        config = uvicorn.Config(slow, http=bounded(ConnectionLimits(requests=limit)), lifespan="off", log_level="warning")
        server = uvicorn.Server(config)
        with socket.create_server(("127.0.0.1", 0)) as listening:
            serving = asyncio.create_task(server.serve([listening]))
            for _ in range(limit):
                _, writer = await ask("/work")
                await begun.acquire()
                writer.close()
            while server.server_state.connections:  # the server knows that they left
                await asyncio.sleep(0.01)
            refusal = await answer("/work", bytes(16 * MIB))
            assert refusal.startswith(b"HTTP/1.1 503 ")
            assert json.loads(refusal.partition(b"\r\n\r\n")[2])["error"].startswith(f"server: {limit} requests")
            assert (await answer("/v2/health/live")).startswith(b"HTTP/1.1 200 ")
            release.set()
            while server.server_state.tasks:
                await asyncio.sleep(0.01)
            assert (await answer("/work")).startswith(b"HTTP/1.1 200 ")
            server.should_exit = True
            await serving

    asyncio.run(asyncio.wait_for(check(), 60))
