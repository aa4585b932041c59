"""A refusal arrives at a client that writes its whole request before it reads, on each path that answers before the body."""

from __future__ import annotations

import contextlib
import itertools
import json
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from app.settings import DEMO_MODELS, Settings
from bench.local import serving
from bench.waiting import until
from tests.app.demo import SEVEN
from tests.app.http.proxy import needs_nginx, nginx
from tests.app.http.raw import Answer, chunked, connect, exchange, read_answer, request
from tests.app.keys import make_key
from tests.app.servers import running, write_models

MIB = 2**20
BODY = bytes(5 * MIB)
TIMES = 20
UNKNOWN = "/v2/models/nothing/infer"
INFER = "/v2/models/digits/infer"
CLOSE = "Connection: close"


def port_of(client: httpx.Client) -> int:
    port = urlsplit(str(client.base_url)).port
    assert port is not None
    return port


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    folder = tmp_path_factory.mktemp("refusals")
    settings = Settings(models=DEMO_MODELS, db=f"sqlite:///{folder / 'a.db'}", max_control_bytes=MIB, body_timeout_s=1)
    with serving(settings) as client:
        yield port_of(client)


REFUSED = {
    "unknown_model": (404, request("POST", UNKNOWN, BODY)),
    "unknown_model_close": (404, request("POST", UNKNOWN, BODY, CLOSE)),
    "unknown_model_http10": (404, request("POST", UNKNOWN, BODY, version="1.0")),
    "unknown_model_chunked": (404, chunked("POST", UNKNOWN, BODY, CLOSE)),
    "unknown_path": (404, request("POST", "/nothing", bytes(MIB), CLOSE)),
    "wrong_method": (405, request("PUT", "/v2", bytes(MIB), CLOSE)),
    "too_large": (413, request("POST", "/v1/plans", BODY, "Content-Type: application/json")),
    "too_large_chunked": (413, chunked("POST", "/v1/plans", BODY, "Content-Type: application/json")),
    "too_large_for_its_route": (413, chunked("POST", "/v2/repository/index", BODY)),
    "other_host": (421, request("POST", INFER, BODY, CLOSE, host="evil.example")),
    "no_host": (400, request("POST", INFER, BODY, CLOSE, host="[::1")),
    "two_hosts": (400, request("POST", INFER, BODY, CLOSE, "Host: evil.example")),
    "other_origin": (403, request("POST", INFER, BODY, CLOSE, "Origin: http://evil.example")),
    "uploads_off": (403, request("POST", "/v1/models?name=m", BODY, CLOSE)),
    "long_head": (431, request("POST", INFER, BODY, "X-A: " + "a" * 70_000)),
    "many_headers": (431, request("POST", INFER, BODY, *(f"X-{number}: a" for number in range(300)))),
    "long_target": (431, b"GET /" + b"a" * 5 * MIB),
    "not_http": (400, b"\x16\x03\x01" + BODY),
    "bad_chunks": (400, chunked("POST", INFER, b"{}").replace(b"2\r\n", b"zz\r\n") + BODY),
    "two_lengths": (400, request("POST", INFER, BODY, "Transfer-Encoding: chunked")),
    "websocket": (404, request("POST", UNKNOWN, BODY, "Connection: Upgrade, close", "Upgrade: websocket")),
    "websocket_bodiless": (404, request("GET", "/nothing", b"", "Connection: Upgrade, close", "Upgrade: websocket") + BODY),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusal_arrives_after_all_was_sent(port: int, name: str) -> None:
    status, sent = REFUSED[name]
    answers = [exchange(port, sent) for _ in range(TIMES)]
    assert [answer.status for answer in answers] == [status] * TIMES
    assert answers[0].error


def test_a_head_request_with_a_body_is_answered(port: int) -> None:
    answers = [exchange(port, request("HEAD", "/nothing", BODY[:MIB], CLOSE), bodiless=True) for _ in range(TIMES)]
    assert [answer.status for answer in answers] == [404] * TIMES


def test_a_late_body_is_told_though_it_goes_on(port: int) -> None:
    with connect(port) as raw:
        raw.sendall(request("POST", INFER, BODY)[: -4 * MIB])
        time.sleep(1.5)  # past the limit of 1 s
        raw.sendall(bytes(4 * MIB))
        assert "request body: incomplete after 1 s" in read_answer(raw).error


@pytest.mark.parametrize("kind", ["without a key", "without the scope"])
@pytest.mark.parametrize("path", [INFER, "/v1/plans", "/v1/models?name=m", "/v2/repository/models/digits/load"])
def test_refusal_of_callers_arrives(tmp_path: Path, kind: str, path: str) -> None:
    db = f"sqlite:///{tmp_path / 'a.db'}"
    key = make_key(db, "read")
    line, status = ("X-A: b", 401) if kind == "without a key" else (f"X-API-Key: {key}", 403)
    sent = request("POST", path, BODY, line, CLOSE, "Content-Type: application/json")
    with serving(Settings(models=DEMO_MODELS, db=db)) as client:
        answers = [exchange(port_of(client), sent) for _ in range(TIMES)]
        assert [answer.status for answer in answers] == [status] * TIMES
        expecting = request("POST", path, b"", line, "Expect: 100-continue", "Content-Type: application/json")
        told = exchange(port_of(client), expecting.replace(b"Content-Length: 0", b"Content-Length: 5000000"))
        assert (told.status, told.headers["connection"]) == (status, "close")


@pytest.mark.parametrize("name", ["unknown_model", "wrong_method", "other_host", "other_origin", "uploads_off", "too_large"])
def test_who_expects_100_gets_the_refusal_instead(port: int, name: str) -> None:
    status, sent = REFUSED[name]
    head = sent.partition(b"\r\n\r\n")[0].replace(CLOSE.encode(), b"X-A: b") + b"\r\nExpect: 100-continue\r\n\r\n"
    answer = exchange(port, head)
    assert (answer.status, answer.headers["connection"]) == (status, "close")


def test_who_expects_100_and_is_welcome_gets_it(port: int) -> None:
    with connect(port) as raw:
        raw.sendall(request("POST", INFER, SEVEN, "Expect: 100-continue")[: -len(SEVEN)])
        assert read_answer(raw, bodiless=True).status == 100
        raw.sendall(SEVEN)
        assert read_answer(raw).status == 200
        raw.sendall(request("GET", "/v2/health/live"))
        assert read_answer(raw).status == 200


def test_a_pipeline_goes_on_behind_what_was_refused(port: int) -> None:
    """Twenty times five megabytes on one connection: more than a client may send to nobody at once, but each is answered."""
    with connect(port) as raw:
        for _ in range(TIMES):
            raw.sendall(request("POST", UNKNOWN, BODY) + chunked("POST", UNKNOWN, b"x") + request("POST", INFER, SEVEN))
            assert [read_answer(raw).status for _ in range(3)] == [404, 404, 200]


def test_a_bad_request_behind_good_ones_leaves_their_answers(port: int) -> None:
    for _ in range(TIMES):
        with connect(port) as raw:
            raw.sendall(request("POST", INFER, SEVEN) * 3 + b"NONSENSE\r\n\r\n" + BODY)
            assert [read_answer(raw).status for _ in range(4)] == [200, 200, 200, 400]
            raw.shutdown(socket.SHUT_WR)
            assert raw.recv(1) == b""


def test_what_comes_behind_an_upgrade_is_answered(port: int) -> None:
    upgrade = request("GET", "/v2/health/live", b"", "Connection: Upgrade", "Upgrade: h2c")
    with connect(port) as raw:
        raw.sendall(upgrade * 500 + request("GET", "/v2"))
        assert {read_answer(raw).status for _ in range(501)} == {200}


@pytest.mark.parametrize("close", [CLOSE, "X-A: b"], ids=["close", "keep_alive"])
def test_who_never_stops_sending_is_cut(tmp_path: Path, close: str) -> None:
    settings = Settings(models=DEMO_MODELS, db=f"sqlite:///{tmp_path / 'a.db'}", linger_bytes=8 * MIB)
    head = request("POST", UNKNOWN, b"", close).replace(b"Content-Length: 0", b"Content-Length: %d" % 10**15)
    with serving(settings) as client, connect(port_of(client)) as raw:
        raw.sendall(head)
        sent = 0
        with contextlib.suppress(ConnectionError):
            while sent < 1000:
                raw.sendall(bytes(MIB))
                sent += 1
        assert 8 <= sent < 100  # with what lies in the buffers of both sides


@pytest.mark.parametrize("close", [CLOSE, "X-A: b"], ids=["close", "keep_alive"])
def test_who_drips_is_cut(tmp_path: Path, close: str) -> None:
    settings = Settings(models=DEMO_MODELS, db=f"sqlite:///{tmp_path / 'a.db'}", linger_s=1)
    with serving(settings) as client, connect(port_of(client)) as raw:
        raw.sendall(request("POST", UNKNOWN, BODY, close)[:-MIB])
        assert read_answer(raw).status == 404

        def is_cut() -> bool:
            try:
                raw.sendall(b"x")
            except ConnectionError:
                return True
            return False

        until(is_cut, 30)


def test_requests_above_the_limit_are_told(tmp_path: Path) -> None:
    with serving(Settings(models=DEMO_MODELS, db=f"sqlite:///{tmp_path / 'a.db'}", max_requests=1)) as client:
        port = port_of(client)
        with connect(port) as busy:
            busy.sendall(request("POST", INFER, SEVEN)[:-1])
            until(lambda: exchange(port, request("GET", "/v2", b"", CLOSE)).status == 503)
            for sent in (request("POST", INFER, BODY, CLOSE), chunked("POST", INFER, BODY, CLOSE)):
                answers = [exchange(port, sent) for _ in range(TIMES)]
                assert {(answer.status, answer.headers.get("retry-after")) for answer in answers} == {(503, "1")}
            assert exchange(port, request("POST", INFER, b"", "Expect: 100-continue")).status == 503
            busy.sendall(SEVEN[-1:])
            assert read_answer(busy).status == 200


def test_connections_above_the_limit_are_told(tmp_path: Path) -> None:
    with serving(Settings(models=DEMO_MODELS, db=f"sqlite:///{tmp_path / 'a.db'}", max_connections=8)) as client:
        port = port_of(client)
        with contextlib.ExitStack() as stack:
            for _ in range(8):  # with the client's own, which is kept alive
                stack.enter_context(connect(port))
            answers = [exchange(port, request("POST", INFER, BODY)) for _ in range(TIMES)]
            assert {(answer.status, answer.headers.get("retry-after")) for answer in answers} == {(503, "1")}
        until(lambda: exchange(port, request("GET", "/v2", b"", CLOSE)).status == 200)


def test_refusals_of_a_service_that_stops_arrive(tmp_path: Path) -> None:
    models = tmp_path / "models"
    models.mkdir()
    write_models(models)
    with running(tmp_path, models, environment={"EDGEWISE_GRACE_S": "1", "EDGEWISE_DRAIN_S": "2"}) as server:
        with connect(server.port) as half_a_head, connect(server.port) as half_a_body, connect(server.port) as idle:
            half_a_head.sendall(b"POST /v2/models/digits/infer HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 5000000\r\n")
            half_a_body.sendall(request("POST", INFER, BODY)[: -3 * MIB])
            idle.sendall(request("GET", "/v2"))
            assert read_answer(idle).status == 200
            server.process.send_signal(signal.SIGTERM)
            until(lambda: exchange(server.port, request("GET", "/v2/health/ready", b"", CLOSE)).status == 503)
            refused = exchange(server.port, request("POST", UNKNOWN, BODY))
            assert (refused.status, refused.headers["connection"]) == (404, "close")
            assert idle.recv(1) == b""
            half_a_head.sendall(b"\r\n" + BODY)  # into a connection that the server has ended
            half_a_body.sendall(BODY[: 2 * MIB])
            for raw in (half_a_head, half_a_body):
                answer = read_answer(raw)
                assert (answer.status, answer.headers["retry-after"]) == (503, "1")
                assert "shutting down" in answer.error
        server.process.wait(30)


@needs_nginx
@pytest.mark.parametrize("buffering", ["on", "off"])
@pytest.mark.parametrize("name", ["unknown_model", "unknown_model_chunked", "too_large", "other_origin", "uploads_off"])
def test_refusal_arrives_through_nginx(tmp_path: Path, port: int, name: str, buffering: str) -> None:
    status, sent = REFUSED[name]
    with nginx(tmp_path, port, port, buffering) as proxy:
        assert [exchange(proxy, sent).status for _ in range(TIMES)] == [status] * TIMES


def test_200_clients_get_answers_while_models_reload(tmp_path: Path) -> None:
    """Each gets a whole response to each request: an answer, or a 503 that says when to try again."""
    models = tmp_path / "models"
    models.mkdir()
    write_models(models)
    settings = Settings(models=models, db=f"sqlite:///{tmp_path / 'a.db'}", max_requests=32, queue_limit=8, max_connections=150)
    body = SEVEN + b" " * 200_000
    sent = itertools.cycle(
        [request("POST", INFER, body, CLOSE), chunked("POST", INFER, body, CLOSE), request("POST", INFER, body)]
    )
    requests = [next(sent) for _ in range(200)]
    answers: list[Answer] = []
    failures: list[BaseException] = []
    stop = threading.Event()
    with serving(settings) as client:
        port = port_of(client)

        def ask(mine: bytes) -> None:
            try:
                for _ in range(5):
                    answers.append(exchange(port, mine))
            except (AssertionError, OSError) as error:
                failures.append(error)

        def reload() -> None:
            for act in itertools.cycle(["load", "unload"]):
                exchange(port, request("POST", f"/v2/repository/models/digits/{act}", b"", CLOSE))
                if stop.is_set():
                    return

        reloading = threading.Thread(target=reload)
        asking = [threading.Thread(target=ask, args=(mine,)) for mine in requests]
        for thread in (reloading, *asking):
            thread.start()
        for thread in asking:
            thread.join()
        stop.set()
        reloading.join()
    assert failures == []
    assert len(answers) == 1000
    assert {answer.status for answer in answers} == {200, 503}
    for answer in answers:
        assert answer.status == 200 or (int(answer.headers["retry-after"]) >= 1 and answer.error)
        json.loads(answer.body)
