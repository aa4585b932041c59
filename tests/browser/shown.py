"""Read the cells that a page shows, and format figures as pages do."""

from playwright.sync_api import Page


def cells(page: Page, title: str) -> list[str]:
    """Return the cells of the column with that title, for the rows that are in the document."""
    heads = page.locator(".grid").get_by_role("columnheader").all_inner_texts()
    at = next(at for at, head in enumerate(heads) if head.strip("▲▼ \n") == title)
    found = page.locator(f'.grid .body [role=row] [aria-colindex="{at + 1}"]').all()
    return [cell.get_attribute("title") or cell.inner_text() for cell in found]  # a shortened text is whole in the title


def say(page: Page, kind: str, value: float | None) -> str:
    """Return a figure as the pages write it. kind: name of a function of format.js."""
    return str(page.evaluate("([kind, value]) => import('/static/js/format.js').then((all) => all[kind](value))", [kind, value]))
