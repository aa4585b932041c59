"""`edgewise profile --convention` shows totals by the conventions of other counters beside ours."""

import json

import pytest

from app.cli.console import ArgumentError
from app.cli.conventions import names_of
from profiler.counting.conventions import CONVENTIONS
from tests.app.demo import MODEL
from tests.processes import edgewise


def test_it_prints_the_totals_of_other_counters_beside_ours() -> None:
    done = edgewise("profile", MODEL, "--dim", "batch=1", "--convention", "ultralytics")
    assert done.returncode == 0, done.stderr
    assert [word for word in ("macs", "flops", "ultralytics", "452,864") if word not in done.stdout] == []
    assert "twice the MACs of thop" in done.stdout
    assert "paddle" not in done.stdout


def test_it_prints_them_as_json() -> None:
    asked = ("--convention", "torch", "--convention", "torch", "--json")
    rows = json.loads(edgewise("profile", MODEL, "--dim", "batch=1", *asked).stdout)
    assert [row["convention"] for row in rows] == ["macs", "flops", "torch"]
    assert (rows[0]["total"], rows[2]["total"], rows[2]["unit"]) == (452864, 2 * 452864, "FLOPs (2 per MAC)")


def test_all_stands_for_every_convention() -> None:
    assert names_of(["all"]) == tuple(CONVENTIONS)
    assert names_of(["thop"]) == ("macs", "flops", "thop")
    with pytest.raises(ArgumentError, match="'gflops' is unknown, need one of macs, flops"):
        names_of(["gflops"])


@pytest.mark.parametrize("extra", [["--measure", "--dim", "batch=1"], ["--dim", "batch=1,2"]], ids=["measure", "sweep"])
def test_it_counts_one_size_and_runs_nothing(extra: list[str]) -> None:
    refused = edgewise("profile", MODEL, "--convention", "thop", *extra)
    assert (refused.returncode, "--convention needs one size" in refused.stderr.replace("\n", " ")) == (2, True)
