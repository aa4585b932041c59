"""Every page in a real browser shows its content, logs nothing on the console, fits the window, and is accessible."""

import pytest

from bench.dashboard.pages import PAGES
from bench.dashboard.site import Site
from tests.browser.watching import Watch, violations

ALL = pytest.mark.parametrize("name", PAGES)


def path_of(name: str, served: Site) -> str:
    return PAGES[name].format_map(served.__dict__)


@ALL
def test_a_page_fits_and_is_for_everybody(watch: Watch, served: Site, name: str) -> None:
    page = watch.open(path_of(name, served))
    assert page.locator("h1").count() == 1
    assert page.locator(".problem:not(#check, #quietness):visible").all_inner_texts() == []
    for width in (375, 1920, 1280):
        page.set_viewport_size({"width": width, "height": 900})
        wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert page.evaluate(wide) <= 0, f"{width} px: the page is wider than the window"
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        page.evaluate("() => new Promise((drawn) => requestAnimationFrame(() => requestAnimationFrame(drawn)))")
        assert violations(page) == [], scheme
