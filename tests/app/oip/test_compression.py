"""A reply is compressed as the request's Accept-Encoding allows."""

import gzip
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.oip import compression


@pytest.mark.parametrize(
    ("accepted", "near", "far"),
    [
        ("", "identity", "identity"),
        ("gzip", "gzip", "gzip"),
        ("deflate", "deflate", "deflate"),
        ("gzip, deflate", "identity", "gzip"),
        ("gzip, deflate, br", "identity", "gzip"),
        ("br, zstd", "identity", "identity"),
        ("gzip;q=0.2, deflate;q=0.8", "identity", "deflate"),
        ("gzip;q=0", "identity", "identity"),
        ("GZIP ; Q=0.5", "gzip", "gzip"),
        ("gzip;q=0.5, identity;q=0.9", "identity", "identity"),
        ("*", "identity", "identity"),
        ("gzip;q=x", "identity", "identity"),
        (",;,", "identity", "identity"),
    ],
)
def test_choice(accepted: str, near: str, far: str) -> None:
    assert (compression.choose(accepted, near=True), compression.choose(accepted, near=False)) == (near, far)


PARTS = st.sampled_from(["gzip", "deflate", "br", "GZIP", "*", ";q=0", ";q=0.5", ",", " "]) | st.text(max_size=4)


@given(st.lists(PARTS).map("".join), st.booleans())
def test_any_header_has_an_answer_that_it_allows(accepted: str, near: bool) -> None:
    found = compression.choose(accepted, near)
    assert found == "identity" or (found in ("gzip", "deflate") and found in accepted.lower())


@given(st.binary(max_size=2000))
def test_round_trip(body: bytes) -> None:
    assert gzip.decompress(compression.compress(body, "gzip")) == body
    assert zlib.decompress(compression.compress(body, "deflate")) == body
