"""Hosts: what is exactly one of the server's names passes, and no text that only resembles one does."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.errors import RequestError
from app.http.authority import Authority, host_of, is_same_origin, parse
from app.main import create_app
from app.settings import DEMO_MODELS, LOOPBACK_NAMES, Settings
from bench.local import serving
from kernels.errors import InvalidError
from tests.app.http.raw import exchange

NAMES = sorted(LOOPBACK_NAMES)
QUIET = settings(max_examples=500, deadline=None, derandomize=True)
LETTERS = "abyzAZ019.-_~:@[]%/\\#?&=+ \t\0\r\nÄ１"  # what hosts are made of, and what they must not hold
PORTS = st.one_of(st.just(""), st.integers(0, 65535).map(lambda port: f":{port}"))


@st.composite
def near_misses(draw: st.DrawFn) -> str:
    """One of the server's names with something put into it, before or behind it, or taken out of it."""
    name = draw(st.sampled_from(NAMES)) + draw(PORTS)
    place = draw(st.integers(0, len(name)))
    taken = draw(st.integers(0, 2))
    put = draw(
        st.one_of(st.text(LETTERS, max_size=6), st.sampled_from([".evil.com", "evil.com/", "user@", ":x.evil.com", "%00", "]["]))
    )
    return name[:place] + put + name[place + taken :]


def is_named(text: str) -> bool:
    """Whether a text names one of the server's hosts, as `ipaddress` and plain comparisons say."""
    for end in range(len(text), -1, -1):
        host, port = text[:end], text[end:]
        has_port = port.startswith(":") and len(port) <= 6 and all(digit in "0123456789" for digit in port[1:])
        if port and not (has_port and int(port[1:] or 0) <= 65535):
            continue
        if host.lower() in LOOPBACK_NAMES:
            return True
        if host.startswith("[") and host.endswith("]") and "%" not in host:
            try:
                return ipaddress.IPv6Address(host[1:-1]) == ipaddress.IPv6Address("::1")
            except ValueError:
                continue
    return False


@QUIET
@given(near_misses())
def test_near_misses_are_no_name(text: str) -> None:
    found = parse(text)
    assert (found is not None and found.host in LOOPBACK_NAMES) == is_named(text), (text, found)


@QUIET
@given(st.sampled_from([*NAMES, "models.example", "10.0.0.1", "[2001:DB8::1]"]), PORTS)
def test_names_pass_with_and_without_a_port(name: str, port: str) -> None:
    assert parse(name.upper() + port) == Authority(name.lower(), int(port[1:]) if port else None)


@QUIET
@given(st.ip_addresses(v=6))
def test_every_address_is_spelt_one_way(address: ipaddress.IPv6Address) -> None:
    assert (
        parse(f"[{address.exploded}]") == parse(f"[{address.compressed.upper()}]") == Authority(f"[{address.compressed}]", None)
    )


@pytest.mark.parametrize(
    "text",
    ["", ":80", "[::1].evil.com", "127.0.0.1:x.evil.com", "a:-1", "a:+1", "a:65536", "a:1 ", " a", "a b", "a/b", "a@b", "[::1",
     "::1", "[]", "[::1%lo]", "[::1%25lo]", "[v1.a]", "[1.2.3.4]", "[::1]x", "[::1]:x", "a:1:2", "%zz", "a%0", "ä", "a\n", "a:１",
     "x" * 256],
)  # fmt: skip
def test_what_is_no_host(text: str) -> None:
    assert parse(text) is None


@pytest.mark.parametrize(
    ("sent", "version", "target", "why"),
    [
        ([], "1.1", None, "none was sent"),
        ([], "1.1", "a", "none was sent"),
        (["a", "a"], "1.1", None, "2 were sent"),
        (["a", "b"], "1.0", None, "2 were sent"),
        (["a b"], "1.1", None, "Host header: 'a b' is not a host"),
        (["a"], "1.1", "b", "differs from the host in the request line"),
        (["a"], "1.1", "a:81", "differs from the host in the request line"),
        (["a"], "1.1", "u@a", "request line: 'u@a' is not a host"),
        ([], "1.0", "", "request line: '' is not a host"),
    ],
)
def test_hosts_that_are_refused(sent: list[str], version: str, target: str | None, why: str) -> None:
    with pytest.raises(RequestError, match=why) as refused:
        host_of(sent, version, target)
    assert refused.value.status == 400


def test_hosts_that_are_taken() -> None:
    assert host_of(["A:80"], "1.1", "a:80") == Authority("a", 80)
    assert host_of([], "1.0", "a") == Authority("a", None)
    assert host_of([], "1.0", None) is None


