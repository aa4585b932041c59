"""Collect what goes wrong on a page: messages on the console, requests to other servers, accessibility violations."""

from pathlib import Path
from typing import Any

from playwright.sync_api import ConsoleMessage, Page, Request

from bench.dashboard.pages import settled

AXE = Path(__file__).parent / "vendor" / "axe.min.js"
PATIENCE_MS = 60_000


class Watch:
    """A page and its problems.

    wrong: errors and warnings on the console, also of the content security policy, and requests to other servers.
    expected: parts of messages that a test provokes; such messages are no problems.
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
        """Go to the path, wait until the page shows all its data, and return the page."""
        self.page.goto(path)
        settled(self.page)
        return self.page


def violations(page: Page) -> list[str]:
    """Return the serious and critical accessibility violations that axe-core finds."""
    page.evaluate(AXE.read_text())  # runs in the page's own context, where the security policy does not apply
    found: dict[str, Any] = page.evaluate("() => axe.run(document, {resultTypes: ['violations']})")
    return [
        f"{one['id']}: {one['nodes'][0]['target']} {one['nodes'][0]['html'][:160]} {one['nodes'][0]['failureSummary'][:300]}"
        for one in found["violations"]
        if one["impact"] in ("serious", "critical")
    ]
