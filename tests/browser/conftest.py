"""Fixtures of the browser's tests: the system's Chromium and a service with data, both shared by all tests of this folder."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from bench.dashboard.models import EXPORT, mobilenet_v2
from bench.dashboard.pages import CHROMIUM
from bench.dashboard.site import Site, site
from tests.browser.watching import PATIENCE_MS, Watch

FOLDER = os.environ.get("EDGEWISE_EXPORTS", "")
EXPORTED = [pytest.param("exported", marks=pytest.mark.exports)] if FOLDER else []


@pytest.fixture(scope="package", params=["built", *EXPORTED])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Serve the export that tests build, then PyTorch's own export if EDGEWISE_EXPORTS names its folder."""
    export = mobilenet_v2() if request.param == "built" else (Path(FOLDER) / f"{EXPORT}.onnx").read_bytes()
    folder = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as patch:  # tests' measurements wait for each other, and for no other program's
        patch.setattr("scheduler.exclusive.lock_path", lambda: folder / "measuring.lock")
        with site(folder, export) as found:
            yield found


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine")
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def watch(browser: Browser, served: Site) -> Iterator[Watch]:
    """Open a page for one test. The test fails if the console showed a problem or the page sent a request to another server."""
    context = browser.new_context(base_url=served.address, viewport={"width": 1280, "height": 800})
    watched = Watch(context.new_page(), served.address)
    yield watched
    context.close()
    assert watched.wrong == []


@pytest.fixture
def page(watch: Watch) -> Page:
    return watch.page
