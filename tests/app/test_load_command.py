"""`edgewise load` as a user calls it."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest

from bench.waiting import until
from tests.processes import edgewise

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def url(client: httpx.Client) -> str:
    return str(client.base_url)


def test_a_sweep_as_json_and_as_a_page(url: str, tmp_path: Path) -> None:
    np.save(tmp_path / "image.npy", np.zeros((1, 1, 8, 8), np.float32))
    page = tmp_path / "load.html"
    bounds = ("--seconds", "20", "--requests", "15", "--warmup", "0")
    own = ("--input", f"image={tmp_path / 'image.npy'}", "--batch", "2")
    done = edgewise("load", url, "--model", "digits", "--clients", "1,2,4", *bounds, *own, "--json", "--html", str(page))
    found = json.loads(done.stdout)
    assert done.returncode == 0
    assert [(each["clients"], each["rows"], each["answered"]) for each in found["steps"]] == [(1, 2, 15), (2, 2, 15), (4, 2, 15)]
    assert (found["model"], found["interrupted"], found["knee"] in (0, 1, 2)) == ("digits", False, True)
    text = page.read_text()
    assert "4 clients, 2 rows" in text
    assert text.count("<polyline") == 3
    assert "<script" not in text


def test_tables_name_the_errors(url: str) -> None:
    done = edgewise("load", url, "--model", "digits", "--rate", "200", "--requests", "5", "--timeout", "1", "--warmup", "0")
    assert done.returncode == 0
    assert "p99 ms" in done.stdout
    assert "digits on http://127.0.0.1" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["http://127.0.0.1:1"], 1, "edgewise: load: 127.0.0.1:1: "),
        (["127.0.0.1:8000"], 1, "need one like http://host:8000"),
        (["http://127.0.0.1:1", "--clients", "0"], 2, "--clients: '0' is not understood"),
        (["http://127.0.0.1:1", "--clients", "1.5"], 2, "need whole numbers, as in"),
        (["http://127.0.0.1:1", "--rate", "1,x"], 2, "--rate: '1,x' is not understood"),
        (["http://127.0.0.1:1", "--rate", "5", "--clients", "1,2"], 2, "need one number"),
        (["http://127.0.0.1:1", "--even"], 2, "--even: it needs --rate"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments: list[str], code: int, says: str) -> None:
    done = edgewise("load", *arguments)
    assert (done.returncode, says in done.stderr, "Traceback" in done.stderr) == (code, True, False)


def answered(url: str) -> int:
    return httpx.get(f"{url}/v2/models/digits/stats").json()["model_stats"][0]["inference_stats"]["success"]["count"]


def test_ctrl_c_prints_what_there_is(url: str) -> None:
    command = [
        sys.executable,
        "-m",
        "edgewise",
        "load",
        url,
        "--model",
        "digits",
        "--clients",
        "1,2",
        "--seconds",
        "300",
        "--json",
    ]
    enough = answered(url) + 20
    with subprocess.Popen(
        [*command, "--warmup", "0"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        try:
            until(lambda: answered(url) > enough)
            running.send_signal(signal.SIGINT)
            said, told = running.communicate(timeout=60)
        finally:
            running.kill()
    found = json.loads(said)
    assert (running.returncode, found["interrupted"], len(found["steps"])) == (0, True, 1), told
    assert found["steps"][0]["answered"] >= 20
    assert found["steps"][0]["elapsed_s"] < 200
