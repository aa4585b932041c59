"""Hosts as requests name them (RFC 9110 section 7.2, RFC 3986 section 3.2): what is no host is refused, not guessed at."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from typing import Final

from app.errors import RequestError
from kernels.errors import InvalidError
from kernels.record import record

_AUTHORITY: Final = re.compile(
    r"""(?: \[ (?P<v6> [0-9A-Fa-f:.]{2,45} ) \] | (?P<name> (?: [A-Za-z0-9._~!$&'()*+,;=-] | %[0-9A-Fa-f]{2} ){1,255} ) )
        (?: : (?P<port> [0-9]{0,5} ) )?""",
    re.VERBOSE | re.ASCII,
)
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}


@record
class Authority:
    """A host and a port, None where none is given. host: in lower case; an IPv6 address in brackets, in its shortest form."""

    host: str
    port: int | None


def parse(text: str) -> Authority | None:
    """Parse `host`, `host:port`, `[address]` or `[address]:port`; None for any other text, one with a user name too."""
    found = _AUTHORITY.fullmatch(text)
    if found is None:
        return None
    port = int(found["port"]) if found["port"] else None
    if port is not None and port > 65535:
        return None
    if found["v6"] is None:
        return Authority(found["name"].lower(), port)
    try:
        return Authority(f"[{ipaddress.IPv6Address(found['v6']).compressed}]", port)
    except ValueError:
        return None


def allowed(name: str) -> str:
    """Return one of EDGEWISE_ALLOWED_HOSTS as `parse` spells hosts. Raises InvalidError for what is no host, or has a port."""
    found = parse(name)
    if found is None or found.port is not None:
        raise InvalidError(
            f"EDGEWISE_ALLOWED_HOSTS: {name!r} is not a host, need a name, an address or an [IPv6 address], no port"
        )
    return found.host


def host_of(sent: Sequence[str], http_version: str, target: str | None) -> Authority | None:
    """Return the host that a request is for; None for a request of HTTP/1.0 that names none.

    Args:   sent: the values of its Host headers. target: the host in a request line like "GET http://host/path"; else None.
    Raises: RequestError 400 for no Host header in HTTP/1.1, several, one that is no host, or one that differs from `target`.
    """
    if len(sent) > 1:
        raise RequestError(400, f"Host header: {len(sent)} were sent, need exactly one")
    if not sent:
        if http_version != "1.0":
            raise RequestError(400, "Host header: none was sent, HTTP/1.1 needs exactly one")
        return None if target is None else _checked("request line", target)
    host = _checked("Host header", sent[0])
    if target is not None and _checked("request line", target) != host:
        raise RequestError(400, "Host header: it differs from the host in the request line, need the same in both")
    return host


def _checked(place: str, text: str) -> Authority:
    found = parse(text)
    if found is None:
        raise RequestError(400, f"{place}: {text[:80]!r} is not a host, need name, address or [IPv6 address], and a port or none")
    return found


def is_same_origin(origin: str, host: Authority | None) -> bool:
    """Whether an Origin header names the host that the request is for. "null", and what is no origin, names none."""
    scheme, _, rest = origin.partition("://")
    named = parse(rest)
    if named is None or host is None or scheme not in _DEFAULT_PORTS:
        return False
    default = _DEFAULT_PORTS[scheme]
    return (named.host, named.port or default) == (host.host, host.port or default)
