"""A static report is one file that shows a run anywhere and loads nothing else."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import edgewise
from app.pages.report import write_report
from app.settings import DEMO_MODELS
from profiler.report.document import Report
from profiler.report.makers import static_report
from tests.processes import edgewise as command

CHROMIUM = shutil.which("chromium")


@pytest.fixture(scope="module")
def counted() -> Report:
    return static_report(edgewise.profile(DEMO_MODELS / "digits.onnx", dims={"batch": 1}))


def test_report_holds_the_document_and_names_no_address(counted: Report, tmp_path: Path) -> None:
    write_report(counted.to_json().encode(), tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text("utf-8")
    held = re.search(r'<script type="application/json" id="document">(.*?)</script>', text, re.DOTALL)
    assert held is not None
    assert json.loads(held[1]) == json.loads(counted.to_json())
    assert not re.search(r'(?:src|href)="(?!#)', text)
    assert "default-src 'none'" in text


def test_report_of_a_hostile_name_keeps_it_text(counted: Report, tmp_path: Path) -> None:
    evil = "</script><script>document.title = 'owned'</script>"
    named = counted.model_copy(update={"model": counted.model.model_copy(update={"name": evil})})
    write_report(named.to_json().encode(), tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text("utf-8")
    assert evil not in text
    assert text.count("<script") == 4
    assert "&lt;/script&gt;" in text


def test_profile_writes_a_report(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    done = command("profile", str(DEMO_MODELS / "digits.onnx"), "--dim", "batch=1", "--html", str(path))
    assert done.returncode == 0, done.stderr
    assert "Edgewise report" in path.read_text("utf-8")


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_report_opens_in_a_browser(counted: Report, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_report(counted.to_json().encode(), path)
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path}/profile",
        "--virtual-time-budget=20000",
    ]
    command = [str(CHROMIUM), *options, "--dump-dom", path.as_uri()]
    page = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    for op in counted.ops:
        assert f">{op.name}</a>" in page
        assert f"{op.flops:,}" in page
    assert 'role="tab" id="tab-graph"' in page
