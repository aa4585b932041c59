"""A blocking client of the plainest kind: it writes all that it has before it reads, and notes a reset instead of hiding it."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Answer:
    """One response. body: as long as its Content-Length says. headers: by their names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def error(self) -> str:
        found = json.loads(self.body)
        assert list(found) == ["error"], found
        return found["error"]


def request(method: str, path: str, body: bytes = b"", *lines: str, host: str = "127.0.0.1", version: str = "1.1") -> bytes:
    """A request with a Content-Length and these further header lines."""
    head = [f"{method} {path} HTTP/{version}", f"Host: {host}", f"Content-Length: {len(body)}", *lines]
    return "\r\n".join([*head, "", ""]).encode("latin-1") + body


def chunked(method: str, path: str, body: bytes, *lines: str, piece_bytes: int = 65_536) -> bytes:
    """A request whose body comes in chunks of that size."""
    head = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", "Transfer-Encoding: chunked", *lines]
    pieces = [body[start : start + piece_bytes] for start in range(0, len(body), piece_bytes)]
    return (
        "\r\n".join([*head, "", ""]).encode() + b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
    )


def connect(port: int, timeout_s: float = 60) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout_s)


def read_answer(raw: socket.socket, *, bodiless: bool = False) -> Answer:
    """Read one response and no byte more. bodiless: to a HEAD request, or an interim one."""
    data = b""
    while not data.endswith(b"\r\n\r\n"):
        byte = raw.recv(1)
        assert byte, f"the connection ended within a head: {data!r}"
        data += byte
    first, *lines = data.decode("latin-1").split("\r\n")[:-2]
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    length = 0 if bodiless else int(headers.get("content-length", "0"))
    body = b""
    while len(body) < length:
        more = raw.recv(length - len(body))
        assert more, f"the connection ended after {len(body)} of {length} bytes"
        body += more
    return Answer(int(first.split(" ")[1]), headers, body)


def exchange(port: int, sent: bytes, *, bodiless: bool = False) -> Answer:
    """Write everything, then read the answer and the end of the connection. Raises ConnectionError where the server resets it."""
    with connect(port) as raw:
        raw.sendall(sent)
        answer = read_answer(raw, bodiless=bodiless)
        raw.shutdown(socket.SHUT_WR)
        assert raw.recv(1) == b"", "more than one answer"
        return answer