@pytest.mark.parametrize(
    ("origin", "host", "same"),
    [
        ("http://a", "a", True),
        ("http://A", "a", True),
        ("http://a:80", "a", True),
        ("http://a", "a:80", True),
        ("https://a", "a:443", True),
        ("https://a", "a", True),
        ("http://a:8000", "a:8000", True),
        ("http://[::1]:8000", "[0::1]:8000", True),
        ("http://a", "a:8000", False),
        ("http://a:443", "a", False),
        ("http://a.evil.com", "a", False),
        ("http://a@evil.com", "a", False),
        ("http://a/", "a", False),
        ("http://a http://a", "a", False),
        ("ftp://a", "a", False),
        ("//a", "a", False),
        ("a", "a", False),
        ("null", "null", False),
        ("", "a", False),
    ],
)
def test_origins(origin: str, host: str, same: bool) -> None:
    assert is_same_origin(origin, parse(host)) is same


def test_no_host_is_no_origin() -> None:
    assert not is_same_origin("http://a", None)


@QUIET
@given(near_misses())
def test_near_misses_are_no_origin(text: str) -> None:
    host = Authority("localhost", 8000)
    same = is_same_origin(f"http://{text}", host)
    assert same == (parse(text) == host)
    assert not same or text.lower() in ("localhost:8000", "localhost:08000"), text


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with serving(Settings(models=DEMO_MODELS, db=f"sqlite:///{tmp_path_factory.mktemp('hosts') / 'a.db'}")) as client:
        found = urlsplit(str(client.base_url)).port
        assert found is not None
        yield found


@pytest.mark.parametrize(
    ("target", "lines", "version", "status"),
    [
        ("/v2", ["Host: localhost"], "1.1", 200),
        ("/v2", ["Host: [::1].evil.com"], "1.1", 400),
        ("/v2", ["Host: 127.0.0.1:x.evil.com"], "1.1", 400),
        ("/v2", ["Host: localhost", "Host: evil.com"], "1.1", 400),
        ("/v2", ["Host: localhost", "host: localhost"], "1.1", 400),
        ("/v2", ["Host: localhost, evil.com"], "1.1", 400),
        ("/v2", [], "1.1", 400),
        ("/v2", [], "1.0", 421),
        ("http://localhost/v2", ["Host: localhost"], "1.1", 200),
        ("HTTP://LOCALHOST/v2?a=b", ["Host: localhost"], "1.1", 200),
        ("http://localhost", ["Host: localhost"], "1.1", 200),
        ("http://localhost?a", ["Host: localhost"], "1.1", 200),
        ("http://evil.com/v2", ["Host: localhost"], "1.1", 400),
        ("http://localhost/v2", ["Host: evil.com"], "1.1", 400),
        ("http://user@localhost/v2", ["Host: localhost"], "1.1", 400),
        ("http://evil.com/v2", ["Host: evil.com"], "1.1", 421),
        ("http:///v2", ["Host: localhost"], "1.1", 400),
        ("*", ["Host: localhost"], "1.1", 404),
        ("v2", ["Host: localhost"], "1.1", 400),
    ],
)
def test_requests_name_one_host(port: int, target: str, lines: list[str], version: str, status: int) -> None:
    head = "\r\n".join([f"GET {target} HTTP/{version}", *lines, "Connection: close", "", ""])
    answer = exchange(port, head.encode("latin-1"))
    assert answer.status == status
    assert status == 200 or answer.error


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        (["Origin: http://localhost"], 404),
        (["Origin: http://localhost:80", "Origin: http://localhost"], 404),
        (["Origin: http://evil.com", "Origin: http://localhost"], 403),
        (["Origin: http://localhost", "Origin: http://evil.com"], 403),
        (["Origin: http://localhost@evil.com"], 403),
        (["Origin: null"], 403),
        (["Sec-Fetch-Site: cross-site", "Sec-Fetch-Site: none"], 403),
    ],
)
def test_writes_come_from_here(port: int, lines: list[str], status: int) -> None:
    head = ["POST /v2/models/nothing/infer HTTP/1.1", "Host: localhost", "Connection: close", "Content-Length: 0", *lines, "", ""]
    assert exchange(port, "\r\n".join(head).encode()).status == status


def test_a_name_that_is_no_host_cannot_be_allowed(tmp_path: Path) -> None:
    for name in ("models.example:8000", "http://models.example", ""):
        with pytest.raises(InvalidError, match="EDGEWISE_ALLOWED_HOSTS"):
            create_app(Settings(db=f"sqlite:///{tmp_path / 'a.db'}", allowed_hosts=(name,)))


def test_allowed_hosts_are_spelt_in_any_way(tmp_path: Path) -> None:
    hosts = ("Models.Example", "[2001:DB8:0::1]")
    with serving(
        Settings(models=DEMO_MODELS, db=f"sqlite:///{tmp_path / 'a.db'}", allowed_hosts=(*hosts, "127.0.0.1"))
    ) as client:
        for host, status in (("models.example:80", 200), ("MODELS.EXAMPLE", 200), ("[2001:db8::1]:1", 200), ("localhost", 421)):
            assert client.get("/v2", headers={"Host": host}).status_code == status
