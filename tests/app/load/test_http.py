"""The HTTP client of loads, against servers of a few lines that count connections and answer as the tests say."""

import asyncio
import contextlib

import pytest

from app.load.http import Address, HttpClient, HttpServer, parse_address
from app.load.server import CONNECTION, FailedError, LoadError

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Scripted:
    """A server that gives one answer to each request, in order, then repeats the last. None: it closes without an answer."""

    def __init__(self, *answers):
        self.answers, self.requests, self.serving = list(answers), [], []

    @property
    def connections(self):
        return len(self.serving)

    async def serve(self, reader, writer):
        self.serving.append(asyncio.current_task())
        with (
            contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError),
            contextlib.closing(writer),
        ):
            while True:
                self.requests.append(await reader.readuntil(b"\r\n\r\n"))
                answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
                if answer is None:
                    break
                for part in answer if isinstance(answer, list) else [answer]:
                    writer.write(part)
                    await writer.drain()
                    await asyncio.sleep(0.01)


def with_server(server, work):
    async def run():
        async with await asyncio.start_server(server.serve, "127.0.0.1", 0) as listening:
            port = listening.sockets[0].getsockname()[1]
            try:
                return await work(Address("http", "127.0.0.1", port))
            finally:
                for task in server.serving:
                    task.cancel()
                await asyncio.wait(server.serving)

    return asyncio.run(run())


def send(server, times=1):
    """Send requests on one client; return what each raised, or None."""

    async def work(address):
        client, found = HttpClient(address, address.request("POST", "/x", {})), list[Exception | None]()
        for _ in range(times):
            try:
                async with asyncio.timeout(0.5):
                    await client.send()
                found.append(None)
            except (FailedError, TimeoutError) as error:
                found.append(error)
        await client.close()
        return found

    return with_server(server, work)


def test_requests_share_a_connection():
    server = Scripted(OK)
    assert send(server, 5) == [None] * 5
    assert server.connections == 1
    assert server.requests[0].startswith(b"POST /x HTTP/1.1\r\nHost: 127.0.0.1:")


@pytest.mark.parametrize(
    "answer",
    [
        [b"HTTP/1.1 200 OK\r\nContent-", b"Length: 4\r\n\r\nab", b"cd"],
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    ],
    ids=["in parts", "chunked", "empty"],
)
def test_answers_are_read_whole(answer):
    server = Scripted(answer)
    assert send(server, 2) == [None, None]
    assert server.connections == 1


def test_a_connection_that_the_server_closes_is_replaced():
    server = Scripted(OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"), OK)
    assert send(server, 3) == [None] * 3
    assert server.connections == 2


def test_a_refusal_is_a_failure_by_status_with_its_reason():
    body = b'{"error": "Exceeds maximum queue size"}'
    server = Scripted(b"HTTP/1.1 503 Busy\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body), OK)
    refused, fine = send(server, 2)
    assert (refused.kind, str(refused), fine) == ("503", "Exceeds maximum queue size", None)


def test_redirects_are_not_followed():
    server = Scripted(b"HTTP/1.1 307 Moved\r\nLocation: http://example.invalid/\r\nContent-Length: 0\r\n\r\n")
    (found,) = send(server)
    assert (found.kind, str(found)) == ("307", "no reason given")


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (None, "the server closed the connection"),
        (b"SMTP ready\r\n\r\n", "the answer is not HTTP"),
        ([b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nab", b"cd"], None),
    ],
    ids=["closed", "not HTTP", "never whole"],
)
def test_what_is_no_answer_fails_and_the_next_request_begins_anew(answer, says):
    server = Scripted(answer, OK)
    first, second = send(server, 2)
    assert second is None
    assert server.connections == 2
    if says is None:
        assert isinstance(first, TimeoutError)
    else:
        assert (first.kind, says in str(first)) == (CONNECTION, True)


def test_a_server_that_is_not_there():
    async def work():
        address = Address("http", "127.0.0.1", 1)
        await HttpClient(address, address.request("POST", "/x", {})).send()

    with pytest.raises(FailedError, match=r"127.0.0.1:1: .*Connect call failed") as caught:
        asyncio.run(work())
    assert caught.value.kind == CONNECTION


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://127.0.0.1:8000", Address("http", "127.0.0.1", 8000)),
        ("http://host/", Address("http", "host", 80)),
        ("https://[::1]:9/a/b/", Address("https", "::1", 9, "/a/b")),
    ],
)
def test_addresses(url, address):
    assert parse_address(url) == address


@pytest.mark.parametrize(
    "url", ["127.0.0.1:8000", "ftp://host", "http://", "http://a:b@host", "http://host?x=1", "http://h:99999"]
)
def test_addresses_that_are_none(url):
    with pytest.raises(LoadError, match="load: address is"):
        parse_address(url)


def test_headers_cannot_be_smuggled_in_a_key_or_a_name():
    with pytest.raises(LoadError, match="API key"):
        HttpServer("http://host", "ewk_x\r\nX: y")
    assert parse_address("http://host/a%0d%0ab c").prefix == "/a%0d%0ab%20c"


def test_answers_about_a_model_that_are_not_json():
    async def work(address):
        await HttpServer(f"http://127.0.0.1:{address.port}").models()

    with pytest.raises(LoadError, match=r"GET /v2/models: .*, is this the Open Inference Protocol\?"):
        with_server(Scripted(OK), work)
