"""`edgewise bench MODEL`."""

import json
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from app.cli import speed
from app.cli.main import command_line
from app.settings import DEMO_MODELS
from tests.app.servers import identity_model

DIGITS = DEMO_MODELS / "digits.onnx"


def bench(*arguments):
    done = CliRunner().invoke(command_line(["bench"]), ["bench", *map(str, arguments)])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


def test_each_thread_count_and_batch_beside_onnx_runtime():
    found = json.loads(bench(DIGITS, "--threads", "1,2", "--batch", "1,4", "--seconds", "0.05", "--json").stdout)
    kinds = [(each["engine"], each["threads"], each["rows"]) for each in found]
    assert kinds == [(name, threads, rows) for threads in (1, 2) for rows in (1, 4) for name in (speed.OURS, speed.PEER)]
    for each in found:
        assert each["runs"] >= 15
        assert 0 < each["min_ns"] <= each["p50_ns"] <= each["p99_ns"]
        assert each["rows_per_s"] == pytest.approx(each["rows"] * 1e9 / each["p50_ns"])
    assert all(each["difference"] < 1e-5 for each in found if each["engine"] == speed.PEER)


def test_precisions_run_beside_each_other():
    found = json.loads(bench(DIGITS, "--threads", "1", "--precision", "fp32,bf16", "--seconds", "0.02", "--json").stdout)
    assert [(each["engine"], each["precision"]) for each in found] == [
        (speed.OURS, "fp32"),
        (speed.OURS, "bf16"),
        (speed.PEER, speed.AS_IN_FILE),
    ]
    assert found[0]["difference"] is None
    assert 0 < found[1]["difference"] < 0.1
    with pytest.raises(Exception, match="unknown precision 'fp33', need one of"):
        bench(DIGITS, "--precision", "fp33")


def test_a_peer_that_is_not_installed_is_left_out(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    done = bench(DIGITS, "--threads", "1", "--seconds", "0.02", "--rounds", "1")
    assert "p50 ms" in done.stdout
    assert speed.PEER not in done.stdout
    assert "onnxruntime is left out: it is not installed" in done.stderr


def test_a_model_that_the_peer_cannot_run_is_timed_alone(tmp_path, monkeypatch):
    (tmp_path / "text.onnx").write_bytes(identity_model(16))  # bfloat16, which ONNX Runtime takes from no numpy array
    found = json.loads(bench(tmp_path / "text.onnx", "--threads", "1", "--seconds", "0.02", "--json").stdout)
    assert [each["engine"] for each in found] == [speed.OURS]


def test_engines_take_turns_in_alternating_order():
    order: list[str] = []
    runs: dict[str, Any] = {name: lambda name=name: order.append(name) for name in "ab"}
    times = speed.in_turns(runs, 0.0, 2)
    assert "".join(order) == "aaabbb" + "bbbaaa"
    assert {name: len(each) for name, each in times.items()} == {"a": 6, "b": 6}


@pytest.mark.parametrize(
    ("ours", "theirs", "found"),
    [
        (np.array([1.0, 3.0]), np.array([1.0, 4.0]), 0.25),
        (np.zeros(2), np.zeros(2), 0.0),
        (np.zeros(0), np.zeros(0), 0.0),
        (np.array([1, 2]), np.array([1, 2]), 0.0),
        (np.array([1, 2]), np.array([1, 3]), 1.0),
    ],
)
def test_difference(ours, theirs, found):
    assert speed.difference({"y": ours}, {"y": theirs}) == found


def test_differences_are_told(capsys):
    timing = speed.Timing(speed.OURS, "fp32", 1, 1, 3, 10, 10, 10, 1e8)
    speed.show(DIGITS, [[timing, speed.Timing(speed.PEER, speed.AS_IN_FILE, 1, 1, 3, 20, 20, 20, 5e7, 0.5)]], json=False)
    said = capsys.readouterr().out
    assert "2.00" in said
    assert "its outputs differ by 5.0e-01 of the largest" in said


@pytest.mark.parametrize(("option", "value"), [("--threads", "0"), ("--batch", "x"), ("--threads", "1.5")])
def test_what_makes_no_sense_is_refused(option, value):
    with pytest.raises(Exception, match=f"{option}: '{value}' is not understood"):
        bench(DIGITS, option, value)
