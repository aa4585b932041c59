"""What a browser says of a page besides showing it."""

from pathlib import Path
from typing import Any

from playwright.sync_api import ConsoleMessage, Page, Request

from bench.dashboard.pages import settled

AXE = Path(__file__).parent / "vendor" / "axe.min.js"
PATIENCE_MS = 60_000


class Watch:
    """A page, and what went wrong on it: errors on the console (those of the content security policy too) and requests to others.

    expected: parts of messages that a test provokes.
    """

    def __init__(self, page: Page, address: str) -> None:
        self.page, self.address = page, address
        self.wrong: list[str] = []
        self.expected: list[str] = []
        page.set_default_timeout(PATIENCE_MS)
        page.on("console", self._said)
        page.on("pageerror", lambda error: self.wrong.append(f"uncaught: {error}"))
        page.on("request", self._asked)

    def _said(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning") and not any(part in message.text for part in self.expected):
            self.wrong.append(f"{message.type}: {message.text} ({message.location.get('url', '')})")

    def _asked(self, request: Request) -> None:
        if not request.url.startswith((self.address + "/", "blob:", "data:")):
            self.wrong.append(f"request to {request.url}")

    def open(self, path: str) -> Page:
        """Go there and wait until the page has what it shows."""
        self.page.goto(path)
        settled(self.page)
        return self.page


def violations(page: Page) -> list[str]:
    """What axe-core finds that is serious or critical."""
    page.evaluate(AXE.read_text())  # in the page's world, which its policy does not stop
    found: dict[str, Any] = page.evaluate("() => axe.run(document, {resultTypes: ['violations']})")
    return [
        f"{one['id']}: {one['nodes'][0]['target']} {one['nodes'][0]['html'][:160]} {one['nodes'][0]['failureSummary'][:300]}"
        for one in found["violations"]
        if one["impact"] in ("serious", "critical")
    ]
