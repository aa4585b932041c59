"""Pages start uploads, counts, measurements, plans, tuning and single runs, unless the key may not do it."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from app.settings import DEMO_MODELS, Settings
from bench.dashboard.models import EXPORT
from bench.dashboard.pages import settled
from bench.dashboard.site import Site
from bench.local import serving
from tests.app.keys import make_key
from tests.browser.watching import Watch
from tests.processes import edgewise


@pytest.fixture
def work(watch: Watch, served: Site) -> Page:
    return watch.open(f"/models/{EXPORT}/work")


def test_an_uploaded_model_is_served(watch: Watch, served: Site, tmp_path: Path) -> None:
    (tmp_path / "mine.onnx").write_bytes((DEMO_MODELS / "digits.onnx").read_bytes())
    page = watch.open("/upload")
    page.get_by_label("Model file").set_input_files(tmp_path / "mine.onnx")
    expect(page.get_by_label("Name", exact=True)).to_have_value("mine")
    page.get_by_role("button", name="Upload and serve").click()
    expect(page.get_by_text("mine is served")).to_be_visible()
    page.get_by_role("link", name="Open the model").click()
    settled(page)
    assert page.get_by_role("heading", level=1).inner_text().startswith("mine")


def test_what_is_no_model_is_refused_with_its_reason(watch: Watch, served: Site, tmp_path: Path) -> None:
    watch.expected = ["status of 400"]
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    page = watch.open("/upload")
    page.get_by_label("Model file").set_input_files(tmp_path / "broken.onnx")
    page.get_by_role("button", name="Upload and serve").click()
    expect(page.get_by_role("alert")).to_contain_text("not an ONNX file")


@pytest.mark.parametrize(("section", "button", "to"), [("count", "Count", r"run=\d+"), ("plan", "Plan", "/plans/[0-9a-f]{64}")])
def test_what_is_made_is_opened(work: Page, section: str, button: str, to: str) -> None:
    work.locator(f"#{section}").get_by_role("button", name=button, exact=True).click()
    expect(work).to_have_url(re.compile(to))
    settled(work)


def test_a_measurement_is_followed_to_its_run(work: Page) -> None:
    work.locator("#measure").get_by_label("Runs").fill("5")
    work.locator("#measure").get_by_role("button", name="Measure").click()
    expect(work).to_have_url(re.compile(r"/jobs/\d+"))
    work.get_by_role("link", name=re.compile("Open run")).click()
    settled(work)
    expect(work.get_by_role("tab", name="Timeline")).to_be_visible()


def test_tuning_shows_how_far_it_is_and_can_be_cancelled(work: Page) -> None:
    work.locator("#tune").get_by_label("Budget, s").fill("600")
    work.locator("#tune").get_by_role("button", name="Tune").click()
    expect(work.get_by_role("progressbar")).to_be_visible()
    expect(work.get_by_text(re.compile("of 600 s")).first).to_be_visible()
    work.get_by_role("button", name=re.compile("Cancel|Stop")).first.click()
    expect(work.locator(".state").first).to_have_text(re.compile("cancelled|done"))


def test_one_input_from_an_image_and_from_json(watch: Watch, served: Site) -> None:
    page = watch.open("/models/digits/work")
    page.get_by_label("Image file").set_input_files(DEMO_MODELS.parent / "images" / "7.png")
    page.get_by_role("button", name="Run", exact=True).click()
    expect(page.locator("#inference")).to_contain_text("from this page and back")
    page.get_by_role("radio", name="JSON").check()
    page.get_by_label("Request").fill((DEMO_MODELS.parent / "images" / "7.json").read_text())
    page.get_by_role("button", name="Run", exact=True).click()
    expect(page.locator("#inference")).to_contain_text(re.compile(r"digit INT64 \[1\]\s*7"))


@pytest.fixture
def reader(browser: Browser, tmp_path: Path) -> Iterator[Page]:
    """Open a page that is logged in with a key that may only read."""
    db = f"sqlite:///{tmp_path / 'keys.db'}"
    key = make_key(db, "read")
    with serving(Settings(models=DEMO_MODELS, db=db)) as client:
        context = browser.new_context(base_url=str(client.base_url))
        page = context.new_page()
        page.goto("/login")
        page.get_by_label(re.compile("API key")).fill(key)
        page.get_by_role("button", name="Log in").click()
        expect(page.get_by_role("button", name="Log out")).to_be_visible()
        yield page
        context.close()


def test_a_key_that_may_only_read_is_told_so(reader: Page) -> None:
    reader.goto("/models/digits/work")
    for name in ("Count", "Measure", "Plan", "Tune"):
        button = reader.get_by_role("button", name=name, exact=True)
        expect(button).to_be_disabled()
        expect(button).to_have_accessible_description(re.compile("needs an API key with scope admin; yours has read"))
    expect(reader.get_by_role("button", name="Run", exact=True)).to_be_disabled()


def test_a_report_is_one_file_that_needs_no_network(browser: Browser, served: Site, tmp_path: Path) -> None:
    report = tmp_path / "report.html"
    done = edgewise("profile", str(served.model), "--html", str(report))
    assert done.returncode == 0, done.stderr
    context = browser.new_context(offline=True)
    page = context.new_page()
    wrong: list[str] = []
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on(
        "request", lambda request: wrong.append(request.url) if not request.url.startswith(("file:", "data:", "blob:")) else None
    )
    page.goto(report.as_uri())
    expect(page.get_by_role("tab", name="Graph")).to_be_visible()
    page.get_by_role("tab", name="Memory").click()
    expect(page.locator("#panel-memory")).to_be_visible()
    context.close()
    assert wrong == []
