"""Pages run only scripts of this server, and every file that a page loads exists."""

import re
from urllib.parse import urljoin

import httpx
import pytest

SEVEN = {"inputs": [{"name": "image", "shape": [1, 1, 8, 8], "datatype": "FP32", "data": [0.0] * 64}]}
BROWSER = {"Accept": "text/html,application/xhtml+xml"}
IMPORT = re.compile(r'^import (?:[^"]* from )?"([^"]+)";$', re.MULTILINE)


def needed(page: str) -> set[str]:
    """Return the scripts and styles that a page loads from the server."""
    return set(re.findall(r'(?:src|href)="(/static/[^"]+)"', page))


def test_overview_names_the_models_and_why_one_is_not_served(client: httpx.Client) -> None:
    overview = client.get("/").text
    assert '<a href="/models/digits?version=1">digits</a>' in overview
    assert "not an ONNX file" in overview
    assert '<a href="/" aria-current="page">Overview</a>' in overview


@pytest.mark.parametrize("path", ["/", "/models/digits", "/login"])
def test_pages_run_only_the_scripts_of_this_server(client: httpx.Client, path: str) -> None:
    page = client.get(path)
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'; script-src 'self';" in policy
    assert "unsafe" not in policy
    assert not re.search(r"<script(?![^>]* src=)|<style|\son[a-z]+=|\sstyle=", page.text)


@pytest.mark.parametrize("path", ["/", "/models/digits"])
def test_everything_a_page_asks_for_is_there(client: httpx.Client, path: str) -> None:
    wanted, seen = needed(client.get(path).text), set[str]()
    assert any(name.startswith("/static/js/pages/") for name in wanted)
    while wanted:
        name = wanted.pop()
        reply = client.get(name)
        assert reply.status_code == 200, name
        seen.add(name)
        if name.endswith(".js"):
            assert reply.headers["content-type"].startswith("text/javascript"), name
            wanted |= {urljoin(name, found) for found in IMPORT.findall(reply.text)} - seen


def test_static_files_are_asked_for_again_and_not_sent_again(client: httpx.Client) -> None:
    first = client.get("/static/style.css")
    assert first.headers["cache-control"] == "no-cache"
    again = client.get("/static/style.css", headers={"If-None-Match": first.headers["etag"]})
    assert again.status_code == 304
    assert again.content == b""


def test_errors_are_pages_for_browsers_and_json_for_programs(client: httpx.Client) -> None:
    page = client.get("/models/nope", headers=BROWSER)
    assert page.status_code == 404
    assert "<h1>Not found</h1>" in page.text
    assert "unknown model" in page.text
    assert "script-src 'self'" in page.headers["content-security-policy"]
    assert "unknown model" in client.get("/models/nope").json()["error"]
    assert "error" in client.get("/v1/models/nope", headers=BROWSER).json()


def test_a_message_in_an_error_page_is_text(client: httpx.Client) -> None:
    page = client.get("/models/%3Cimg%20src=x%3E", headers=BROWSER)
    assert "<img" not in page.text
    assert "&lt;img" in page.text


def test_live_tells_traffic_queues_and_health(client: httpx.Client) -> None:
    before = {model["name"]: model for model in client.get("/v1/live").json()["models"]}["digits"]
    for _ in range(3):
        assert client.post("/v2/models/digits/infer", json=SEVEN).status_code == 200
    live = client.get("/v1/live").json()
    model = next(model for model in live["models"] if model["name"] == "digits")
    assert model["requests"] == before["requests"] + 3
    assert model["state"] == "READY"
    assert 0 < model["p50_ns"] <= model["p99_ns"]
    assert live["together"]["requests_per_s"] >= model["requests_per_s"] > 0
    assert (live["running"], live["waiting"]) == (0, 0)
    assert live["health"]["ready"]
    assert live["health"]["database"] == "ok"
    assert next(model for model in live["models"] if model["name"] == "broken")["state"] == "UNAVAILABLE"


def test_a_model_is_counted_on_the_spot_and_nothing_is_stored(client: httpx.Client) -> None:
    stored = client.get("/v1/profiles").json()["items"]
    report = client.get("/v1/models/digits/count").json()
    assert report["kind"] == "static"
    assert report["model"]["name"] == "digits"
    assert max(op["macs"] for op in report["ops"]) == 294_912  # of the last convolution
    assert client.get("/v1/profiles").json()["items"] == stored
    assert client.get("/v1/models/nope/count").status_code == 404


def test_runs_of_a_model_can_be_asked_for_once_its_page_was_opened(client: httpx.Client) -> None:
    digest = client.get("/v1/models/digits").json()["digest"]
    assert client.get("/models/digits").status_code == 200
    assert client.get("/v1/profiles", params={"model": digest, "kind": "trace"}).status_code == 200
