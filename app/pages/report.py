"""A static report: one file with a run and everything that shows it, which opens anywhere and asks nobody for anything.

The pages' own modules are in it as data: URLs, under the names of an import map. A module inside such a URL knows no folder, so
what it imports is named from the root.
"""

from __future__ import annotations

import base64
import posixpath
import re
from functools import partial
from pathlib import Path
from typing import Final

import orjson

from app.pages.shell import STATIC, render

ENTRY: Final = "js/pages/report.js"
STYLES: Final = ("vendor/uPlot.min.css", "style.css")
_IMPORT: Final = re.compile(r'^(import (?:[^"]* from )?")([^"]+)(";)$', re.MULTILINE)


def write_report(document: bytes, path: Path) -> None:
    """Write a report of a run, given as the JSON document that the API has it as."""
    name = orjson.loads(document)["model"]["name"]
    modules = {
        name: f"data:text/javascript;base64,{base64.b64encode(text.encode()).decode()}" for name, text in _modules().items()
    }
    html = render(
        "report.html",
        name=name,
        styles="\n".join((STATIC / style).read_text("utf-8") for style in STYLES),
        theme=(STATIC / "js/theme.js").read_text("utf-8"),
        modules=orjson.dumps({"imports": modules}).decode(),
        document=document.decode().replace("<", "\\u003c"),  # JSON has it in strings only, and no string may end the element
        entry=ENTRY,
    )
    path.write_text(html, "utf-8")


def _modules() -> dict[str, str]:
    """The text of every module that the report needs, by its name below the static folder."""
    found: dict[str, str] = {}
    wanted = [ENTRY]
    while wanted:
        name = wanted.pop()
        if name not in found:
            found[name] = _IMPORT.sub(partial(_from_root, posixpath.dirname(name)), (STATIC / name).read_text("utf-8"))
            wanted += [match[2] for match in _IMPORT.finditer(found[name])]
    return found


def _from_root(folder: str, match: re.Match[str]) -> str:
    """An import statement of a module in that folder, as one that holds everywhere."""
    return f"{match[1]}{posixpath.normpath(posixpath.join(folder, match[2]))}{match[3]}"
