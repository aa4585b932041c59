"""Random and mutated requests over real sockets: no reply is a 500, and every error has the same body."""

import contextlib
import json
import socket
import string
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.core.result import Ok

from app.main import create_app
from app.settings import Settings
from bench.local import serving
from docs.faults import INFER, binary, post, tensor
from tests.app.servers import write_models

QUIET = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
ALLOWED = {200, 303, 400, 401, 403, 404, 405, 408, 409, 413, 421, 422, 429, 431, 501, 503}


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder = tmp_path_factory.mktemp("fuzz")
    write_models(folder)
    with serving(
        Settings(models=folder, db=f"sqlite:///{folder / 'fuzz.db'}", body_timeout_s=1, head_timeout_s=1, keep_alive_s=1)
    ) as client:
        yield client
        assert client.get("/v2/health/live").status_code == 200  # it lives, whatever was sent, and still infers
        assert client.post("/v2/repository/models/digits/load").status_code == 200
        assert client.post(INFER, content=tensor()).status_code == 200


def check(reply: httpx.Response) -> None:
    assert reply.status_code in ALLOWED, (reply.request.method, str(reply.request.url)[:200], reply.text[:300])
    if reply.status_code >= 400 and reply.content:
        assert list(reply.json()) == ["error"]


def operations() -> list[Any]:
    document = create_app(Settings(db="sqlite://")).openapi()
    schema = schemathesis.openapi.from_dict(document)
    found = [item.ok() for item in schema.get_all_operations() if isinstance(item, Ok)]
    return [operation for operation in found if operation.path.startswith("/v1/")]


@pytest.mark.parametrize("operation", operations(), ids=lambda operation: f"{operation.method.upper()} {operation.path}")
def test_control_routes_from_their_schema(fuzzed: httpx.Client, operation: Any) -> None:
    @QUIET
    @given(case=operation.as_strategy())
    def send(case: Any) -> None:
        path = case.formatted_path.lstrip("/")
        body = case.body if isinstance(case.body, dict | list | str | int | float | bool) else None
        with contextlib.suppress(httpx.InvalidURL):
            check(fuzzed.request(case.method, f"/{path}", params=case.query or None, json=body))

    send()


ROUTES = [
    "/v2",
    "/v2/health/live",
    "/v2/models",
    "/v2/models/stats",
    "/v2/models/digits",
    "/v2/models/digits/ready",
    "/v2/models/digits/config",
    "/v2/models/digits/versions/1/stats",
    "/v2/models/versioned/versions/3/infer",
    INFER,
    "/v2/models/id_bytes/infer",
    "/v2/repository/index",
    "/v2/repository/models/digits/load",
    "/v2/repository/models/nothing/unload",
    "/v2/trace/setting",
    "/v2/models/digits/trace/setting",
    "/v2/logging",
    "/v2/systemsharedmemory/status",
    "/v2/cudasharedmemory/region/r/register",
    "/metrics",
]
METHODS = ["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "TRACE"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(string.ascii_letters, max_size=12), inner, max_size=4),
    max_leaves=12,
)
FIELDS = st.sampled_from(["name", "shape", "datatype", "data", "parameters"])
KEYS = [
    "ready",
    "parameters",
    "trace_level",
    "trace_rate",
    "trace_count",
    "log_info",
    "log_format",
    "log_verbose_level",
    "inputs",
    "id",
]


@pytest.mark.parametrize("route", ROUTES)
def test_any_json_to_any_route(fuzzed: httpx.Client, route: str) -> None:
    @QUIET
    @given(st.sampled_from(METHODS), JSON | st.dictionaries(st.sampled_from(KEYS), JSON, max_size=4))
    def send(method: str, body: Any) -> None:
        check(fuzzed.request(method, route, content=json.dumps(body).encode()))

    send()
    fuzzed.post("/v2/logging", json={"log_info": True, "log_warning": True, "log_error": True, "log_verbose_level": 0})
    fuzzed.post("/v2/trace/setting", json={"trace_level": None, "trace_rate": None})


@settings(QUIET, max_examples=150)
@given(FIELDS, JSON, st.dictionaries(st.sampled_from(["id", "parameters", "outputs"]), JSON, max_size=2))
def test_inference_with_one_thing_wrong(fuzzed: httpx.Client, field: str, value: Any, around: dict[str, Any]) -> None:
    request = json.loads(tensor())
    request["inputs"][0][field] = value
    check(fuzzed.post(INFER, content=json.dumps({**request, **around}).encode()))


@settings(QUIET, max_examples=100)
@given(st.integers(0, 400), st.binary(min_size=1, max_size=6), st.sampled_from([binary(256), post(tensor())]))
def test_mutated_requests(fuzzed: httpx.Client, place: int, noise: bytes, request_bytes: bytes) -> None:
    address = urlsplit(str(fuzzed.base_url))
    valid = request_bytes.replace(b"{host}", address.netloc.encode())
    with socket.create_connection((address.hostname, address.port), timeout=15) as raw:
        with contextlib.suppress(ConnectionError):
            raw.sendall(valid[:place] + noise + valid[place + len(noise) :])
        reply = b""
        with contextlib.suppress(ConnectionError):
            while more := raw.recv(65536):
                reply += more
    assert int(reply.split(b" ")[1]) in ALLOWED, reply[:300]


@settings(QUIET, max_examples=60)
@given(st.binary(max_size=300))
def test_noise(fuzzed: httpx.Client, noise: bytes) -> None:
    address = urlsplit(str(fuzzed.base_url))
    with socket.create_connection((address.hostname, address.port), timeout=15) as raw:
        with contextlib.suppress(ConnectionError):
            raw.sendall(noise + b"\r\n\r\n")
        reply = b""
        with contextlib.suppress(ConnectionError):
            while more := raw.recv(65536):
                reply += more
    assert reply == b"" or int(reply.split(b" ")[1]) in ALLOWED, reply[:300]
