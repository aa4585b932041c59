"""What a page shows, and how it says figures."""

from playwright.sync_api import Page


def cells(page: Page, title: str) -> list[str]:
    """The column of that title, of the rows that are in the document."""
    heads = page.locator(".grid").get_by_role("columnheader").all_inner_texts()
    at = next(at for at, head in enumerate(heads) if head.strip("▲▼ \n") == title)
    found = page.locator(f'.grid .body [role=row] [aria-colindex="{at + 1}"]').all()
    return [cell.get_attribute("title") or cell.inner_text() for cell in found]  # a title says what is shortened


def say(page: Page, kind: str, value: float | None) -> str:
    """As the pages say such a figure."""
    return str(page.evaluate("([kind, value]) => import('/static/js/format.js').then((all) => all[kind](value))", [kind, value]))
