"""Tests of keys, scopes and sessions. Every route needs a key unless it declares otherwise."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import fastapi.routing
import httpx
import pytest
from fastapi import FastAPI
from starlette.routing import BaseRoute, Mount

from app.access import auth
from app.access.auth import COOKIE, DirectRoute, Scope, declared
from app.http.middleware import PUBLIC
from app.main import create_app
from app.settings import DEMO_MODELS, Settings
from bench.local import serving
from bench.waiting import until
from scheduler.store import Store, StoredKey
from tests.app.demo import SEVEN
from tests.app.keys import bearer, make_key
from tests.processes import edgewise


@pytest.fixture
def db(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'keys.db'}"


def settings(db: str, **changes: Any) -> Settings:
    return Settings(models=DEMO_MODELS, db=db, key_refresh_s=0.1, **changes)


@pytest.fixture
def keyed(db: str) -> Iterator[tuple[httpx.Client, dict[str, str]]]:
    keys = {scope: make_key(db, scope) for scope in ("infer", "read", "admin")}
    with serving(settings(db)) as client:
        yield client, keys


def routes_of(app: FastAPI) -> Iterator[tuple[str, BaseRoute]]:
    """Yield every route, also of included routers, with its whole path."""

    def walk(routes: list[BaseRoute], prefix: str) -> Iterator[tuple[str, BaseRoute]]:
        for route in routes:
            inner = getattr(route, "original_router", None)
            if inner is not None:
                yield from walk(inner.routes, prefix + route.include_context.prefix)  # type: ignore[attr-defined]
            else:
                yield prefix + getattr(route, "path", ""), route

    yield from walk(list(app.routes), "")


ASKING = {"/v1/plans/what-if"}  # POST for its length, and changes nothing


def test_every_route_declares_a_scope(db: str) -> None:
    found = list(routes_of(create_app(settings(db))))
    assert len(found) > 40
    for path, route in found:
        if isinstance(route, Mount):
            assert path == "/static"
            continue
        assert isinstance(route, fastapi.routing.APIRoute | DirectRoute), path  # others would not meet `authorise`
        scopes = declared(route.endpoint)
        assert scopes is not None, path
        assert (path in PUBLIC) == (scopes == frozenset()), path
        if route.methods - {"GET", "HEAD"} and path.startswith(("/v1", "/v2/repository/models", "/v2/logging", "/v2/trace")):
            assert scopes == ({Scope.READ} if path in ASKING else {Scope.ADMIN}), path


def test_inference_is_posted_by_holders_of_its_scope(keyed: tuple[httpx.Client, dict[str, str]]) -> None:
    client, keys = keyed
    path = "/v2/models/digits/infer"
    for scope, status in (("read", 403), ("infer", 400), ("admin", 400)):
        assert client.post(path, content=b"{}", headers={"X-API-Key": keys[scope]}).status_code == status
    refused = client.get(path, headers={"X-API-Key": keys["infer"]})
    assert (refused.status_code, refused.headers["allow"]) == (405, "POST")
    assert client.post(path, content=b"{}").status_code == 401


def test_every_route_but_the_public_ones_is_closed_without_a_key(db: str) -> None:
    make_key(db, "admin")
    app = create_app(settings(db))
    with serving(settings(db), app) as client:
        for path, route in routes_of(app):
            for method in getattr(route, "methods", None) or {"GET"}:
                url = path.replace("{name:path}", "m").replace("{", "").replace("}", "")
                if isinstance(route, Mount):
                    url = "/static/style.css"
                status = client.request(method, url, follow_redirects=False).status_code
                assert (status == 401) != (path in PUBLIC or path == "/static"), (method, path, status)


def test_a_route_without_a_scope_is_refused_to_everybody(db: str) -> None:
    app = create_app(settings(db))

    async def forgotten() -> str:
        return "open"

    app.add_api_route("/forgotten", forgotten)
    with serving(settings(db), app) as client:
        reply = client.get("/forgotten")
        assert (reply.status_code, "declares no scope" in reply.json()["error"]) == (403, True)
        assert client.get("/v2").status_code == 200


def test_local_callers_are_let_in_until_a_key_is_made(db: str) -> None:
    with serving(settings(db)) as client:
        assert client.post("/v2/repository/index").status_code == 200
        key = make_key(db, "read")
        until(lambda: client.get("/v2").status_code == 401)
        assert client.get("/v2", headers=bearer(key)).status_code == 200


def test_no_key_opens_nothing_on_other_addresses(db: str) -> None:
    with serving(settings(db, host="0.0.0.0")) as client:
        assert client.get("/v2/health/live").status_code == 200
        assert client.get("/v2").status_code == 401
        key = make_key(db, "infer")
        until(lambda: client.get("/v2", headers={"X-API-Key": key, "Host": "models.example"}).status_code == 200)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("POST", "/v2/models/digits/infer", {"infer", "admin"}),
        ("GET", "/v2/models/digits", {"infer", "read", "admin"}),
        ("GET", "/v1/models", {"read", "admin"}),
        ("GET", "/metrics", {"read", "admin"}),
        ("GET", "/", {"read", "admin"}),
        ("POST", "/v2/repository/models/digits/load", {"admin"}),
        ("POST", "/v2/logging", {"admin"}),
    ],
)
def test_scopes(keyed: tuple[httpx.Client, dict[str, str]], method: str, path: str, allowed: set[str]) -> None:
    client, keys = keyed
    body = SEVEN if path.endswith("infer") else b""
    statuses = {scope: client.request(method, path, headers=bearer(key), content=body).status_code for scope, key in keys.items()}
    assert {scope for scope, status in statuses.items() if status == 200} == allowed
    assert {status for scope, status in statuses.items() if scope not in allowed} <= {403}


@pytest.mark.parametrize("text", ["x", "ewk_", "ewk_000000000000.abc", "ewk_" + "a" * 5000, "ewk_%00.%ff", "é"])
def test_wrong_keys_are_401(keyed: tuple[httpx.Client, dict[str, str]], text: str) -> None:
    client, keys = keyed
    wrong = keys["infer"][:-1] + ("A" if keys["infer"][-1] != "A" else "B")
    for key in (text.encode("latin-1"), wrong.encode()):
        reply = client.get("/v2", headers=[(b"Authorization", b"Bearer " + key)])
        assert (reply.status_code, list(reply.json()), reply.headers["www-authenticate"]) == (401, ["error"], "Bearer")


def test_revoked_and_expired_keys_stop_without_a_restart(db: str) -> None:
    revoked, admin = make_key(db, "read"), make_key(db, "admin")

    def status(key: str) -> int:
        return client.get("/v1/models", headers=bearer(key)).status_code

    with serving(settings(db)) as client:
        expiring = make_key(db, "read", expires_us=time.time_ns() // 1000 + 3_000_000)
        until(lambda: status(expiring) == 200, every_s=0.01)
        assert status(revoked) == 200
        with Store(db) as store:
            store.keys.revoke(auth.split_key(revoked)[0])
        for key in (expiring, revoked):
            until(lambda key=key: status(key) == 401)
        assert client.get("/v1/models", headers=bearer(admin)).status_code == 200


def test_rates_are_each_keys_own(db: str) -> None:
    slow, fast = make_key(db, "read", rate_per_s=1), make_key(db, "read")
    with serving(settings(db)) as client:
        replies = [client.get("/v1/models", headers=bearer(slow)) for _ in range(6)]
        assert [reply.status_code for reply in replies].count(200) <= 4
        refused = replies[-1]
        assert (refused.status_code, list(refused.json()), int(refused.headers["retry-after"]) >= 1) == (429, ["error"], True)
        assert {client.get("/v1/models", headers=bearer(fast)).status_code for _ in range(20)} == {200}


def test_admin_acts_are_audited_with_who_and_which_request(db: str) -> None:
    key = make_key(db, "admin")
    with serving(settings(db)) as client:
        reply = client.post("/v2/repository/models/digits/load", headers={**bearer(key), "X-Request-ID": "act-1"})
        assert (reply.status_code, reply.headers["x-request-id"]) == (200, "act-1")
    with Store(db) as store:
        (entry,) = store.audit.page().items
        (stored,) = store.keys.page().items
    assert (entry.action, entry.target, entry.request_id) == ("model.load", "digits", "act-1")
    assert entry.actor == f"{auth.split_key(key)[0]} test"
    assert stored.last_used_us is not None


def login(client: httpx.Client, key: str) -> httpx.Response:
    page = client.get("/login").text
    token = page.split('name="csrf" value="')[1].split('"')[0]
    return client.post("/login", data={"key": key, "csrf": token})


def test_pages_after_login(keyed: tuple[httpx.Client, dict[str, str]]) -> None:
    client, keys = keyed
    to_login = client.get("/", headers={"Accept": "text/html"})
    assert (to_login.status_code, to_login.headers["location"]) == (303, "/login")
    assert login(client, "ewk_x.y").status_code == 401
    assert "no scope that may read" in login(client, keys["infer"]).text
    reply = login(client, keys["read"])
    assert (reply.status_code, reply.headers["location"]) == (303, "/")
    cookie = next(value for value in reply.headers.get_list("set-cookie") if value.startswith(COOKIE))
    assert {"httponly", "samesite=strict", "path=/"} <= {part.strip().lower() for part in cookie.split(";")}
    assert keys["read"].split(".")[1] not in cookie
    assert "digits" in client.get("/").text


def test_a_session_cannot_write_without_its_token(keyed: tuple[httpx.Client, dict[str, str]]) -> None:
    client, keys = keyed
    assert login(client, keys["admin"]).status_code == 303
    assert client.get("/v1/models").status_code == 200
    assert client.post("/v2/repository/models/digits/load").status_code == 403
    assert client.post("/logout", data={"csrf": "wrong"}).status_code == 403
    token = client.get("/").text.split('name="csrf" value="')[1].split('"')[0]
    assert client.post("/v2/repository/models/digits/load", headers={"X-CSRF-Token": token}).status_code == 200
    assert client.post("/logout", data={"csrf": token}).status_code == 303
    assert client.get("/v1/models").status_code == 401


def test_login_form_of_another_site_is_refused(keyed: tuple[httpx.Client, dict[str, str]]) -> None:
    client, keys = keyed
    assert client.post("/login", data={"key": keys["read"], "csrf": "guess"}).status_code == 403
    client.get("/login")
    assert client.post("/login", data={"key": keys["read"]}).status_code == 403
    assert client.post("/login", content=b"\xff", headers={"Content-Type": "text/plain"}).status_code == 400
    assert client.post("/login", content=b"a" * 10_000).status_code == 413


def test_sessions_end_with_time_key_and_secret() -> None:
    key = StoredKey("abc", "n", auth.digest_of("s"), ("read",), None, 0, None, None, None)
    sessions = auth.Sessions("secret")
    cookie = sessions.make(key)
    assert sessions.check(cookie, key)
    assert auth.Sessions("secret").check(cookie, key)
    assert not auth.Sessions("other").check(cookie, key)
    assert not sessions.check(cookie, StoredKey("abc", "n", auth.digest_of("t"), ("read",), None, 0, None, None, None))
    prefix, ends, mac = cookie.split(".")
    assert not sessions.check(f"{prefix}.{int(ends) + 1}.{mac}", key)
    assert not sessions.check(f"{prefix}.1.{mac}", key)
    for noise in ("", ".", "a.b.c", f"{prefix}.{'9' * 400}.{mac}", f"{prefix}.{ends}.é"):
        assert not sessions.check(noise, key)


def test_no_cors_and_no_framing(keyed: tuple[httpx.Client, dict[str, str]]) -> None:
    client, keys = keyed
    reply = client.options("/v2", headers={"Origin": "http://evil.example", "Access-Control-Request-Method": "GET"})
    assert reply.status_code == 401
    reply = client.get("/v2", headers={**bearer(keys["read"]), "Origin": "http://evil.example"})
    assert not [name for name in reply.headers if name.startswith("access-control")]
    assert "frame-ancestors 'none'" in client.get("/login").headers["content-security-policy"]


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("evil.example", 421),
        ("", 400),
        ("127.0.0.1.evil.example", 421),
        ("[::1", 400),
        ("[::1].evil.example", 400),
        ("127.0.0.1:x.evil.example", 400),
        ("localhost@evil.example", 400),
        ("\x00", 400),
        ("a" * 9000, 400),
        ("LOCALHOST:80", 200),
        ("[0:0::1]", 200),
    ],
    ids=["other", "none", "longer", "bracket", "behind_bracket", "no_port", "user", "nul", "long", "upper", "address"],
)
def test_host_header_is_checked_before_anything(keyed: tuple[httpx.Client, dict[str, str]], host: str, status: int) -> None:
    import socket

    client, keys = keyed
    with socket.create_connection(("127.0.0.1", urlsplit(str(client.base_url)).port), timeout=10) as raw:
        head = f"GET /v2 HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {keys['admin']}\r\nConnection: close\r\n\r\n"
        raw.sendall(head.encode("latin-1"))
        assert int(raw.recv(100).split(b" ")[1]) == status


def test_keys_command(db: str) -> None:
    first = edgewise("keys", "create", "--name", "cli", "--scope", "read", "--scope", "infer", "--db", db, "--json")
    assert "This is the first key of this database" in first.stderr
    made = json.loads(first.stdout)
    assert made["scopes"] == ["infer", "read"]
    listed = edgewise("keys", "list", "--db", db, "--json").stdout
    (entry,) = json.loads(listed)["keys"]
    assert (entry["prefix"], entry["state"], made["key"] in listed) == (made["prefix"], "active", False)
    second = edgewise("keys", "create", "--name", "root", "--scope", "admin", "--db", db, "--json")
    assert second.stderr == ""
    assert edgewise("keys", "revoke", made["prefix"], "--db", db).stderr == ""  # one of scope admin is left
    last = edgewise("keys", "revoke", json.loads(second.stdout)["prefix"], "--db", db)
    assert (last.returncode, "edgewise keys create --name NAME --scope admin" in last.stderr) == (0, True)
    assert "revoked" in edgewise("keys", "list", "--db", db).stdout
    missing = edgewise("keys", "revoke", "nothing", "--db", db)
    assert (missing.returncode, "not stored" in missing.stderr) == (1, True)
    with Store(db) as store:
        assert [item.action for item in store.audit.page().items] == ["key.revoke", "key.revoke", "key.create", "key.create"]
        assert made["key"].split(".")[1] not in json.dumps([item.secret_sha256 for item in store.keys.page().items])
