"""Take the pictures of `docs/dashboard.md` again: `python -m docs.screenshots`. Needs Chromium and the development extra."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from bench.dashboard.models import mobilenet_v2
from bench.dashboard.pages import CHROMIUM, PAGES, settled
from bench.dashboard.site import site

FOLDER = Path(__file__).parent / "screenshots"
WIDTH, HEIGHT = 1280, 860
COLOURS = 64
PROBE_S = 8.0
DARK = {"roofline", "plan", "device"}


def main() -> None:
    """One picture of every page, the dark theme in some."""
    FOLDER.mkdir(exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as folder,
        site(Path(folder), mobilenet_v2(), PROBE_S) as served,
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for name, path in PAGES.items():
            theme = "dark" if name in DARK else "light"
            page = browser.new_page(
                base_url=served.address,
                viewport={"width": WIDTH, "height": HEIGHT},
                color_scheme=theme,  # type: ignore[arg-type]
                reduced_motion="reduce",
            )
            page.goto(path.format_map(served.__dict__))
            settled(page)
            page.wait_for_timeout(500)  # charts are drawn in the frames after
            image = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
            image.quantize(COLOURS, dither=Image.Dither.NONE).save(FOLDER / f"{name}.png", optimize=True)
            page.close()
        browser.close()


if __name__ == "__main__":
    main()
