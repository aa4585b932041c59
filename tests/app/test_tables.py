"""Tables of the command line on terminals of any width."""

import csv
from pathlib import Path

import pytest
from rich.console import Console

from app.cli.tables import Column, fitted
from app.settings import DEMO_MODELS
from tests.processes import edgewise

COLUMNS = [
    Column("node", ["/features/features.3/conv/conv.1/conv.1.0/Conv", "/features/features.3/Add"], least=10),
    Column("bound", ["compute", "memory"], least=7, rank=1),
    Column("strategy", ["native/direct{tile=5x2}", ""], least=12, rank=2),
    Column("µs", ["123456.7", "8.9"]),
]


def lines(width: int) -> list[str]:
    console = Console(width=width)
    with console.capture() as captured:
        console.print(fitted("a title", COLUMNS, width))
    return captured.get().splitlines()


@pytest.mark.parametrize("width", range(30, 140, 5))
def test_figures_are_whole_on_any_width(width: int) -> None:
    printed = lines(width)
    assert max(map(len, printed)) <= width
    assert all(any(figure in line for line in printed) for figure in ("123456.7", "8.9"))


def test_what_matters_least_goes_first_and_is_named() -> None:
    assert all(title in lines(100)[2] for title in ("node", "bound", "strategy"))
    assert "no room for strategy" in lines(45)[-1]
    assert "bound" in lines(45)[2]
    assert "no room for bound, strategy" in lines(30)[-1]


def test_a_name_keeps_its_end() -> None:
    assert "│ /featu…conv.1.0/Conv │" in lines(60)[4]
    assert "│ /fea…ures.3/Add │" in lines(40)[5]


def test_a_measured_run_can_be_read_on_eighty_columns(tmp_path: Path) -> None:
    db, rows = f"sqlite:///{tmp_path / 'cli.sqlite'}", tmp_path / "ops.csv"
    narrow = {"COLUMNS": "80", "XDG_DATA_HOME": str(tmp_path)}  # and a lock of its own for what is measured
    assert edgewise("device", "--seconds", "0.3", "--db", db, environment=narrow).returncode == 0
    model = str(DEMO_MODELS / "digits.onnx")
    asked = ("--dim", "batch=1", "--measure", "--runs", "3", "--top", "0", "--csv", str(rows), "--db", db)
    printed = edgewise("profile", model, *asked, environment=narrow).stdout.splitlines()
    assert max(map(len, printed)) <= 80
    with rows.open(encoding="utf-8", newline="") as file:
        ops = list(csv.DictReader(file))
    assert ops
    for op in ops:
        (line,) = (line for line in printed if line.startswith("│") and f" {op['name']} " in line)  # not what is said of it below
        for figure in (f"{float(op['p50_ns']) / 1e3:.1f}", f"{float(op['share_percent']):.1f}"):
            assert f" {figure} " in line
