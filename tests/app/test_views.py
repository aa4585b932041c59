"""The pages of plans, runs, devices, jobs and models load modules that exist, and tell them what the key may do."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
import pytest

from app.settings import DEMO_MODELS, Settings
from bench.local import serving
from tests.app.keys import bearer, make_key

PAGES = [
    "/plans",
    f"/plans/{'0' * 64}",
    "/pareto",
    "/compare?runs=1,2",
    "/devices",
    "/devices/local",
    "/jobs",
    "/jobs/1",
    "/regressions?model=digits",
    "/upload",
    "/models/digits/work",
]


@pytest.mark.parametrize("path", PAGES)
def test_a_page_is_a_frame_for_modules_that_exist(client: httpx.Client, path: str) -> None:
    reply = client.get(path)
    assert reply.status_code == 200, reply.text
    assert "script-src 'self'" in reply.headers["content-security-policy"]
    assert reply.headers["referrer-policy"] == "same-origin"  # no-referrer makes browsers send forms with "Origin: null"
    assert len(re.findall(r"<h1[ >]", reply.text)) == 1
    assert not re.search(r"<script(?![^>]*(src=|application/json))|<style|\sstyle=|\son\w+=", reply.text)  # nothing inline
    waiting = re.findall(r'(?:src|href)="(/static/[^"]+)"', reply.text)
    assert any("/static/js/pages/" in url for url in waiting)
    seen: set[str] = set()
    while waiting:
        url = waiting.pop()
        if url not in seen:
            seen.add(url)
            found = client.get(url)
            assert found.status_code == 200, url
            if url.endswith(".js"):
                waiting += [str(httpx.URL(url).join(to)) for to in re.findall(r'from "(\.[^"]+)"', found.text)]


def test_what_is_not_there_is_said(client: httpx.Client) -> None:
    assert client.get("/models/nowhere/work").status_code == 404
    assert client.get("/jobs/0").status_code == 400
    assert "not ready" in client.get("/models/broken/work").text


def test_what_a_page_was_asked_is_text(client: httpx.Client) -> None:
    assert "<b>" not in client.get("/plans/<b>x").text
    assert "<b>" not in client.get("/devices/<b>x").text


def test_a_page_says_what_its_key_may_do(tmp_path: Path) -> None:
    db = f"sqlite:///{tmp_path / 'keys.db'}"
    keys = {scope: make_key(db, scope) for scope in ("infer", "read", "admin")}
    with serving(Settings(models=DEMO_MODELS, db=db, key_refresh_s=0.1)) as client:
        for scope, status in (("infer", 403), ("read", 200), ("admin", 200)):
            reply = client.get("/models/digits/work", headers=bearer(keys[scope]))
            assert reply.status_code == status
            assert (f'name="scopes" content="{scope}"' in reply.text) == (status == 200)
        assert "does not accept uploads" in client.get("/upload", headers=bearer(keys["read"])).text


def test_plans_by_latency_and_error(own_client: httpx.Client) -> None:
    digest = own_client.get("/v1/models/digits").json()["digest"]
    for backend in ("auto", "numpy"):
        asked = {"model": "digits", "dims": {"batch": 1}, "max_threads": 1, "backend": backend}
        assert own_client.post("/v1/plans", json=asked, timeout=120).status_code == 200
    points = own_client.get("/v1/pareto", params={"model": digest}).json()
    assert [point["error_estimate"] for point in points] == sorted(point["error_estimate"] for point in points)
    front = [point for point in points if point["efficient"]]
    assert front
    for point in points:
        beaten = any(
            other["latency_ns"] <= point["latency_ns"]
            and other["error_estimate"] <= point["error_estimate"]
            and (other["latency_ns"], other["error_estimate"]) != (point["latency_ns"], point["error_estimate"])
            for other in points
        )
        assert point["efficient"] != beaten
    assert own_client.get("/v1/pareto", params={"model": "f" * 64}).status_code == 404
    assert own_client.get("/v1/pareto").status_code == 400
