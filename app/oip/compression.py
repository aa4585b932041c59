"""Content codings of replies: choosing one by the client's Accept-Encoding, and compressing."""

from __future__ import annotations

import zlib

WINDOWS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}  # the protocol's deflate is zlib's format
MAX_HEADER = 1024
_ORDER = {"identity": 0, "deflate": 1, "gzip": 2}


def choose(accepted: str, near: bool) -> str:
    """Return gzip, deflate or identity: the coding with the highest q-value, gzip among equals. Other codings are ignored.

    near: the client is on this host, where compression costs more time than it saves. Such a client gets it only if it accepts
    nothing else.
    """
    weights: dict[str, float] = {}
    for item in accepted[:MAX_HEADER].lower().split(","):
        name, _, parameters = item.partition(";")
        weights[name.strip()] = _weight(parameters)
    if near and set(weights) not in ({"gzip"}, {"deflate"}):
        return "identity"
    weights.setdefault("identity", min(weights.get("*", 1e-6), 1e-6))
    found = [(weights[name], rank, name) for name, rank in _ORDER.items() if weights.get(name, 0) > 0]
    return max(found, default=(0, 0, "identity"))[2]


def _weight(parameters: str) -> float:
    name, _, value = parameters.strip().partition("=")
    if name.strip() != "q":
        return 1.0
    try:
        return min(1.0, max(0.0, float(value)))
    except ValueError:
        return 0.0


def compress(body: bytes, encoding: str) -> bytes:
    """Compress a body with that coding."""
    deflater = zlib.compressobj(1, wbits=WINDOWS[encoding])
    return deflater.compress(body) + deflater.flush()
